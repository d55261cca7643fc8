"""Whole attention heads and FFN neurons: sums, cuts and masks by hand, the gradient by the route of single weights."""

import math

import pytest
import torch

from adaprune.deploy.runtime import compact
from adaprune.masks import (
    ControlOfUnits,
    SparsityControl,
    attach,
    component_of,
    detach,
    keep_units,
    layer_of,
    maskable,
    masks_of_units,
    set_masks,
    sum_over_units,
    thetas_of,
    threshold_of,
)
from adaprune.masks.layers import MaskedUnits
from adaprune.methods.learning import optimiser_for
from adaprune.runs import TUNED
from adaprune.training import AdaptedModel
from tests import tiny

ATTENTION, OUTPUT = "layer.0.attention.self.{}.weight", "layer.0.attention.output.dense.weight"
FIRST, SECOND = "layer.0.intermediate.dense.weight", "layer.0.output.dense.weight"
QUERY, KEY, VALUE = (ATTENTION.format(part) for part in ("query", "key", "value"))


def layer() -> dict[str, torch.Tensor]:
    """A layer of width 2 with two heads of one column and three neurons; a different power of ten for each matrix."""
    return {
        QUERY: torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        KEY: torch.tensor([[10.0, 20.0], [30.0, 40.0]]),
        VALUE: torch.tensor([[100.0, 200.0], [300.0, 400.0]]),
        OUTPUT: torch.tensor([[1000.0, 2000.0], [3000.0, 4000.0]]),
        FIRST: torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]),
        SECOND: torch.tensor([[10.0, 20.0, 30.0], [10.0, 20.0, 30.0]]),
    }


def units(encoder, seed=0, density=None):
    """Random theta around a threshold of 0, or a random mask of units, by the matrices that read them."""
    generator = torch.Generator().manual_seed(seed)
    heads = encoder.config.num_attention_heads
    weights = {name: module.weight for name, module in maskable(encoder).items()}
    found = {name: torch.randn(len(s), generator=generator) for name, s in sum_over_units(weights, heads).items()}
    return found if density is None else keep_units(found, density)


def test_sums_by_hand():
    found = sum_over_units(layer(), heads=2)
    # head 0: row 0 of query, key and value, 3 + 30 + 300, and column 0 of the output, 4000
    assert found[OUTPUT].tolist() == [3 + 30 + 300 + 4000, 7 + 70 + 700 + 6000]
    assert found[SECOND].tolist() == [2 + 20, 4 + 40, 6 + 60]
    assert list(found) == [OUTPUT, SECOND]
    assert sum_over_units(layer(), heads=1)[OUTPUT].tolist() == [10 + 100 + 1000 + 10000]


def test_masks_by_hand():
    masks = masks_of_units({OUTPUT: torch.tensor([False, True]), SECOND: torch.tensor([True, False, True])}, layer())
    assert list(masks) == list(layer())
    for name in (QUERY, KEY, VALUE):
        assert masks[name].tolist() == [[False, False], [True, True]]
    assert masks[OUTPUT].tolist() == [[False, True], [False, True]]
    assert masks[FIRST].tolist() == [[True, True], [False, False], [True, True]]
    assert masks[SECOND].tolist() == [[True, False, True]] * 2


def test_heads_and_neurons_are_cut_each_for_themselves():
    """However their scores compare; exactly round(density n), over all layers together."""
    scores = {
        "layer.0.attention.output.dense.weight": torch.tensor([9.0, 8.0]),
        "layer.1.attention.output.dense.weight": torch.tensor([1.0, 7.0]),
        "layer.0.output.dense.weight": torch.tensor([0.1, 0.2, 0.3]),
        "layer.1.output.dense.weight": torch.tensor([0.4, 0.1, 0.1]),
    }
    kept = [mask.tolist() for mask in keep_units(scores, 0.5).values()]
    assert kept == [[True, True], [False, False], [False, True, True], [True, False, False]]
    assert list(keep_units(scores, 0.5)) == list(scores)
    ties = keep_units({name: torch.zeros_like(score) for name, score in scores.items()}, 0.7)
    assert [int(mask.sum()) for mask in ties.values()] == [2, 1, 3, 1]  # 3 of 4, 4 of 6; by position


