"""The two recipes: starts of theta from sentences, dropout, another slope, and which settings reach a plan."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import adaprune
from adaprune.data.tasks import load_task
from adaprune.masks.cuts import keep_top
from adaprune.masks.layers import attach, maskable, threshold_of
from adaprune.masks.theta import SCORED, initial_theta, theta_in_order
from adaprune.methods import oneshot
from adaprune.methods.learning import LEARNED, optimiser_for
from adaprune.report.sweeps import read_sweep
from adaprune.runs.method import METHODS, SELECTIVE, Method
from adaprune.runs.paths import paths_of, record_path
from adaprune.runs.recipes import PAPER, TUNED, plan_for
from adaprune.runs.records import read_record
from adaprune.runs.retired import RETIRED
from adaprune.runs.run import Run
from adaprune.training import prepare
from adaprune.training.encoders import load_encoder, set_dropout

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ask(ten_sentences, tiny_model_dir, tmp_path, monkeypatch):
    """Makes a small run, by short paths: they are part of its name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(tiny_model_dir)
    small = {"max_length": 16, "batch_size": 4, "epochs": 2, "results_dir": "out", "checkpoint_steps": 0}
    return lambda **fields: Run(**{"task": ten_sentences.name, "model": "tiny", **small, **fields})


def job_of(run, **changed):
    """The job of a run, whose plan differs in what is ``changed``."""
    plan = replace(plan_for(run), **changed)
    return prepare(run, plan, paths_of(record_path(run)), load_task(run.task), load_encoder(run.model))


# ---------------------------------------------------------------- where theta starts


@pytest.mark.parametrize("kind", ["magnitude", "normal", "constant"])
def test_theta_takes_the_values_in_the_order_of_the_scores(kind):
    """By numpy: the sorted values are those given, and the first cut is that of the scores."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in {"a": (20, 10), "b": (5, 30)}.items()}
    scores = {name: torch.rand(w.shape, generator=generator).pow(9).round(decimals=2) for name, w in weights.items()}
    values = initial_theta(weights, kind, generator)
    thetas = theta_in_order(scores, values)  # many scores are equal
    flat, given = (np.concatenate([t.numpy().ravel() for t in found.values()]) for found in (thetas, values))
    assert np.array_equal(np.sort(flat), np.sort(given))
    ranking = np.concatenate([s.numpy().ravel() for s in scores.values()])
    assert np.all(np.diff(flat[np.argsort(-ranking, kind="stable")]) <= 0)
    for density in (0.1, 0.5, 0.9) if kind != "constant" else ():
        one, two = keep_top(thetas, density), keep_top(scores, density)
        assert all(torch.equal(one[name], two[name]) for name in weights)
    assert {name: theta.shape for name, theta in thetas.items()} == {name: w.shape for name, w in weights.items()}


@pytest.mark.parametrize("kind", SCORED)
def test_a_run_starts_from_scores_and_keeps_exactly_k(ask, monkeypatch, kind):
    """Theta does not move at a tiny learning rate, so the final mask is the cut by the scores themselves."""
    run = ask(initial_theta=kind, learning_rate=1e-12, sparsity=0.3)
    job = job_of(run)
    if kind == "activation":
        scores = oneshot.activations(copy.deepcopy(job))
    else:
        scores, _ = oneshot.sensitivities_with_head(job)
    expected = keep_top(scores, 0.7)
    record = adaprune.adapt(ask(initial_theta=kind, learning_rate=1e-12, sparsity=0.3, results_dir="two"))
    assert record["mask"]["kept"] == round(0.7 * record["mask"]["total"]) and record["weights_intact"]
    mask = adaprune.load_mask(f"two/masks/{run.name}.safetensors")
    assert all(torch.equal(mask.masks[name], expected[name]) for name in expected)


# ---------------------------------------------------------------- dropout, the slope


def test_dropout_is_set_in_hidden_layers_only(ask):
    job = job_of(ask(), dropout=0.3)
    shares = {
        name: module.p for name, module in job.model.encoder.named_modules() if isinstance(module, torch.nn.Dropout)
    }
    assert {share for name, share in shares.items() if "self" not in name} == {0.3}
    assert {share for name, share in shares.items() if "self" in name} == {0.0}  # attention's stay off
    set_dropout(job.model.encoder, 0.0)
    job.model.train()
    batch = {"input_ids": torch.tensor([[2, 5, 3]])}
    job.model.encoder.requires_grad_(True)
    assert torch.equal(job.model(**batch).logits, job.model(**batch).logits)


def test_identity_steps_along_the_plain_gradient(ask):
    """With SGD: scores move by lr * w dL/dw; with a temperature of 1, so the sigmoid's slope, by a quarter of that."""
    moved = {}
    for temperature in (0.0, 1.0):
        job = job_of(ask(method="movement", temperature=temperature, learning_rate=1.0))
        plan = job.plan
        weights = {name: module.weight for name, module in maskable(job.model.encoder).items()}
        thetas = attach(job.model.encoder, initial_theta(weights, "constant", torch.Generator()))
        before = {name: theta.detach().clone() for name, theta in thetas.items()}
        optimiser = optimiser_for(job.model, thetas, plan)
        train = job.sentences.splits["train"]
        job.model.eval()(**job.sentences.collate([train[i] for i in range(4)])).loss.backward()
        grads = {name: theta.grad.clone() for name, theta in thetas.items()}
        optimiser.step()
        moved[temperature] = torch.cat([(before[name] - thetas[name].detach()).flatten() for name in thetas])
        assert float(threshold_of(job.model.encoder)) == 0 and plan.scores
    torch.testing.assert_close(moved[0.0], torch.cat([g.flatten() for g in grads.values()]), atol=1e-8, rtol=1e-3)
    torch.testing.assert_close(moved[1.0], moved[0.0] * 0.25, atol=2e-8, rtol=1e-3)


