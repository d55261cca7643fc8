"""Where the scores of each method begin, and the penalty that each score bears: by hand."""

import importlib
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from adaprune.data.tasks import load_task
from adaprune.masks.layers import attach, maskable, threshold_of
from adaprune.methods import METHODS
from adaprune.methods.learning import BERT_BASE, optimiser_for
from adaprune.runs.paths import paths_of, record_path
from adaprune.runs.recipes import plan_for
from adaprune.runs.run import Run
from adaprune.training import Fit, Outcome, prepare
from adaprune.training.encoders import load_encoder

SCORED = [name for name, method in METHODS.items() if method.tuned.get("scores")]
ZEROS = ("movement", "soft_movement", "movement_finetune", "smp")  # whose scores all start at 0
OTHER = ("constant", "normal", "uniform", "relative", "activation", "gradient")


@pytest.fixture
def begun(ten_sentences, tiny_model_dir, tmp_path, monkeypatch):
    """What a method hands to `learn`, and its job: ``begun(method=..., **fields)``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(tiny_model_dir)

    def begin(scope="encoder+embeddings", **fields):
        run = Run(task=ten_sentences.name, model="tiny", max_length=16, scope=scope, **fields)
        job = prepare(run, plan_for(run), paths_of(record_path(run)), load_task(run.task), load_encoder(run.model))
        taken = []
        module = importlib.import_module(run.kind.function.__module__)
        nothing = Outcome(Fit([], 0, 0.0, 0))
        monkeypatch.setattr(module, "learn", lambda job, thetas, **more: taken.append(thetas) or nothing)
        run.kind.function(job)
        return taken[0], job

    return begin


def flat(tensors):
    return np.concatenate([tensor.detach().double().numpy().ravel() for tensor in tensors.values()])


def weights_of(job):
    return {name: module.weight for name, module in maskable(job.model.encoder, job.run.scope).items()}


def test_these_are_the_methods_that_learn_scores():
    assert set(SCORED) == {*ZEROS, "edge_popup", "threshold_mask", "bernoulli"}


# ---------------------------------------------------------------- their own


@pytest.mark.parametrize("method", SCORED)
def test_own_scores_are_of_the_weights_shapes_and_of_the_seed(begun, method):
    (one, job), (two, _), (other, _) = (begun(method=method, seed=seed, sparsity=0.7) for seed in (0, 0, 1))
    assert {name: theta.shape for name, theta in one.items()} == {n: w.shape for n, w in weights_of(job).items()}
    assert all(torch.equal(one[name], two[name]) for name in one)
    if method in ZEROS:
        assert not flat(one).any()
    else:
        assert all((one[name] != other[name]).any() for name in one)


def test_edge_popup_starts_uniformly_within_one_by_root_fan_in(begun):
    scores, _ = begun(method="edge_popup", seed=3)
    generator = torch.Generator().manual_seed(3)
    for name, score in scores.items():
        bound = 1 / math.sqrt(score.shape[1])
        drawn = torch.empty(score.shape).uniform_(-bound, bound, generator=generator)
        torch.testing.assert_close(score, drawn.abs(), msg=name)


def test_threshold_mask_starts_at_the_asked_sparsity_between_its_bounds(begun):
    """Relative to tau = 0.01: U(-0.03, 0.03 (1 - q) / q), of which exactly round((1 - q) n) exceed 0."""
    scores, _ = begun(method="threshold_mask", sparsity=0.7)
    values = flat(scores)
    assert (values > 0).sum() == round(0.3 * len(values))
    assert -0.03 <= values.min() < -0.029 and 0.0125 < values.max() <= 0.03 * 0.3 / 0.7
    assert values[values > 0].mean() == pytest.approx(0.03 * 0.3 / 0.7 / 2, rel=0.05)
    assert values[values <= 0].mean() == pytest.approx(-0.015, rel=0.05)


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_bernoulli_starts_at_the_logit_of_the_density(begun, sparsity):
    values = flat(begun(method="bernoulli", sparsity=sparsity)[0])
    assert values.mean() == pytest.approx(math.log((1 - sparsity) / sparsity), abs=1e-3)
    assert values.std() == pytest.approx(0.01, rel=0.05)


# ---------------------------------------------------------------- from the weights' magnitude


@pytest.mark.parametrize("fields", [{}, {"learning_rate": 7e-3}, {"recipe": "paper"}], ids=str)
@pytest.mark.parametrize("method", ZEROS)
def test_scores_that_start_at_0_take_the_magnitude_scaled_to_their_methods_rate(begun, method, fields):
    """0.01 suits a rate of 1e-4, so movement's 1e-2 starts at a mean of 1 and smp's 2e-2 at 2; a run's own rate, which
    may be tuned, leaves the start alone."""
    scores, job = begun(method=method, initial_theta="magnitude", **fields)
    size = np.abs(flat(weights_of(job)))
    mean = 2.0 if method == "smp" else 1.0
    np.testing.assert_allclose(flat(scores), size * mean / size.mean(), rtol=1e-5)
    assert job.plan.learning_rate == fields.get("learning_rate", mean / 100)


@pytest.mark.parametrize("method", sorted(set(SCORED) - set(ZEROS)))
def test_other_scores_are_dealt_out_in_the_order_of_the_weights_magnitude(begun, method):
    own, _ = begun(method=method, sparsity=0.7, seed=2)
    scores, job = begun(method=method, sparsity=0.7, seed=2, initial_theta="magnitude")
    size, before, after = np.abs(flat(weights_of(job))), flat(own), flat(scores)
    assert np.array_equal(np.sort(after), np.sort(before)) and not np.array_equal(after, before)
    order = np.argsort(size, kind="stable")
    assert (np.diff(after[order])[np.diff(size[order]) > 0] >= 0).all()
    top = np.argsort(-after, kind="stable")[: len(size) // 3]  # so the first cut is that of magnitude pruning
    assert size[top].min() >= np.delete(size, top).max()


@pytest.mark.parametrize("kind", OTHER)
@pytest.mark.parametrize("method", SCORED)
def test_any_other_start_is_refused_in_a_sentence(begun, method, kind):
    said = rf"^initial_theta of {method} is '' \(its own start\) or 'magnitude', got '{kind}'$"
    with pytest.raises(ValueError, match=said):
        begun(method=method, initial_theta=kind)


def test_magnitude_of_weights_that_are_all_0_is_refused(begun, monkeypatch):
    real = load_encoder

    def emptied(name):
        encoder = real(name)
        for module in maskable(encoder.model, "encoder").values():
            nn.init.zeros_(module.weight)
        return encoder

    monkeypatch.setitem(globals(), "load_encoder", emptied)
    with pytest.raises(ValueError, match="a start from magnitudes needs weights that are not all 0"):
        begun(method="smp", initial_theta="magnitude", scope="encoder")


# ---------------------------------------------------------------- lambda


class Toy(nn.Module):
    """Two linear layers of unlike size that count as Transformer layers, and a table."""

    def __init__(self):
        super().__init__()
        self.layer = nn.ModuleList(nn.Linear(i, o, bias=False, dtype=torch.float64) for i, o in ((3, 2), (7, 5)))
        self.table = nn.Embedding(4, 3, dtype=torch.float64)
        self.requires_grad_(False)

    def get_input_embeddings(self):
        return self.table


def test_berts_weights_are_counted_right():
    assert BERT_BASE == 12 * (4 * 768 * 768 + 2 * 768 * 3072)


@pytest.mark.parametrize("method", [name for name in SCORED if name != "bernoulli"])
def test_each_score_bears_lambda_by_berts_weights_whatever_its_matrix(method):
    """Without a gradient an SGD step is  -rate lambda / 84,934,656 (1 - (1 - t / T)^3) sigmoid'(s),  at t = 1 of 4
    0.578 of lambda and from t = 4 on all of it."""
    toy, lam, rate = Toy(), 8.0e6, 0.5
    plan = plan_for(Run(method=method, penalty=lam, learning_rate=rate))
    plan = type(plan)(**{**vars(plan), "step_rule": "sgd"})
    start = {"layer.0.weight": 0.0, "layer.1.weight": math.log(3), "table.weight": -math.log(3)}
    modules = maskable(toy, "encoder+embeddings")
    thetas = attach(toy, {name: torch.full_like(modules[name].weight, value) for name, value in start.items()},
                    per_matrix=bool(plan.allocation))  # fmt: skip
    threshold_of(toy).fill_(0.3)  # the penalty is of the scores themselves, not of their distance to the threshold
    optimiser = optimiser_for(SimpleNamespace(encoder=toy, head=nn.Linear(1, 1)), thetas, plan, ramp=4)
    by_hand = {name: value for name, value in start.items()}
    for share in (0.578125, 0.875, 0.984375, 1.0, 1.0):
        for theta in thetas.values():
            theta.grad = torch.zeros_like(theta)
        optimiser.step()
        for name, theta in thetas.items():
            soft = 1 / (1 + math.exp(-by_hand[name]))
            by_hand[name] -= rate * share * lam / 84_934_656 * soft * (1 - soft)
            torch.testing.assert_close(theta.detach(), torch.full_like(theta, by_hand[name]), msg=name)


@pytest.mark.parametrize("penalty", [0.0, 50.0])
@pytest.mark.parametrize("method", SCORED)
def test_lambda_is_the_runs_or_the_methods(method, penalty):
    plan, own = plan_for(Run(method=method, penalty=penalty)), 400.0 if method in ("smp", "soft_movement") else 0.0
    toy = Toy()
    thetas = attach(toy, {"layer.0.weight": torch.zeros(2, 3).double()}, per_matrix=bool(plan.allocation))
    optimiser = optimiser_for(SimpleNamespace(encoder=toy, head=nn.Linear(1, 1)), thetas, plan, ramp=4)
    masked = [group for group in optimiser.param_groups if group["masked"]]
    assert [group["shrink"] for group in masked] == [pytest.approx((penalty or own) / 84_934_656)]
    assert all(not group["penalty"] for group in optimiser.param_groups)  # gamma is adaprune's


# ---------------------------------------------------------------- whole units


def test_units_start_by_the_norm_of_their_weights(begun):
    """In plain loops: 0.01 times a unit's norm, by the mean over all units of its kind."""
    thetas, job = begun(method="adaprune", pattern="units", scope="encoder")
    weights = {name: weight.detach().double() for name, weight in weights_of(job).items()}
    norms = {"heads": [], "neurons": []}
    for number in range(2):
        own = {name: weight for name, weight in weights.items() if f"layer.{number}." in name}
        parts = {part: next(w for n, w in own.items() if f"{part}.weight" in n) for part in ("query", "key", "value")}
        out = next(w for n, w in own.items() if "attention.output" in n)
        first, second = (next(w for n, w in own.items() if n.endswith(f"{number}.{end}")) for end in (
            "intermediate.dense.weight", "output.dense.weight"))  # fmt: skip
        for head in range(2):
            rows = slice(head * 8, head * 8 + 8)
            squares = [float((part[rows] ** 2).sum()) for part in parts.values()] + [float((out[:, rows] ** 2).sum())]
            norms["heads"].append(math.sqrt(sum(squares)))
        norms["neurons"] += [
            math.sqrt(float((first[j] ** 2).sum()) + float((second[:, j] ** 2).sum())) for j in range(len(first))
        ]
    found = {"heads": [n for n in thetas if "attention" in n], "neurons": [n for n in thetas if "attention" not in n]}
    for kind, own in norms.items():
        expected = [0.01 * norm / (sum(own) / len(own)) for norm in own]
        assert np.concatenate([thetas[name].numpy() for name in found[kind]]).tolist() == pytest.approx(expected)


