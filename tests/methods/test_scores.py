"""Scores: the slopes of other methods, their penalty and scores that stand for their size, by hand and as AdaPrune."""

import copy
import math

import pytest
import torch

from adaprune.masks.optim import AdaPrune
from adaprune.methods.scores import SLOPES, Scores
from tests.masks.small_theta import RATE, RULES, averages, gradients, row_gradients, start, walk, zero


def scores_optimiser(scores, *rest, level=0.0, **options):
    """An optimiser of one masked group, whose threshold starts at ``level``, and of further groups."""
    further = {name: options.pop(name) for name in Scores.FURTHER if name in options}  # settings of a group alone
    group = {"params": [scores], "masked": True, "threshold": zero().fill_(level), **further}
    return Scores([group, *rest], **options)


def step(value, grad, **options):
    """Where one SGD step of rate 1 brings a single score."""
    scores = torch.nn.Parameter(torch.tensor([value], dtype=torch.float64))
    optimiser = scores_optimiser(scores, lr=1.0, rule="sgd", **options)
    scores.grad = torch.tensor([grad], dtype=torch.float64)
    optimiser.step()
    return scores.item()


# ---------------------------------------------------------------- slopes


def test_each_slope_by_hand():
    # At ln 3 sigmoid is 3/4 and its derivative 3/16. "sigmoid" is read from the threshold, here ln 3 too, so 1/4.
    at = math.log(3)
    assert step(at, 0.5, surrogate="identity", level=at) == pytest.approx(at - 0.5)
    assert step(at, 0.5, surrogate="sampled", level=at) == pytest.approx(at - 0.5 * 3 / 16)
    assert step(at, 0.5, surrogate="sigmoid", level=at) == pytest.approx(at - 0.5 / 4)
    assert step(at / 2, 0.5, surrogate="sampled", temperature=2.0) == pytest.approx(at / 2 - 0.5 * 3 / 8)


def test_the_plain_gradient_is_the_default():
    assert step(0.3, 0.5) == step(0.3, 0.5, surrogate="identity")


@pytest.mark.parametrize("rule", RULES)
def test_with_the_papers_slope_they_are_adaprune_bit_for_bit(rule):
    ours, theirs = (torch.nn.Parameter(start()) for _ in range(2))
    options = {"lr": RATE[rule], "penalty": 5e-5, "temperature": 3.0, "rule": rule}
    scores = scores_optimiser(ours, surrogate="sigmoid", **options)
    paper = AdaPrune([{"params": [theirs], "masked": True, "threshold": zero()}], **options)
    for (one, level), (other, same) in zip(
        walk(scores, ours, gradients(20)), walk(paper, theirs, gradients(20)), strict=True
    ):
        assert torch.equal(one, other) and level == same
    assert not torch.equal(ours, start())


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("rule", RULES)
def test_a_head_beside_them_takes_no_slope_and_no_penalty(rule, slope):
    head, twin = (torch.nn.Parameter(start()) for _ in range(2))
    options = {"lr": 1e-3, "rule": rule}
    further = {"surrogate": slope, "shrink": 3.0, "reflect": True}
    optimiser = scores_optimiser(torch.nn.Parameter(start()), {"params": [head], **further}, **further, **options)
    plain = AdaPrune([twin], **options)
    for grad in gradients(20):
        head.grad, twin.grad = grad, grad.clone()
        optimiser.step()
        plain.step()
    assert torch.equal(head, twin) and (head < 0).any()  # what is negative is not folded either


@pytest.mark.parametrize("rule", ["adam", "sgd"])
@pytest.mark.parametrize("slope", SLOPES)
def test_sparse_gradients_update_exactly_their_rows(slope, rule):
    """Every step is compared with a dense one from the same state, on the rows touched; the others stand still."""
    options = {"lr": RATE[rule], "rule": rule, "surrogate": slope, "shrink": 1e-3, "ramp": 10, "reflect": True}
    table = torch.nn.Parameter(start((10, 3)))
    optimiser = scores_optimiser(table, **options)
    for grad in row_gradients():
        twin = torch.nn.Parameter(table.detach().clone())
        dense = scores_optimiser(twin, **options)
        dense.load_state_dict(copy.deepcopy(optimiser.state_dict()))
        touched = grad.coalesce().indices()[0]
        idle = torch.ones(10, dtype=torch.bool).index_fill(0, touched, False)
        before = table.detach().clone()
        table.grad, twin.grad = grad, grad.to_dense()
        optimiser.step()
        dense.step()
        assert torch.equal(table[touched], twin[touched]) and torch.equal(table[idle], before[idle])
        for (name, found), (_, expected) in zip(averages(optimiser, table), averages(dense, twin), strict=True):
            assert torch.equal(found[touched], expected[touched]), name
    assert torch.equal(table[9], start((10, 3))[9])


