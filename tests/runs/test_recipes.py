"""What the recipe study tries: starts of theta from sentences, its average, a warm head, dropout, another slope."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import adaprune
from adaprune.adapt import prepare
from adaprune.data.tasks import load_task
from adaprune.masks.cuts import keep_top
from adaprune.masks.layers import attach, maskable, threshold_of
from adaprune.masks.optim import AdaPrune
from adaprune.masks.schedules import averaged, sparsity_of
from adaprune.masks.theta import SCORED, initial_theta, theta_in_order
from adaprune.methods import oneshot
from adaprune.methods.learning import optimiser_for
from adaprune.report.sweeps import read_sweep
from adaprune.runs.recipes import TUNED, plan_for
from adaprune.runs.run import Run
from adaprune.training.encoders import load_encoder, set_dropout


@pytest.fixture
def ask(ten_sentences, tiny_model_dir, tmp_path, monkeypatch):
    """Makes a small run, by short paths: they are part of its name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(tiny_model_dir)
    small = {"max_length": 16, "batch_size": 4, "epochs": 2, "results_dir": "out", "checkpoint_steps": 0}
    return lambda **fields: Run(**{"task": ten_sentences.name, "model": "tiny", **small, **fields})


def job_of(run):
    return prepare(run, load_task(run.task), load_encoder(run.model))


# ---------------------------------------------------------------- where theta starts


def test_theta_takes_the_magnitudes_in_the_order_of_the_scores():
    """By numpy: the sorted values are those of the magnitude start, and the first cut is that of the scores."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in {"a": (20, 10), "b": (5, 30)}.items()}
    scores = {name: torch.rand(w.shape, generator=generator).pow(9).round(decimals=2) for name, w in weights.items()}
    thetas = theta_in_order(scores, weights)  # many scores are equal
    flat, by_magnitude = (
        np.concatenate([t.numpy().ravel() for t in found.values()])
        for found in (thetas, initial_theta(weights, "magnitude", generator))
    )
    assert np.array_equal(np.sort(flat), np.sort(by_magnitude))
    ranking = np.concatenate([s.numpy().ravel() for s in scores.values()])
    assert np.all(np.diff(flat[np.argsort(-ranking, kind="stable")]) <= 0)
    for density in (0.1, 0.5, 0.9):
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


# ---------------------------------------------------------------- theta's average


@pytest.mark.parametrize("rule", ["adam", "adafactor", "sgd"])
def test_the_average_is_the_one_by_hand_and_survives_a_checkpoint(rule):
    theta = torch.nn.Parameter(torch.tensor([[0.1, -0.2], [0.3, torch.inf]]))
    group = {"params": [theta], "masked": True, "threshold": torch.zeros((), dtype=torch.float64)}
    optimiser = AdaPrune([group], lr=0.1, rule=rule, average=0.75)
    expected = theta.detach().clone()
    for _ in range(4):
        theta.grad = torch.rand(2, 2)
        optimiser.step()
        expected = 0.75 * expected + 0.25 * theta.detach()
    torch.testing.assert_close(optimiser.state[theta]["average"], expected)
    again = AdaPrune([{**group, "params": [theta]}], rule=rule, average=0.75)
    again.load_state_dict(optimiser.state_dict())
    torch.testing.assert_close(again.state[theta]["average"], expected)


def test_rows_in_a_sparse_gradient_are_averaged_alone():
    theta = torch.nn.Parameter(torch.ones(3, 2))
    group = {"params": [theta], "masked": True, "threshold": torch.zeros((), dtype=torch.float64)}
    optimiser = AdaPrune([group], lr=1.0, rule="sgd", surrogate="identity", average=0.5)
    theta.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 2), (3, 2), check_invariants=False)
    optimiser.step()
    assert optimiser.state[theta]["average"].tolist() == [[1, 1], [0.5, 0.5], [1, 1]]
    with pytest.raises(ValueError, match=r"average must lie in \[0, 1\), got 1"):
        AdaPrune([group], average=1)


def test_within_averaged_theta_is_its_average_cut_as_sharply():
    thetas = [torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([8.0, 7.0, 6.0, 5.0])]
    means = [torch.tensor([1.0, 2.0, 3.0, 40.0]), torch.tensor([50.0, 60.0, 70.0, 80.0])]
    for threshold in (torch.tensor(2.0).double(), torch.tensor([2.0, 7.0]).double()):
        before, had = threshold.clone(), sparsity_of(thetas, threshold)
        with averaged(thetas, means, threshold):
            assert thetas[0].tolist() == [1, 2, 3, 40] and sparsity_of(thetas, threshold) == had
        assert thetas[0].tolist() == [4, 3, 2, 1] and means[0].tolist() == [1, 2, 3, 40]
        assert torch.equal(threshold, before)
    with averaged(thetas, [], before):
        assert thetas[0].tolist() == [4, 3, 2, 1]


def test_the_mask_of_a_run_is_cut_from_the_average(ask):
    """A decay near 1 leaves the average where theta started: the mask is that of magnitude pruning."""
    fields = {"sparsity": 0.4, "learning_rate": 0.01}
    still = adaprune.adapt(ask(**fields, theta_average=1 - 1e-12))
    moved = adaprune.adapt(ask(**fields))
    modules = maskable(load_encoder("tiny").model)
    expected = keep_top({name: module.weight.abs() for name, module in modules.items()}, 0.6)
    found = [adaprune.load_mask(f"out/masks/{Run(**record['run']).name}.safetensors") for record in (still, moved)]
    same = [all(torch.equal(mask.masks[name], expected[name]) for name in expected) for mask in found]
    assert same == [True, False]


# ---------------------------------------------------------------- the head, dropout, the slope


def test_a_warm_head_costs_its_epochs_and_the_mask_starts_after_them(ask):
    cold, warm = adaprune.adapt(ask()), adaprune.adapt(ask(head_warmup=1.0))
    assert warm["cost"]["steps"] == cold["cost"]["steps"] * 3 // 2  # one epoch beside two
    assert min(point["step"] for point in warm["curve"] if "sparsity" in point) > cold["cost"]["steps"] // 2
    heads = [adaprune.load_mask(f"out/masks/{Run(**record['run']).name}.safetensors").head for record in (cold, warm)]
    assert not torch.equal(heads[0]["hidden.weight"], heads[1]["hidden.weight"])


def test_dropout_is_set_in_hidden_layers_only(ask):
    job = job_of(ask(dropout=0.3))
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
    """With SGD: theta moves by lr * w dL/dw, sigmoid at t_s = 1 by a quarter of that and less."""
    moved = {}
    for surrogate in ("identity", "sigmoid"):
        plan = plan_for(ask(surrogate=surrogate, step_rule="sgd", learning_rate=1.0, dropout=0.0))
        job = job_of(ask(dropout=0.0))
        weights = {name: module.weight for name, module in maskable(job.model.encoder).items()}
        thetas = attach(job.model.encoder, initial_theta(weights, "constant", torch.Generator()))
        before = {name: theta.detach().clone() for name, theta in thetas.items()}
        optimiser = optimiser_for(job.model, thetas, plan)
        train = job.sentences.splits["train"]
        job.model.eval()(**job.sentences.collate([train[i] for i in range(4)])).loss.backward()
        grads = {name: theta.grad.clone() for name, theta in thetas.items()}
        optimiser.step()
        moved[surrogate] = torch.cat([(before[name] - thetas[name].detach()).flatten() for name in thetas])
        assert float(threshold_of(job.model.encoder)) == 0 and not plan.scores
    torch.testing.assert_close(
        moved["identity"], torch.cat([g.flatten() for g in grads.values()]), atol=1e-8, rtol=1e-3
    )
    torch.testing.assert_close(moved["sigmoid"], moved["identity"] * 0.25, atol=2e-8, rtol=1e-3)


def test_what_a_run_asks_for_reaches_its_plan():
    asked = {"reach": 0.3, "theta_average": 0.9, "head_warmup": 0.5, "dropout": 0.2, "surrogate": "identity"}
    plan = plan_for(Run(**asked))
    assert {name: getattr(plan, name) for name in asked} == asked
    assert plan_for(Run()) == TUNED and TUNED.dropout == 0
    assert plan_for(Run(recipe="paper")).dropout == -1  # the checkpoint's


@pytest.mark.parametrize("method", ["finetune", "gmp", "imp", "gmp_finetune", "imp_finetune", "lora"])
def test_where_weights_are_trained_batches_and_dropout_are_fine_tunings(method):
    """Under the tuned recipe; the paper's has its own batch for all."""
    tuned, paper = (plan_for(Run(method=method, recipe=recipe)) for recipe in ("tuned", "paper"))
    assert (tuned.batch_size, tuned.dropout) == (32, -1) and (paper.batch_size, paper.dropout) == (8, -1)
    assert (plan_for(Run(method="smp")).batch_size, plan_for(Run(method="smp")).dropout) == (16, 0)