@pytest.mark.parametrize("missing", [QUERY, OUTPUT, FIRST, SECOND])
def test_layers_of_another_make_are_refused_by_name(missing):
    values = layer()
    values["layer.0.Wqkv.weight"] = values.pop(missing)
    with pytest.raises(ValueError, match=r"layer\.0\..*there|it has no heads and neurons to remove whole"):
        sum_over_units(values, heads=2)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_masked_units_compute_what_masks_of_their_weights_do(family):
    kept = units(tiny.encoder(family), density=0.5)
    ours, theirs = tiny.encoder(family), tiny.encoder(family)
    attach(ours, {name: mask.float() for name, mask in kept.items()})
    set_masks(theirs, masks_of_units(kept, {name: m.weight for name, m in maskable(theirs).items()}))
    found, expected, dense = (e(**tiny.batch()).last_hidden_state for e in (ours, theirs, tiny.encoder(family)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - dense).abs().max() > 0.1


@pytest.mark.parametrize("family", tiny.FIVE)
def test_the_gradient_is_the_sum_over_the_columns_of_single_weights(family):
    thetas = units(tiny.encoder(family))
    ours, theirs = tiny.encoder(family), tiny.encoder(family)
    attach(ours, thetas)
    columns = {}
    for name, module in maskable(theirs).items():
        if name in thetas:
            width = module.in_features // len(thetas[name])
            columns[name] = thetas[name].repeat_interleave(width).expand(module.weight.shape).clone()
    attach(theirs, columns)
    for encoder in (ours, theirs):
        encoder(**tiny.batch()).last_hidden_state.square().sum().backward()
    for name, theta in thetas_of(ours).items():
        expected = thetas_of(theirs)[name].grad.sum(0).view(len(theta), -1).sum(1)
        torch.testing.assert_close(theta.grad, expected, atol=1e-3, rtol=1e-3)
        assert theta.grad.abs().min() > 0  # of the pruned ones too: they can return


def test_heads_share_a_threshold_and_neurons_another():
    encoder = tiny.encoder()
    parameters = attach(encoder, units(encoder))
    threshold_of(encoder).copy_(torch.tensor([math.inf, -math.inf]))
    for name, module in maskable(encoder).items():
        if name in parameters:
            assert isinstance(module, MaskedUnits)
            assert float(module.threshold) == (math.inf if component_of(name) == "attention_output" else -math.inf)
    assert type(detach(encoder).encoder.layer[0].output.dense) is torch.nn.Linear


def test_a_vector_must_fit_the_inputs():
    encoder = tiny.encoder()
    name = next(name for name in maskable(encoder) if component_of(name) == "ffn_out")
    for wrong in (5, 0, 96):
        with pytest.raises(ValueError, match="theta has shape"):
            attach(encoder, {name: torch.ones(wrong)})
    with pytest.raises(ValueError, match=r"theta has shape \(60,\)"):
        attach(encoder, {"embeddings.word_embeddings.weight": torch.ones(60)})


def test_the_optimiser_steps_each_kind_with_its_own_threshold():
    model = AdaptedModel.for_task(tiny.encoder(), 2)
    thetas = attach(model.encoder, units(model.encoder))
    plan = TUNED.__class__(**{**TUNED.__dict__, "control": "penalty", "penalty": 0.25})
    optimiser = optimiser_for(model, thetas, plan)
    kinds = [group for group in optimiser.param_groups if group["masked"]]
    assert [len(group["params"]) for group in kinds] == [2, 2]
    assert [group["params"][0].numel() for group in kinds] == [4, 48]
    optimiser.step()
    assert threshold_of(model.encoder).tolist() == [0.25, 0.25]  # once each


def control(kind="cubic", target=0.5, end=1):
    """Of 4 + 2 heads of 30 weights and 3 + 3 neurons of 10; heads first."""
    return ControlOfUnits(
        SparsityControl(kind, target, end), kinds=["h", "n", "h", "n"], sizes=[30, 10, 30, 10], counts=[4, 3, 2, 3]
    )


THETAS = [torch.tensor(values) for values in ([1.0, 2, 3, 4], [0.1, 0.2, 0.3], [5.0, 6], [0.4, 0.5, 0.6])]


def test_each_kind_is_moved_to_its_own_quantile():
    threshold = torch.zeros(2, dtype=torch.float64)
    asked = control()
    assert asked.update(1, THETAS, threshold) is False
    torch.testing.assert_close(threshold, torch.tensor([3.0, 0.3], dtype=torch.float64))  # 3 of 6 do not exceed
    assert asked.sparsity(THETAS, threshold) == pytest.approx(0.5)
    threshold[1] = 0.05
    assert asked.sparsity(THETAS, threshold) == pytest.approx(3 * 30 / (6 * 30 + 6 * 10))


def test_the_target_is_what_whole_units_allow():
    """At 0.6, round(0.4 x 6) = 2 of 6 stay of each kind: 4 / 6 goes, not 0.6."""
    assert control(target=0.6).target == pytest.approx(4 / 6)
    uneven = ControlOfUnits(SparsityControl("cubic", 0.5, 1), kinds=["h", "n"], sizes=[30, 10], counts=[3, 4])
    assert uneven.target == pytest.approx((1 * 30 + 2 * 10) / (90 + 40))  # round(1.5) = 2 heads stay


def test_a_penalty_stops_once_both_kinds_are_there():
    threshold = torch.tensor([4.0, 0.05], dtype=torch.float64)
    asked = control("penalty")
    assert asked.update(1, THETAS, threshold) is False
    threshold[1] = 0.5
    assert asked.update(2, THETAS, threshold) is True
    with pytest.raises(ValueError, match="cannot reach"):
        asked.check(THETAS, steps=10, penalty=0.01, rate=0.0)
    asked.check(THETAS, steps=1000, penalty=0.01, rate=0.0)


@pytest.mark.parametrize("family", tiny.FIVE)
def test_what_is_left_is_a_small_dense_model(family):
    """Half of the heads and half of the neurons, so half of every matrix; the answers stay."""
    encoder = tiny.encoder(family)
    kept = units(encoder, density=0.5)
    weights = {name: module.weight for name, module in maskable(encoder).items()}
    with torch.no_grad():
        for name, mask in masks_of_units(kept, weights).items():
            weights[name].mul_(mask)
    torch.manual_seed(0)
    model = AdaptedModel.for_task(encoder.requires_grad_(False), 2).eval()
    small = compact(model)
    torch.testing.assert_close(small(**tiny.batch()).logits, model(**tiny.batch()).logits, atol=1e-5, rtol=0)
    for number, layer in enumerate(small.encoder.layers):
        own = {component_of(name): mask for name, mask in kept.items() if layer_of(name) == number}
        assert [head.number for head in layer.attention.heads] == own["attention_output"].nonzero().flatten().tolist()
        assert layer.feed_forward.fc1.out_features == int(own["ffn_out"].sum())
    left = sum(module.weight.numel() for module in maskable(small.encoder).values())
    assert left == sum(weight.numel() for weight in weights.values()) / 2