def test_what_a_run_asks_for_reaches_its_plan():
    asked = {"reach": 0.3, "temperature": 3.0, "learning_rate": 0.1, "epochs": 7.0}
    plan = plan_for(Run(**asked))
    assert {name: getattr(plan, name) for name in asked} == asked
    assert plan_for(Run(teacher="a.json")) == TUNED and (TUNED.dropout, TUNED.pooling) == (0, "own")
    assert plan_for(Run()) == replace(TUNED, copies="")  # which only a teacher can label
    assert plan_for(Run(recipe="paper")) == PAPER and (PAPER.dropout, PAPER.pooling) == (-1, "cls")  # the checkpoint's


def test_global_asks_for_one_cut_where_the_recipe_has_shares():
    """An empty one is the recipe's; "global" is none in the plan."""
    found = {
        method: [plan_for(Run(method=method, allocation=asked)).allocation for asked in ("", "global", "equal")]
        for method in ("adaprune", "magnitude", "smp", "edge_popup", "movement")
    }
    assert found == {
        "adaprune": ["", "", "equal"], "magnitude": ["", "", "equal"], "smp": ["scores", "", "equal"],
        "edge_popup": ["equal", "", "equal"], "movement": ["equal", "", "equal"],
    }  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_starts_at_its_sparsity_begins_dense_once_a_reach_is_named(method):
    usual = plan_for(Run(method=method))
    assert usual.fixed is (method in ("edge_popup", "threshold_mask", "bernoulli"))
    if "reach" in METHODS[method].reads:
        assert plan_for(Run(method=method, reach=0.3)) == replace(usual, fixed=False, reach=0.3)


@pytest.mark.parametrize(("task", "epochs"), [("mnli", 2), ("sst2", 3), ("stsb", 5), ("cola", 3)])
def test_the_papers_epochs_are_its_tasks(task, epochs):
    assert plan_for(Run(recipe="paper", task=task)).epochs == epochs
    assert plan_for(Run(recipe="paper", task=task, epochs=1.5)).epochs == 1.5


def test_a_gamma_of_ones_own_is_algorithm_1_under_the_papers_recipe():
    """Without one it is fed back; in other methods ``penalty`` is another thing, and the control stays theirs."""
    assert (PAPER.control, TUNED.control) == ("feedback", "cubic")
    fixed = plan_for(Run(recipe="paper", penalty=3e-5))
    assert (fixed.control, fixed.penalty) == ("penalty", 3e-5)
    assert replace(fixed, control="feedback", penalty=PAPER.penalty) == PAPER
    smp = plan_for(Run(recipe="paper", method="smp", penalty=3.0))
    assert (smp.control, smp.penalty) == ("cubic", 3.0)


