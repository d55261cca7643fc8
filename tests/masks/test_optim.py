"""AdaPrune against the plain reference, against numbers by hand, and with sparse gradients."""

import copy
import math

import pytest
import torch

from adaprune.masks.optim import AdaPrune
from adaprune.masks.surrogate import surrogate_slope
from tests.masks.reference import algorithm_1
from tests.masks.small_theta import RATE, RULES, averages, gradients, masked_optimiser, row_gradients, start, walk, zero


@pytest.mark.parametrize("temperature", [1.0, 30.0])
@pytest.mark.parametrize("rule", RULES)
def test_100_steps_agree_with_algorithm_1_as_printed(rule, temperature):
    alpha, gamma = RATE[rule] / temperature, 5e-5
    path = algorithm_1(start(), gradients(), alpha, gamma, temperature, rule)
    theta = torch.nn.Parameter(start())
    optimiser = masked_optimiser(theta, lr=alpha, penalty=gamma, temperature=temperature, rule=rule)
    crossings, before = 0, start() > 0
    for (ours, level), expected in zip(walk(optimiser, theta, gradients()), path, strict=True):
        mask = ours > level
        assert torch.equal(mask, expected > 0)
        torch.testing.assert_close(ours - level, expected, rtol=1e-9, atol=1e-12)
        crossings, before = crossings + int((mask != before).sum()), mask
    assert level == pytest.approx(100 * gamma)
    assert crossings >= 3  # the masks did change on the way


