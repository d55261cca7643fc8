"""The methods that learn scores: each one's arithmetic by another route, and each through adapt()."""

import importlib
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import adaprune
from adaprune.deploy.mask_file import load_mask
from adaprune.masks.allocation import counts, proportional, shares
from adaprune.masks.counting import component_of
from adaprune.masks.cuts import keep_each
from adaprune.masks.layers import attach, maskable, thetas_of, threshold_of
from adaprune.masks.schedules import SparsityControl
from adaprune.methods.bernoulli import attach_sampled
from adaprune.methods.learning import optimiser_for
from adaprune.methods.scores import Scores
from adaprune.methods.threshold_mask import uniform_scores
from adaprune.runs.paths import paths_of, record_path
from adaprune.runs.recipes import plan_for
from adaprune.runs.run import METHODS, Run
from adaprune.training.encoders import load_encoder

HOUSE = importlib.import_module("adaprune.adapt")  # the name adaprune.adapt is the function's
SCORED = ("movement", "soft_movement", "movement_finetune", "smp", "edge_popup", "threshold_mask", "bernoulli")


class Toy(nn.Module):
    """Linear layers that count as Transformer layers, of the given shapes (outputs, inputs)."""

    def __init__(self, *shapes: tuple[int, int], dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.ModuleList(nn.Linear(inputs, outputs, dtype=dtype) for outputs, inputs in shapes)
        self.table = nn.Embedding(2, 2)
        self.requires_grad_(False)

    def get_input_embeddings(self):
        return self.table


def zeros(toy: Toy) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(module.weight) for name, module in maskable(toy).items()}


def with_head(toy: Toy) -> SimpleNamespace:
    return SimpleNamespace(encoder=toy, head=nn.Linear(1, 1))


# ---------------------------------------------------------------- movement


def test_movement_scores_after_three_steps_by_hand():
    """S = -lr sum dL/dW' W with dL/dW' from autograd, and a mask that cuts the lowest by sorting."""
    toy, generator = Toy((2, 3)), torch.Generator().manual_seed(1)
    plan, layer = plan_for(Run(method="movement")), toy.layer[0]
    thetas = attach(toy, zeros(toy), per_matrix=True)
    allocate = lambda density: [density]  # noqa: E731
    control = SparsityControl("cubic", 0.5, end=3, initial=0.0, allocate=allocate)
    control.update(0, thetas.values(), threshold_of(toy))
    optimiser = optimiser_for(with_head(toy), thetas, plan)
    weight, scores, kept = layer.weight.clone(), torch.zeros(2, 3, dtype=torch.float64), torch.ones(6)
    for step in (1, 2, 3):
        x, y = (torch.randn(4, width, dtype=torch.float64, generator=generator) for width in (3, 2))
        product = (weight * kept.view(2, 3)).requires_grad_(True)
        ((x @ product.t() + layer.bias - y) ** 2).sum().backward()
        scores = scores - 1e-2 * product.grad * weight
        cut = round((0.5 - 0.5 * (1 - step / 3) ** 3) * 6)
        kept = torch.ones(6, dtype=torch.float64)
        kept[scores.flatten().argsort()[:cut]] = 0

        ((layer(x) - y) ** 2).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        control.update(step, thetas.values(), threshold_of(toy))
        torch.testing.assert_close(layer.theta.detach(), scores)
        assert torch.equal((layer.theta > layer.threshold).flatten(), kept.bool())
    assert kept.sum() == 3


def test_trained_weights_get_the_gradient_of_the_masked_product():
    toy = Toy((2, 3))
    layer, x = toy.layer[0], torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    theta = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]], dtype=torch.float64)
    attach(toy, {"layer.0.weight": theta})
    frozen = layer(x)
    (frozen**2).sum().backward()
    alone, layer.theta.grad = layer.theta.grad, None
    toy.requires_grad_(True)
    assert torch.equal(layer(x), frozen)
    (layer(x) ** 2).sum().backward()
    mask = (theta > 0).double()
    upstream = 2 * (x @ (layer.weight * mask).t() + layer.bias)
    torch.testing.assert_close(layer.weight.grad, upstream.t() @ x * mask)
    torch.testing.assert_close(layer.theta.grad, upstream.t() @ x * layer.weight)
    torch.testing.assert_close(layer.theta.grad, alone)
    torch.testing.assert_close(layer.bias.grad, upstream.sum(0))