def test_units_start_in_the_order_of_summed_sensitivities(begun, monkeypatch):
    scores = {}

    def made_up(job):
        generator = torch.Generator().manual_seed(7)
        scores.update({n: torch.rand(w.shape, generator=generator) for n, w in weights_of(job).items()})
        return scores, Fit([], 0, 0.0, 0)

    module = importlib.import_module("adaprune.methods.adaprune")
    monkeypatch.setattr(module, "sensitivities_with_head", made_up)
    values, _ = begun(method="adaprune", pattern="units", scope="encoder")
    thetas, _ = begun(method="adaprune", pattern="units", scope="encoder", initial_theta="gradient")
    heads = [name for name in thetas if "attention" in name]
    for kind in (heads, [name for name in thetas if name not in heads]):
        assert sorted(flat({n: thetas[n] for n in kind})) == pytest.approx(sorted(flat({n: values[n] for n in kind})))
    summed = {}
    for name in heads:
        stem = name.removesuffix("output.dense.weight")
        made = [scores[f"{stem}self.{part}.weight"].view(2, 8, 16).sum((1, 2)) for part in ("query", "key", "value")]
        summed[name] = sum(made) + scores[name].view(16, 2, 8).sum((0, 2))
    assert flat(summed).argsort().tolist() == flat({name: thetas[name] for name in heads}).argsort().tolist()


@pytest.mark.parametrize("fields", [{"scope": "encoder+embeddings"}, {"allocation": "equal"}, {"keep": "theta"}])
def test_what_units_cannot_have_is_refused(fields):
    with pytest.raises(ValueError, match=f"{next(iter(fields))}=.* is for single weights"):
        plan_for(Run(pattern="units", **fields))
    with pytest.raises(ValueError, match="pattern='units' would change nothing in method 'magnitude'"):
        plan_for(Run(pattern="units", method="magnitude"))