@pytest.mark.parametrize("rule", RULES)
def test_float32_agrees_with_algorithm_1_in_float64(rule):
    path = algorithm_1(start(), gradients(), RATE[rule], 5e-5, 1.0, rule)
    theta = torch.nn.Parameter(start().float())
    # bfloat16 keeps 8 bits of adafactor's average: each of the 100 steps of RATE may be off by 2^-9 of itself.
    allowed = 100 * RATE[rule] * 2**-9 if rule == "adafactor" else 2e-5
    optimiser = masked_optimiser(theta, lr=RATE[rule], penalty=5e-5, rule=rule)
    for (ours, level), expected in zip(walk(optimiser, theta, [g.float() for g in gradients()]), path, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close((ours - level).double(), expected, rtol=0, atol=allowed)


def in_two_ways(rule, sparse):
    """Two runs of 30 steps over one body of (embedding -> two products) and a head: step and step_in_backward."""
    for in_backward in (False, True):
        generator = torch.Generator().manual_seed(5)
        table = torch.nn.Embedding(12, 6, sparse=sparse)
        table.weight.data = start((12, 6), torch.float32, seed=2)
        theta, head = (torch.nn.Parameter(start(s, torch.float32, seed=3)) for s in ((6, 4), (4,)))
        weight, level = torch.randn(6, 4, generator=generator), zero()
        groups = [
            {"params": [theta, table.weight], "masked": True, "threshold": level, "lr": RATE[rule]},
            {"params": [head], "lr": 0.1},
        ]
        optimiser = AdaPrune(groups, penalty=1e-5, rule=rule)
        handles = optimiser.step_in_backward() if in_backward else []
        for _ in range(30):
            optimiser.zero_grad()
            ids = torch.randint(0, 9, (5,), generator=generator)
            rows = table(ids)
            hidden = rows @ (weight * theta)
            (hidden @ head).square().sum().backward()
            assert (theta.grad is None) == in_backward and head.grad is not None
            optimiser.step()
        for handle in handles:
            handle.remove()
        yield [theta.detach(), table.weight.detach(), head.detach(), level], optimiser, (theta, table)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_step_in_backward_equals_step_bit_for_bit(rule, sparse):
    (plain, one, _), (fused, two, _) = in_two_ways(rule, sparse)
    assert all(torch.equal(left, right) for left, right in zip(plain, fused, strict=True))
    for left, right in zip(one.state.values(), two.state.values(), strict=True):
        assert left.keys() == right.keys() and left["step"] == right["step"] == 30
        assert all(torch.equal(left[key], right[key]) for key in left.keys() - {"step"})
    assert not torch.equal(plain[0], start((6, 4), torch.float32, seed=3))


def test_removed_hooks_leave_gradients_to_step():
    _, (_, _, (theta, _)) = in_two_ways("adam", sparse=False)
    before = theta.detach().clone()
    theta.square().sum().backward()
    assert theta.grad is not None and torch.equal(theta, before)


@pytest.mark.parametrize("rule", ["adam", "sgd"])
def test_sparse_gradients_update_exactly_their_rows(rule):
    # Every step is compared with a dense one from the same state, on the rows touched; the others stand still.
    table = torch.nn.Parameter(start((10, 3)))
    optimiser = masked_optimiser(table, lr=RATE[rule], rule=rule, penalty=1e-5)
    for grad in row_gradients():
        twin = torch.nn.Parameter(table.detach().clone())
        dense = masked_optimiser(twin, lr=RATE[rule], rule=rule, penalty=1e-5)
        dense.load_state_dict(copy.deepcopy(optimiser.state_dict()))
        touched = grad.coalesce().indices()[0]
        idle = torch.ones(10, dtype=torch.bool).index_fill(0, touched, False)
        before = {"theta": table.detach().clone(), **{k: torch.clone(v) for k, v in averages(optimiser, table)}}
        table.grad, twin.grad = grad, grad.to_dense()
        optimiser.step()
        dense.step()
        assert torch.equal(table[touched], twin[touched])
        assert torch.equal(table[idle], before["theta"][idle])
        for (name, found), (_, expected) in zip(averages(optimiser, table), averages(dense, twin), strict=True):
            assert torch.equal(found[touched], expected[touched]), name
            assert name not in before or torch.equal(found[idle], before[name][idle]), name
    assert torch.equal(table[9], start((10, 3))[9])


def test_adam_on_rows_is_lazy_like_torch_sparse_adam():
    table, twin = (torch.nn.Parameter(start((10, 3))) for _ in range(2))
    ours = AdaPrune([table], lr=1e-3, eps=1e-8)
    theirs = torch.optim.SparseAdam([twin], lr=1e-3, eps=1e-8)
    for grad in row_gradients():
        table.grad, twin.grad = grad, grad.clone()
        ours.step()
        theirs.step()
        torch.testing.assert_close(table, twin, rtol=0, atol=5e-7)  # eps enters before their bias correction
    assert (table - start((10, 3))).abs().max() > 1e-3


@pytest.mark.parametrize("rule", RULES)
def test_an_empty_sparse_gradient_moves_nothing(rule):
    table = torch.nn.Parameter(start((10, 3)))
    optimiser = masked_optimiser(table, lr=1.0, rule=rule)
    none = torch.zeros(1, 0, dtype=torch.long), torch.zeros(0, 3, dtype=torch.float64)
    table.grad = torch.sparse_coo_tensor(*none, (10, 3), check_invariants=False)
    optimiser.step()
    assert torch.equal(table, start((10, 3)))
    table.grad = torch.ones(10, 3, dtype=torch.float64)
    optimiser.step()
    assert torch.isfinite(table).all() and not torch.equal(table, start((10, 3)))


def test_adafactor_on_rows_uses_the_rows_own_second_moment():
    # A gradient that names every row is the dense one; one that names some leaves the others as they were.
    tables = [torch.nn.Parameter(start((10, 3))) for _ in range(2)]
    sparse, dense = (masked_optimiser(table, lr=1e-3, rule="adafactor") for table in tables)
    for grad in gradients(10, (10, 3)):
        tables[0].grad = torch.sparse_coo_tensor(torch.arange(10)[None], grad, (10, 3), check_invariants=False)
        tables[1].grad = grad
        sparse.step()
        dense.step()
        assert torch.equal(*tables)
    before, rows = tables[0].detach().clone(), sparse.state[tables[0]]["row_square"].clone()
    tables[0].grad = torch.sparse_coo_tensor(torch.tensor([[2, 2, 4]]), grad[:3], (10, 3), check_invariants=False)
    sparse.step()
    assert (tables[0] != before).any(1).nonzero().flatten().tolist() == [2, 4]
    assert (sparse.state[tables[0]]["row_square"] != rows).nonzero().flatten().tolist() == [2, 4]


def test_adafactor_keeps_a_row_and_a_column_instead_of_a_matrix():
    theta, head = torch.nn.Parameter(start()), torch.nn.Parameter(start())
    groups = [{"params": [theta], "masked": True, "threshold": zero()}, {"params": [head]}]
    optimiser = AdaPrune(groups, rule="adafactor")
    theta.grad, head.grad = gradients(2)
    optimiser.step()
    assert {name: tuple(value.shape) for name, value in averages(optimiser, theta)} == {
        "exp_avg": (8, 5), "row_square": (8,), "column_square": (5,),
    }  # fmt: skip
    assert {name for name, _ in averages(optimiser, head)} == {"exp_avg", "exp_avg_sq"}


def test_adafactor_is_adam_where_squares_have_rank_one():
    # |g_ij| = a_i b_j with any signs: the factored second moment is the full one.
    ours, theirs = (torch.nn.Parameter(start()) for _ in range(2))
    factored, full = masked_optimiser(ours, lr=1e-3, rule="adafactor"), masked_optimiser(theirs, lr=1e-3)
    size = torch.outer(torch.arange(1.0, 9), torch.tensor([1.0, 10.0, 0.1, 3.0, 7.0])).double()
    for grad in gradients(20):
        slope = surrogate_slope(ours.detach(), 1.0)  # undone here, so that the squares have rank one exactly
        ours.grad = theirs.grad = size * grad.sign() / slope
        factored.step()
        full.step()
        theirs.data.copy_(ours.data)
        torch.testing.assert_close(factored.state[ours]["exp_avg"], full.state[theirs]["exp_avg"])
    state, square = factored.state[ours], full.state[theirs]["exp_avg_sq"]
    product = torch.outer(state["row_square"], state["column_square"]) / state["row_square"].mean()
    torch.testing.assert_close(product, square)


# Steps by hand.


def test_two_sgd_steps_by_hand():
    # g = 0.4 * 1/4 at theta = 0 (t_s = 1): theta = -0.5 * 0.1 = -0.05, then gamma 0.01 -> theta - threshold = -0.06.
    theta = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimiser = masked_optimiser(theta, lr=0.5, penalty=0.01, rule="sgd")
    (first, level), (second, last) = walk(optimiser, theta, [torch.tensor([0.4]).double()] * 2)
    assert first.item() - level == pytest.approx(-0.06)
    soft = 1 / (1 + math.exp(0.06))
    assert second.item() - last == pytest.approx(-0.06 - 0.5 * 0.4 * soft * (1 - soft) - 0.01)


@pytest.mark.parametrize("rule", RULES)
def test_a_group_without_mask_is_plain_torch(rule):
    # No surrogate, no penalty, no threshold: exactly torch's Adam or SGD.
    ours, theirs = (torch.nn.Parameter(start()) for _ in range(2))
    optimiser = AdaPrune([ours], lr=1e-3, rule=rule, penalty=0.1, eps=1e-8)
    # Factored second moments are for theta only.
    twin = torch.optim.SGD([theirs], lr=1e-3) if rule == "sgd" else torch.optim.Adam([theirs], lr=1e-3, eps=1e-8)
    for grad in gradients(20):
        ours.grad, theirs.grad = grad, grad.clone()
        optimiser.step()
        twin.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)


def test_tiny_gradients_still_take_a_full_adam_step():
    # dL/dm is a gradient times a weight: 1e-9 is usual, and must not drown in eps.
    theta = torch.nn.Parameter(torch.full((3,), 0.01))
    optimiser = masked_optimiser(theta, lr=1e-4)
    theta.grad = torch.tensor([1e-8, -1e-9, 0.0])
    optimiser.step()
    torch.testing.assert_close(theta.detach(), torch.tensor([0.0099, 0.0101, 0.01]), rtol=0, atol=2e-6)