def test_trained_embeddings_get_the_gradient_of_the_masked_rows():
    toy = Toy((2, 3))
    attach(toy, {"table.weight": torch.tensor([[1.0, -1.0], [1.0, 1.0]])})
    toy.requires_grad_(True)
    assert toy.table(torch.tensor([0]))[0, 1] == 0
    toy.table(torch.tensor([0, 0])).sum().backward()
    assert toy.table.weight.grad.tolist() == [[2.0, 0.0], [0.0, 0.0]]
    torch.testing.assert_close(toy.table.theta.grad, torch.stack([2 * toy.table.weight[0], torch.zeros(2)]))


# ---------------------------------------------------------------- smp


@pytest.mark.parametrize(("method", "rate"), [("smp", 2e-2), ("soft_movement", 1e-2)])
def test_the_penalty_is_that_of_autograd(method, rate):
    """One SGD step on lambda_1 / 84,934,656 (sum sigmoid(S_1) + sum sigmoid(S_2)) alone, with lambda_1 on a ramp of 4:

    of BERT-base, with as many weights, lambda_1 times the mean. (lambda is large here, or the step would be no step.)
    """
    toy = Toy((2, 3), (5, 4))
    thetas = attach(toy, {name: torch.randn_like(theta) for name, theta in zeros(toy).items()}, per_matrix=True)
    leaves = [theta.detach().clone().requires_grad_(True) for theta in thetas.values()]
    (1e9 / 84_934_656 * (1 - (3 / 4) ** 3) * sum(leaf.sigmoid().sum() for leaf in leaves)).backward()
    expected = [leaf.detach() - rate * leaf.grad for leaf in leaves]
    assert plan_for(Run(method=method)).penalty == 400
    plan = replace(plan_for(Run(method=method, penalty=1e9)), step_rule="sgd")
    optimiser = optimiser_for(with_head(toy), thetas, plan, ramp=4)
    for theta in thetas.values():
        theta.grad = torch.zeros_like(theta)
    optimiser.step()
    for theta, value in zip(thetas.values(), expected, strict=True):
        torch.testing.assert_close(theta.detach(), value)


def scored(**strengths: float) -> dict[str, torch.Tensor]:
    """query0=0.9 -> a 10 x 10 theta for layer 0's query matrix, sigmoid of which is 0.9 throughout."""
    return {
        f"encoder.layer.{name[-1]}.{name[:-1]}.weight": torch.full((10, 10), value, dtype=torch.float64).logit()
        for name, value in strengths.items()
    }


def test_shares_by_scores_by_hand():
    thetas = scored(query0=0.9, key0=0.2, query1=0.3, key1=0.2)
    assert shares(thetas, 0.5, "scores") == pytest.approx([0.75, 0.5, 0.25, 0.5])  # 2 * 0.5 * 0.9 / 1.2 ...
    assert shares(thetas, 0.8, "scores") == pytest.approx([1.0, 0.8, 0.6, 0.8])  # not 1.2 and 0.4
    assert shares(thetas, 0.8, "equal") == [0.8] * 4
    kept = counts(thetas, 0.8, "scores")
    assert list(kept.values()) == [100, 80, 60, 80]


def test_redistribution_goes_on_until_no_share_exceeds_one():
    # 3 * 0.75 * (8, 3, 1) / 12 = (1.5, 0.56, 0.19); the rest, 1.25, as 3 : 1 = (0.94, 0.31)
    assert proportional([8, 3, 1], [10] * 3, 0.75, [1, 1, 1]) == pytest.approx([1, 0.9375, 0.3125])
    # 3 * 0.9 / 12: (1.8, 0.675, 0.225); the rest, 1.7, as 3 : 1 = (1.275, 0.425); the rest, 0.7
    assert proportional([8, 3, 1], [10] * 3, 0.9, [1, 1, 1]) == pytest.approx([1, 1, 0.7])
    assert proportional([8, 3, 1], [10] * 3, 1.0, [1, 1, 1]) == pytest.approx([1, 1, 1])
    assert proportional([1, 1], [10, 30], 0.5, [1, 1]) == pytest.approx([0.5, 0.5])
    assert proportional([3, 1], [10, 30], 0.5, [1, 1]) == pytest.approx([1, 1 / 3])
    assert proportional([8, 3, 1], [10] * 3, 0.5, [0.5, 1, 1]) == pytest.approx([0.5, 0.75, 0.25])  # half is dead