WRONG = [
    ({"method": "smp", "surrogate": "identity"}, r"surrogate='identity' would .* in method 'smp': .* \(adaprune\)"),
    ({"method": "magnitude", "theta_average": 0.9}, r"theta_average=0.9 would .* 'magnitude': .* \(adaprune, mov"),
    ({"method": "finetune", "keep_theta": True}, "keep_theta=True would change nothing in method 'finetune'"),
    *(
        ({"method": method, "allocation": "equal"}, f"allocation='equal' would change nothing in method '{method}'")
        for method in ("features", "finetune", "random", "wanda", "snip", "gmp", "imp", "gmp_finetune", "lora")
    ),
    *(
        ({"method": "features", name: value}, f"{name}={value!r} would change nothing in method 'features'")
        for name, value in (
            ("recovery", False), ("penalty", 3.0), ("minimum_kept", 5), ("imp_rule", "original"), ("head_warmup", 1.0),
            ("step_rule", "sgd"), ("reach", 0.5), ("snapshots", 2), ("prune_unseen", True), ("learning_rate", 0.1),
            ("dropout", 0.1),
        )
    ),
    ({"method": "wanda", "dropout": 0.1}, "dropout=0.1 would change nothing in method 'wanda'"),
    ({"method": "imp", "reach": 0.5}, r"reach=0.5 .* \(adaprune, .*, gmp, gmp_finetune\)"),
    ({"method": "gmp", "imp_rule": "original"}, r"imp_rule='original' .* \(imp, imp_finetune\)"),
    ({"method": "finetune", "head_learning_rate": 0.1}, "head_learning_rate=0.1 would change nothing in .*'finetune'"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "told"), WRONG)
def test_settings_without_effect_are_refused(fields, told):
    with pytest.raises(ValueError, match=told):
        plan_for(Run(**fields))


def test_every_committed_run_gives_only_what_its_method_reads():
    root = Path(__file__).parents[2]
    runs = [run for path in root.glob("sweeps/*.tsv") for run in read_sweep(path)]
    records = (json.loads(path.read_text(encoding="utf-8")) for path in root.glob("results/**/*~*.json"))
    runs += [Run(**record["run"]) for record in records if "run" in record]
    assert len(runs) > 1000 and {plan_for(run).epochs > 0 for run in runs} == {True}