# ---------------------------------------------------------------- the penalty on their size


def test_the_penalty_rises_to_its_weight_and_stays_there():
    # dL/dm = 0 at s = 0, where sigmoid' = 1/4: c_t (1/4), with c = 0.8 and T = 4, so 1 - (3/4)^3 after the first step.
    scores = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimiser = scores_optimiser(scores, lr=1.0, rule="sgd", shrink=0.8, ramp=4)
    for factor in (1 - 0.75**3, 1 - 0.5**3, 1 - 0.25**3, 1, 1):
        scores.data.zero_()
        scores.grad = torch.zeros(1, dtype=torch.float64)
        optimiser.step()
        assert scores.item() == pytest.approx(-0.8 * factor / 4)


def test_the_penalty_is_added_to_the_slopes_gradient():
    at = math.log(3)
    assert step(at, 0.5, shrink=2.0) == pytest.approx(at - 0.5 - 2.0 * 3 / 16)
    assert step(at, 0.5, shrink=2.0, surrogate="sampled") == pytest.approx(at - (0.5 + 2.0) * 3 / 16)
    assert step(at, 0.5, shrink=2.0, temperature=9.0) == step(at, 0.5, shrink=2.0)  # sigmoid(s) as it is


@pytest.mark.parametrize("rule", RULES)
def test_the_penalty_is_that_of_the_mean_sigmoid_in_the_loss(rule):
    """torch's own derivative of loss + c sum sigmoid(s), of which the gradient is handed to a twin without penalty."""
    ours, theirs = (torch.nn.Parameter(start()) for _ in range(2))
    options = {"lr": RATE[rule], "rule": rule}
    shrunk, plain = scores_optimiser(ours, shrink=0.3, **options), scores_optimiser(theirs, **options)
    for grad in gradients(20):
        ours.grad = grad.clone()
        value = theirs.detach().clone().requires_grad_()
        (theirs.grad,) = torch.autograd.grad((grad * value).sum() + 0.3 * value.sigmoid().sum(), value)
        shrunk.step()
        plain.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------- scores that stand for their size


def test_a_score_that_passes_zero_goes_on_on_the_other_side():
    assert step(0.2, 0.5, reflect=True) == pytest.approx(0.3)
    assert step(0.2, 0.1, reflect=True) == pytest.approx(0.1)
    assert step(0.2, 0.5) == pytest.approx(-0.3)


def test_what_passes_zero_takes_its_average_along():
    scores = torch.nn.Parameter(torch.tensor([1e-4, 1.0], dtype=torch.float64))
    optimiser = scores_optimiser(scores, lr=1e-3, reflect=True)
    scores.grad = torch.ones(2, dtype=torch.float64)
    optimiser.step()
    torch.testing.assert_close(scores.detach(), torch.tensor([9e-4, 0.999], dtype=torch.float64))
    torch.testing.assert_close(optimiser.state[scores]["exp_avg"], torch.tensor([-0.1, 0.1], dtype=torch.float64))


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"surrogate": "tanh"}, "surrogate must be one of identity, sampled, sigmoid, got 'tanh'"),
        ({"shrink": -1.0}, "shrink must not be negative, got -1.0"),
        ({"shrink": math.nan}, "shrink must not be negative, got nan"),
        ({"rule": "rmsprop"}, "rule must be one of adam, sgd, adafactor, got 'rmsprop'"),
        ({"lr": -1.0}, "lr must not be negative"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong, told):
    with pytest.raises(ValueError, match=told):
        Scores([{"params": [torch.nn.Parameter(start())], **wrong}])


def test_a_masked_group_needs_the_shared_threshold_here_too():
    with pytest.raises(ValueError, match="threshold"):
        Scores([{"params": [torch.nn.Parameter(start())], "masked": True}])