def test_what_is_pruned_for_good_is_not_counted_on():
    theta = torch.arange(10.0)
    thetas = {"layer.0.query.weight": theta.masked_fill(theta < 8, -torch.inf), "layer.1.query.weight": theta - 20}
    assert list(counts(thetas, 0.5, "scores").values()) == [2, 8]
    gone = {**thetas, "layer.1.query.weight": torch.full_like(theta, -torch.inf)}
    assert list(counts(gone, 0.5, "equal").values()) == [5, 5]  # too few are left: some come back


@pytest.mark.parametrize("kind", ["equal", "scores"])
def test_counts_add_up_to_exactly_k(kind):
    generator = torch.Generator().manual_seed(0)
    thetas = {
        f"encoder.layer.{layer}.{part}.weight": 3 * torch.randn(size, 7, generator=generator)
        for layer in range(3)
        for part, size in (("query", 5), ("intermediate.dense", 11))
    }
    sizes = [theta.numel() for theta in thetas.values()]
    for density in [*torch.linspace(0.06, 1, 48).tolist(), 1 / 3, 0.999]:
        kept = counts(thetas, density, kind)
        assert sum(kept.values()) == round(density * sum(sizes))
        assert all(0 <= number <= size for number, size in zip(kept.values(), sizes, strict=True))
        masks = keep_each(thetas, kept)
        assert {name: int(mask.sum()) for name, mask in masks.items()} == kept
        assert all(thetas[n][m].min() >= thetas[n][~m].max() for n, m in masks.items() if 0 < kept[n] < m.numel())


def test_an_unknown_allocation_is_named():
    with pytest.raises(ValueError, match="allocation must be one of equal, scores, got 'fair'"):
        shares(scored(query0=0.5), 0.5, "fair")


# ---------------------------------------------------------------- edge_popup


@pytest.mark.parametrize("rule", ["adam", "sgd"])
def test_reflected_theta_is_the_absolute_value_of_the_scores(rule):
    """torch's own optimiser on s, whose gradient is that of the mask times sign(s)."""
    generator = torch.Generator().manual_seed(0)
    scores = (torch.randn(6, 5, dtype=torch.float64, generator=generator) / 100).requires_grad_(True)
    theta = nn.Parameter(scores.detach().abs())
    theirs = torch.optim.Adam([scores], lr=1e-3, eps=1e-12) if rule == "adam" else torch.optim.SGD([scores], lr=1e-3)
    zero = torch.zeros((), dtype=torch.float64)
    group = {"params": [theta], "masked": True, "threshold": zero, "surrogate": "identity", "reflect": True}
    ours, before = Scores([group], lr=1e-3, rule=rule), scores.detach().sign()
    for _ in range(60):
        grad = torch.randn(6, 5, dtype=torch.float64, generator=generator) + 1
        scores.grad, theta.grad = grad * scores.detach().sign(), grad.clone()
        theirs.step()
        ours.step()
    torch.testing.assert_close(theta.detach(), scores.detach().abs())
    assert (scores.detach().sign() != before).any()  # some went through 0


def test_reflected_theta_that_was_pruned_for_good_stays_pruned():
    theta = nn.Parameter(torch.tensor([-torch.inf, 1e-3, torch.inf]))
    zero = torch.zeros(())
    group = {"params": [theta], "masked": True, "threshold": zero, "surrogate": "identity", "reflect": True}
    optimiser = Scores([group], lr=1e-2)
    for _ in range(2):
        theta.grad = torch.ones(3)
        optimiser.step()
    assert theta[0] == -torch.inf and 0 < theta[1] < 1 and theta[2] == torch.inf


# ---------------------------------------------------------------- threshold_mask


@pytest.mark.parametrize("q", [0.0, 0.1, 0.5, 0.75, 0.999])
def test_exactly_q_of_the_scores_start_masked(q):
    shapes = {"a": torch.Size([30, 40]), "b": torch.Size([8, 100])}
    drawn = uniform_scores(shapes, q, torch.Generator().manual_seed(0))
    flat = torch.cat([part.flatten() for part in drawn.values()])
    assert {name: part.shape for name, part in drawn.items()} == shapes
    assert int((flat > 0).sum()) == round((1 - q) * 2000)
    if 0 < q < 0.9:  # tau = 0.01, a = 0.02: U(-a, (a + tau) / q - a), read from tau
        low, high = -0.03, 0.03 / q - 0.03
        assert low <= flat.min() < low + 1e-3 and high - 1e-2 < flat.max() <= high
        uniform = (flat.sort().values - low) / (high - low)
        assert (uniform - torch.linspace(0, 1, 2000)).abs().max() < 0.03