@pytest.mark.parametrize("recipe", ["paper", "tuned"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_plan_under_both_recipes(method, recipe):
    """What it says of itself stands in it, and every field that it reads can be asked for."""
    said = METHODS[method].paper if recipe == "paper" else METHODS[method].tuned
    plan = plan_for(Run(method=method, recipe=recipe, teacher="a.json"))
    assert {name: getattr(plan, name) for name in said} == said
    assert replace(plan, **{name: getattr(PAPER if recipe == "paper" else TUNED, name) for name in said}) == (
        PAPER if recipe == "paper" else TUNED
    )
    asked = {
        "initial_theta": "magnitude" if plan.scores else "uniform", "allocation": "equal", "recovery": False,
        "keep": "theta", "rank": 2, "pattern": "units",
    }  # fmt: skip
    for name in SELECTIVE:
        run = Run(method=method, recipe=recipe, **{name: asked.get(name, 0.25)})
        if name not in METHODS[method].reads:
            with pytest.raises(ValueError, match=f"{name}=.* would change nothing in method '{method}'"):
                plan_for(run)
        elif (name, method, recipe) == ("penalty", "adaprune", "tuned"):  # gamma is Algorithm 1's
            with pytest.raises(ValueError, match="penalty=0.25 would change nothing under recipe 'tuned'"):
                plan_for(run)
        else:
            found = plan_for(run)
            assert name in ("recovery", "keep", "rank", "pattern") or getattr(found, name) == getattr(run, name)


@pytest.mark.parametrize("method", ["finetune", "gmp", "imp_finetune", "lora", "ia3", "bitfit"])
def test_where_weights_are_trained_batches_and_dropout_are_fine_tunings(method):
    """Under the tuned recipe; the paper's has its own batch for all."""
    tuned, paper = (plan_for(Run(method=method, recipe=recipe)) for recipe in ("tuned", "paper"))
    assert (tuned.batch_size, tuned.dropout) == (32, -1) and (paper.batch_size, paper.dropout) == (8, -1)
    assert (plan_for(Run(method="smp")).batch_size, plan_for(Run(method="smp")).dropout) == (16, 0)


WRONG = [
    ({"method": "bernoulli", "temperature": 2.0}, r"temperature=2.0 would .* method 'bernoulli': .* \(adaprune, mov"),
    ({"method": "snip", "temperature": 2.0}, r"temperature=2.0 would .* method 'snip': .* \(adaprune, mov"),
    ({"penalty": 1e-7}, "penalty=1e-07 would .* recipe 'tuned', .* is the gamma of Algorithm 1, for recipe='paper'"),
    *(
        ({"method": method, name: value}, f"{name}={value!r} would change nothing in method '{method}'")
        for method in ("probe", "zero_shot", "majority")
        for name, value in (("head_learning_rate", 0.1), ("recovery", False), ("keep", "theta"), ("reach", 0.5))
    ),
    ({"method": "magnitude", "recovery": False}, r"recovery=False would .* 'magnitude': .* \(adaprune, mov"),
    ({"method": "finetune", "keep": "theta"}, "keep='theta' would change nothing in method 'finetune'"),
    *(
        ({"method": method, "allocation": "equal"}, f"allocation='equal' would change nothing in method '{method}'")
        for method in ("features", "finetune", "random", "wanda", "snip", "gmp", "imp", "gmp_finetune", "lora")
    ),
    *(
        ({"method": "features", name: value}, f"{name}={value!r} would change nothing in method 'features'")
        for name, value in (
            ("recovery", False), ("penalty", 3.0), ("reach", 0.5), ("keep", "snapshots"), ("learning_rate", 0.1),
            ("initial_theta", "normal"), ("temperature", 3.0),
        )
    ),
    ({"method": "wanda", "learning_rate": 0.1}, "learning_rate=0.1 would change nothing in method 'wanda'"),
    ({"method": "imp", "reach": 0.5}, r"reach=0.5 .* \(adaprune, gmp, mov.*, gmp_finetune, movement_finetune\)"),
    ({"method": "finetune", "head_learning_rate": 0.1}, "head_learning_rate=0.1 would change nothing in .*'finetune'"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "told"), WRONG)
def test_settings_without_effect_are_refused(fields, told):
    with pytest.raises(ValueError, match=told):
        plan_for(Run(**fields))


def test_a_penalty_is_refused_for_a_method_of_ones_own_that_learns_theta(monkeypatch):
    """As for adaprune: a schedule leaves nothing for gamma to do; under the paper's recipe it is Algorithm 1's."""

    def mine(job):
        return job

    monkeypatch.setitem(METHODS, "mine", Method(mine, line="x", reads=LEARNED))
    with pytest.raises(ValueError, match="penalty=1e-06 would change nothing under recipe 'tuned'"):
        plan_for(Run(method="mine", penalty=1e-6))
    assert plan_for(Run(method="mine", penalty=1e-6, recipe="paper")).control == "penalty"


def test_every_committed_sweep_gives_only_what_its_methods_read():
    runs = [run for path in (ROOT / "sweeps").glob("*.tsv") for run in read_sweep(path)]
    assert len(runs) > 900 and {plan_for(run).epochs > 0 for run in runs} == {True}


def test_every_committed_record_has_the_name_and_the_fields_that_its_run_has_today():
    """Names are made in the order of fields, which must not change; runs of retired fields have theirs of then."""
    found = {path: read_record(path)["run"] for path in ROOT.glob("results/**/*~*.json") if "masks" not in path.parts}
    today = {path: Run(**fields) for path, fields in found.items() if not RETIRED.keys() & fields}
    assert len(today) > 400 and 0 < len(found) - len(today) < 50
    assert [path.stem for path in today] == [run.name for run in today.values()]
    assert {plan_for(run).epochs > 0 for run in today.values()} == {True}