# ---------------------------------------------------------------- bernoulli


def test_a_sampled_mask_has_the_expected_mean_and_is_hard_in_evaluation():
    toy = Toy((2, 3))
    layer, theta = toy.layer[0], torch.tensor([[-2.0, -1.0, 0.0], [0.5, 1.0, 3.0]], dtype=torch.float64)
    attach_sampled(toy, {"layer.0.weight": theta})
    eye, draws = torch.eye(3, dtype=torch.float64), 4000
    with torch.no_grad():
        drawn = torch.stack([(layer(eye) - layer.bias).t() / layer.weight for _ in range(draws)]).round()
        assert set(drawn.unique().tolist()) == {0, 1}
        p = 1 / (1 + torch.exp(-theta))
        assert ((drawn.mean(0) - p).abs() < 5 * (p * (1 - p) / draws).sqrt()).all()
        threshold_of(toy).fill_(0.7)
        toy.eval()
        assert torch.equal(layer(eye) - layer.bias, (layer.weight * (theta > 0.7)).t())


def test_a_sampled_masks_gradient_is_at_the_drawn_mask_with_the_slope_at_theta():
    toy = Toy((2, 3))
    layer, x = toy.layer[0], torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    thetas = attach_sampled(toy, {"layer.0.weight": torch.randn(2, 3, dtype=torch.float64)})
    threshold_of(toy).fill_(9.0)  # of evaluation only
    theta, output = layer.theta.detach().clone(), layer(x)
    (output**2).sum().backward()
    grad = (2 * output).t() @ x * layer.weight
    torch.testing.assert_close(layer.theta.grad, grad.detach())
    plan = replace(plan_for(Run(method="bernoulli")), step_rule="sgd", learning_rate=0.1)
    optimiser_for(with_head(toy), thetas, plan).step()
    slope = torch.exp(-theta) / (1 + torch.exp(-theta)) ** 2
    torch.testing.assert_close(layer.theta.detach(), theta - 0.1 * grad.detach() * slope)


# ---------------------------------------------------------------- the threshold of each matrix


def test_each_matrix_is_cut_at_its_own_threshold():
    toy = Toy((20, 30), (10, 15))
    generator = torch.Generator().manual_seed(0)
    start = {name: torch.randn(theta.shape, generator=generator) for name, theta in zeros(toy).items()}
    start["layer.1.weight"] += 100
    thetas, levels = attach(toy, start, per_matrix=True), threshold_of(toy)
    allocate = lambda density: [0.5 * density, 1 - 0.5 * density]  # noqa: E731
    control = SparsityControl("cubic", 0.6, 10, initial=0.6, allocate=allocate)
    control.update(0, thetas.values(), levels)
    kept = [int((layer.theta > layer.threshold).sum()) for layer in toy.layer]
    assert kept == [round(0.2 * 600), round(0.8 * 150)]
    assert [float(layer.threshold) for layer in toy.layer] == levels.tolist()
    assert control.sparsity(thetas.values(), levels) == pytest.approx(1 - 240 / 750)
    assert list(thetas_of(toy)) == ["layer.0.weight", "layer.1.weight"]


def test_thresholds_per_matrix_follow_the_cubic_control_only():
    with pytest.raises(ValueError, match=r"per matrix need control 'cubic' \(recipe='tuned'\), this is 'feedback'"):
        SparsityControl("feedback", 0.5, 10, allocate=partial(shares, kind="equal"))


# ---------------------------------------------------------------- through adapt()


@pytest.fixture
def ask(ten_sentences, tiny_model_dir, tmp_path, monkeypatch):
    """Makes a small run, by short paths: they are part of its name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(tiny_model_dir)
    small = {"max_length": 16, "batch_size": 2, "epochs": 2, "results_dir": "out"}
    return lambda **fields: Run(**{"task": ten_sentences.name, "model": "tiny", **small, **fields})


def masks_of(run: Run) -> dict[str, torch.Tensor]:
    return load_mask(Path(run.results_dir, "masks", f"{run.name}.safetensors")).masks


@pytest.mark.parametrize("method", SCORED)
@pytest.mark.parametrize(("scope", "sparsity"), [("encoder", 0.9), ("encoder+embeddings", 1 / 3), ("encoder", 0.0)])
def test_exactly_k_connections_stay(ask, method, scope, sparsity):
    record = adaprune.adapt(ask(method=method, scope=scope, sparsity=sparsity))
    encoder = load_encoder("tiny").model
    n = sum(module.weight.numel() for module in maskable(encoder, scope).values())
    assert (record["mask"]["kept"], record["mask"]["total"]) == (round((1 - sparsity) * n), n)
    assert record["weights_intact"] is METHODS[method].weights_intact
    looks = [point["sparsity"] for point in record["curve"]]
    assert looks[-1] == pytest.approx(sparsity, abs=0.02)


@pytest.mark.parametrize(("method", "allocation"), [("edge_popup", ""), ("movement", ""), ("smp", "equal")])
def test_each_matrix_keeps_its_share(ask, method, allocation):
    run = ask(method=method, sparsity=0.7, allocation=allocation)
    adaprune.adapt(run)
    assert all(int(mask.sum()) - 0.3 * mask.numel() == pytest.approx(0, abs=1) for mask in masks_of(run).values())


def test_unseen_words_do_not_take_the_whole_share_of_their_table(ask):
    """They fit in what is kept of all, not in what is kept of their table; as +inf they would be all of it."""
    fields = {"method": "edge_popup", "sparsity": 0.8, "scope": "encoder+embeddings", "epochs": 1}
    entry = adaprune.adapt(ask(**fields))["mask"]
    seen, unseen = entry["seen_rows"], entry["unseen_rows"]
    assert 0.2 * (seen["total"] + unseen["total"]) < unseen["total"] < 0.2 * entry["total"]
    assert seen["sparsity"] == pytest.approx(0.8, abs=0.1)


def test_smp_shares_out_by_scores_within_each_component(ask):
    run = ask(method="smp", sparsity=0.7, learning_rate=0.5)
    adaprune.adapt(run)
    kept: dict[str, list[int]] = {}
    for name, mask in masks_of(run).items():
        kept.setdefault(name.split(".", 3)[3], []).append(int(mask.sum()))
    sizes = {name.split(".", 3)[3]: 2 * mask.numel() for name, mask in masks_of(run).items()}
    assert len(kept) == 6
    assert all(sum(numbers) == pytest.approx(0.3 * sizes[part], abs=2) for part, numbers in kept.items())
    assert any(abs(first - second) > 2 for first, second in kept.values())


def test_adaprune_can_share_out_too(ask):
    run = ask(allocation="equal", sparsity=0.95)
    record = adaprune.adapt(run)
    assert record["mask"]["kept"] == round(0.05 * record["mask"]["total"])
    assert all(int(mask.sum()) - 0.05 * mask.numel() == pytest.approx(0, abs=1) for mask in masks_of(run).values())


@pytest.mark.parametrize("method", ["adaprune", *SCORED])
def test_what_is_pruned_can_be_made_to_stay_so(ask, method):
    run = ask(method=method, sparsity=0.8, recovery=False, keep="snapshots", epochs=4)
    record = adaprune.adapt(run)
    assert record["mask"]["kept"] == round(0.2 * record["mask"]["total"])
    looks = [point["sparsity"] for point in record["curve"]]
    assert looks == sorted(looks) and looks[-1] == pytest.approx(0.8, abs=0.02)
    files = sorted(paths_of(record_path(run)).snapshots.iterdir(), key=lambda file: int(file.stem))
    masks = [load_file(file) for file in files]
    assert len(masks) >= 8
    for before, after in pairwise(masks):
        assert not any((after[name] & ~before[name]).any() for name in after)


@pytest.mark.parametrize("method", ["soft_movement", "movement_finetune", "smp", "edge_popup", "bernoulli"])
def test_an_interrupted_run_ends_as_if_it_had_not_been(ask, method, monkeypatch):
    real, calls = adaprune.training.heads.task_losses, []

    def spoilt(logits, labels):
        calls.append(1)
        return real(logits, labels) * (float("nan") if len(calls) == 8 else 1)

    run = ask(method=method, checkpoint_steps=1, sparsity=0.8)
    with monkeypatch.context() as patch:
        patch.setattr(adaprune.training.heads, "task_losses", spoilt)
        with pytest.raises(FloatingPointError, match="checkpoint-[1-9]"):
            adaprune.adapt(run)
    again, undisturbed = adaprune.adapt(run), adaprune.adapt(run.model_copy(update={"results_dir": "other"}))
    assert again["metrics"] == undisturbed["metrics"]
    assert again["mask"] == undisturbed["mask"]
    losses = [[point.get("loss") for point in record["curve"]] for record in (again, undisturbed)]
    assert losses[0] == losses[1]
    if METHODS[method].weights_intact:
        other = masks_of(run.model_copy(update={"results_dir": "other"}))
        assert all(torch.equal(mask, other[name]) for name, mask in masks_of(run).items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "snip", "temperature": 2.0}, "temperature=2.0 would change nothing in method 'snip'"),
        ({"method": "edge_popup", "initial_theta": "normal"}, "'' .its own start. or 'magnitude', got 'normal'"),
        ({"method": "wanda", "initial_theta": "magnitude"}, "initial_theta='magnitude' would change nothing"),
        ({"method": "magnitude", "penalty": 1e-7}, "penalty=1e-07 would change nothing"),
        ({"recipe": "paper", "allocation": "equal"}, r"per matrix need control 'cubic' \(recipe='tuned'\)"),
    ],
)
def test_settings_that_do_not_fit_are_refused(ask, fields, message):
    with pytest.raises(ValueError, match=message):
        adaprune.adapt(ask(**fields))


# ---------------------------------------------------------------- lora, ia3, bitfit


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_without_peft_the_package_is_named(ask, monkeypatch, method):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"method='{method}' needs the package peft: pip install peft"):
        adaprune.adapt(ask(method=method))
    assert not Path("out").exists()


@pytest.fixture
def trained(ask, monkeypatch):
    """Runs a method; the record, and the encoder's tensors before and after."""

    def run(**fields):
        after, real = {}, HOUSE.score

        def remember(job, outcome):
            after.update({name: tensor.clone() for name, tensor in job.model.encoder.state_dict().items()})
            return real(job, outcome)

        monkeypatch.setattr(HOUSE, "score", remember)
        record = adaprune.adapt(ask(**fields))
        before = load_encoder("tiny").model.state_dict()
        assert set(after) == set(before) and record["weights_intact"] is False and record["mask"] is None
        return record, before, after

    return run


HEAD = 2 + 2 * 16 + 2  # the layers' mix, output


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_lora_adds_a_product_of_its_rank_to_every_linear_weight(trained, rank):
    pytest.importorskip("peft", reason="lora needs peft, of the extra adaprune[methods]")
    record, before, after = trained(method="lora", learning_rate=1e-2, rank=rank)
    linear, rank = maskable(load_encoder("tiny").model), rank or 8
    factors = sum(rank * sum(module.weight.shape) for module in linear.values())
    assert record["cost"]["shipped_bytes"] == 4 * (factors + HEAD)
    for name, tensor in before.items():
        if name not in linear:
            assert torch.equal(tensor, after[name])
        else:
            change = torch.linalg.svdvals((after[name] - tensor).double())
            assert change[0] > 1e-4
            assert change[rank:].max() < 1e-5 * max(1.0, float(change[0]))


def test_ia3_rescales_keys_values_and_what_the_ffn_writes(trained):
    """Each row of a key or value by one factor, each column of the FFN's second matrix; biases are 0 here."""
    pytest.importorskip("peft", reason="ia3 needs peft, of the extra adaprune[methods]")
    record, before, after = trained(method="ia3", learning_rate=1e-2)
    assert record["cost"]["shipped_bytes"] == 4 * (2 * (16 + 16 + 32) + HEAD)  # two layers: k, v and FFN units
    axis = {"key": 1, "value": 1, "ffn_out": 0}  # along which a factor is the same
    scaled = {
        name: axis[component_of(name)] for name in maskable(load_encoder("tiny").model) if component_of(name) in axis
    }
    assert len(scaled) == 6
    for name, tensor in before.items():
        if name not in scaled:
            assert torch.equal(tensor, after[name]), name
        else:
            factors = after[name] / tensor
            assert (factors - 1).abs().max() > 1e-3
            one = factors.select(scaled[name], 0).unsqueeze(scaled[name])
            torch.testing.assert_close(factors, one.expand_as(factors), rtol=1e-4, atol=1e-5)


def test_bitfit_trains_every_bias_and_nothing_else(trained):
    record, before, after = trained(method="bitfit", learning_rate=1e-2)
    biases = [name for name in before if name.endswith("bias")]
    assert record["cost"]["shipped_bytes"] == 4 * (sum(before[name].numel() for name in biases) + HEAD)
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) != (name in biases), name
