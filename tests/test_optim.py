"""AdaPrune against the plain reference, against numbers by hand, and against torch's conventions."""

import copy
import io
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference import algorithm_1, best_mask
from torch.optim.lr_scheduler import LambdaLR

from adaprune.optim import AdaPrune, adam_direction, relaxed_mask, surrogate_gradient, surrogate_slope

RULES = ("adam", "sgd", "adafactor")
RATE = {"adam": 1e-3, "sgd": 0.05, "adafactor": 1e-3}  # both move theta by its own size within 100 steps


def zero():
    return torch.zeros((), dtype=torch.float64)


def start(size=(8, 5), dtype=torch.float64, seed=0):
    """theta_0 ~ N(0.01, 0.01): some start pruned, and a hundred steps carry many across 0."""
    return 0.01 * (1 + torch.randn(size, dtype=dtype, generator=torch.Generator().manual_seed(seed)))


def gradients(steps=100, size=(8, 5), seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, dtype=torch.float64, generator=generator) / 50 for _ in range(steps)]


def masked_optimiser(theta, **options):
    return AdaPrune([{"params": [theta], "masked": True, "threshold": zero()}], **options)


def threshold(optimiser):
    return float(optimiser.param_groups[0]["threshold"])


def walk(optimiser, parameter, grads):
    """Yields after each step the parameter and the threshold."""
    for grad in grads:
        parameter.grad = grad.clone()
        optimiser.step()
        yield parameter.detach().clone(), threshold(optimiser)


@pytest.mark.parametrize("temperature", [1.0, 30.0])
@pytest.mark.parametrize("recovery", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_100_steps_agree_with_algorithm_1_as_printed(rule, recovery, temperature):
    alpha, gamma = RATE[rule] / temperature, 5e-5
    path = algorithm_1(start(), gradients(), alpha, gamma, temperature, rule, recovery)
    theta = torch.nn.Parameter(start())
    optimiser = masked_optimiser(
        theta, lr=alpha, penalty=gamma, temperature=temperature, rule=rule, recovery=recovery
    )
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
    optimiser = masked_optimiser(theta, lr=RATE[rule], penalty=5e-5, rule=rule)
    for (ours, level), expected in zip(walk(optimiser, theta, [g.float() for g in gradients()]), path, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close((ours - level).double(), expected, rtol=0, atol=2e-3 * 0.01)


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


def row_gradients(steps=25):
    """Sparse gradients of a (10, 3) table, with repeated rows; row 9 never occurs."""
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        rows = torch.randint(0, 9, (1, 6), generator=generator)
        values = torch.randn(6, 3, dtype=torch.float64, generator=generator) / 50
        yield torch.sparse_coo_tensor(rows, values, (10, 3), check_invariants=False)


@pytest.mark.parametrize("recovery", [True, False])
@pytest.mark.parametrize("rule", ["adam", "sgd"])
def test_sparse_gradients_update_exactly_their_rows(rule, recovery):
    # Every step is compared with a dense one from the same state, on the rows touched; the others stand still.
    table = torch.nn.Parameter(start((10, 3)))
    optimiser = masked_optimiser(table, lr=RATE[rule], rule=rule, penalty=1e-5, recovery=recovery)
    for grad in row_gradients():
        twin = torch.nn.Parameter(table.detach().clone())
        dense = masked_optimiser(twin, lr=RATE[rule], rule=rule, penalty=1e-5, recovery=recovery)
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


def averages(optimiser, parameter):
    return [(name, value) for name, value in optimiser.state[parameter].items() if torch.is_tensor(value)]


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


# Equations by hand.


def test_relaxed_mask_is_a_step_at_a_large_temperature():
    theta = torch.tensor([-0.01, -1e-3, 0.0, 1e-3, 0.01])
    assert relaxed_mask(theta, 1e5).tolist() == [0, 0, 0.5, 1, 1]
    # sigmoid(2 * 0.5) = 1 / (1 + 1/e)
    assert float(relaxed_mask(torch.tensor(0.5), 2.0)) == pytest.approx(1 / (1 + math.exp(-1)))


def test_surrogate_slope_by_hand():
    # At sigmoid = 3/4 (theta = ln 3): 2 * 3/4 * 1/4 = 3/8 with t = 2 and theta = ln(3) / 2.
    assert float(surrogate_slope(torch.tensor(math.log(3) / 2), 2.0)) == pytest.approx(3 / 8)
    assert float(surrogate_slope(torch.tensor(0.0), 1e-2)) == pytest.approx(0.0025)
    assert surrogate_slope(torch.tensor([-50.0, 50.0, -torch.inf, torch.inf]), 10.0).tolist() == [0, 0, 0, 0]


def test_surrogate_gradient_by_hand():
    # dL/dm = (4, -2, 1) at theta = (0, ln 3, -ln 3), t = 1: times (1/4, 3/16, 3/16).
    theta = torch.tensor([0.0, math.log(3), -math.log(3)])
    found = surrogate_gradient(torch.tensor([4.0, -2.0, 1.0]), theta, 1.0)
    torch.testing.assert_close(found, torch.tensor([1.0, -0.375, 0.1875]))


@pytest.mark.parametrize("temperature", [1e-2, 1.0, 10.0])
def test_surrogate_slope_is_the_derivative_of_the_relaxed_mask(temperature):
    theta = torch.linspace(-3, 3, 61, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(torch.sigmoid(temperature * theta).sum(), theta)
    torch.testing.assert_close(surrogate_slope(theta.detach(), temperature), slope)


def test_two_sgd_steps_by_hand():
    # g = 0.4 * 1/4 at theta = 0 (t_s = 1): theta = -0.5 * 0.1 = -0.05, then gamma 0.01 -> theta - threshold = -0.06.
    theta = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimiser = masked_optimiser(theta, lr=0.5, penalty=0.01, rule="sgd")
    (first, level), (second, last) = walk(optimiser, theta, [torch.tensor([0.4]).double()] * 2)
    assert first.item() - level == pytest.approx(-0.06)
    soft = 1 / (1 + math.exp(0.06))
    assert second.item() - last == pytest.approx(-0.06 - 0.5 * 0.4 * soft * (1 - soft) - 0.01)


def test_adam_direction_by_hand():
    # First step: m_hat = g, v_hat = g^2, so the direction is the sign. Second, g = 1 then 3 (betas 0.5, 0.75):
    # m = 0.25 + 1.5 = 1.75, m_hat = 1.75 / 0.75; v = 0.1875 + 2.25 = 2.4375, v_hat = 2.4375 / 0.4375.
    state = {"step": 1, "exp_avg": torch.zeros(1), "exp_avg_sq": torch.zeros(1)}
    assert float(adam_direction(torch.tensor([1.0]), state, (0.5, 0.75), 0.0)) == pytest.approx(1.0)
    state["step"] = 2
    expected = (1.75 / 0.75) / math.sqrt(2.4375 / 0.4375)
    assert float(adam_direction(torch.tensor([3.0]), state, (0.5, 0.75), 0.0)) == pytest.approx(expected)


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


# Torch's conventions.


def test_defaults_are_the_papers():
    (group,) = AdaPrune([torch.nn.Parameter(start())]).param_groups
    assert {key: group[key] for key in ("lr", "penalty", "temperature", "betas", "recovery", "masked")} == {
        "lr": 2e-5, "penalty": 0.0, "temperature": 1.0, "betas": (0.9, 0.999), "recovery": True, "masked": False,
    }  # fmt: skip


def test_groups_have_their_own_settings():
    parameters = [torch.nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(3)]
    levels = [zero(), zero()]
    groups = [
        {"params": [parameters[0]], "masked": True, "threshold": levels[0], "lr": 0.1, "penalty": 0.5},
        {"params": [parameters[1]], "masked": True, "threshold": levels[1], "temperature": 2.0},
        {"params": [parameters[2]], "lr": 0.2},
    ]
    optimiser = AdaPrune(groups, lr=1.0, penalty=0.25, rule="sgd")
    for parameter in parameters:
        parameter.grad = torch.ones(1, dtype=torch.float64)
    optimiser.step()
    # Slopes at 0: 1/4 with t_s = 1, 1/2 with t_s = 2; none without a mask.
    assert [parameter.item() for parameter in parameters] == pytest.approx([-0.1 / 4, -1 / 2, -0.2])
    assert [float(level) for level in levels] == [0.5, 0.25]


def test_closure_runs_with_gradients_enabled_and_its_loss_comes_back():
    theta = torch.nn.Parameter(start())
    optimiser = masked_optimiser(theta, rule="sgd", lr=1.0)

    def closure():
        optimiser.zero_grad()
        loss = theta.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimiser.step(closure)
    assert float(loss.detach()) == pytest.approx(float(start().square().sum()))
    assert not torch.equal(theta, start())
    assert optimiser.step() is None


@pytest.mark.parametrize("recovery", [True, False])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sparse", [True, False])
def test_step_never_writes_a_gradient(rule, recovery, sparse):
    theta, head = torch.nn.Parameter(start((10, 3))), torch.nn.Parameter(start((10, 3)))
    groups = [{"params": [theta], "masked": True, "threshold": zero()}, {"params": [head]}]
    optimiser = AdaPrune(groups, rule=rule, recovery=recovery, lr=0.1)
    for grad in row_gradients(3):
        grad = grad if sparse else grad.to_dense()
        for parameter in (theta, head):
            parameter.grad = grad.clone()
        held = [theta.grad, head.grad]
        versions = [g._values()._version if sparse else g._version for g in held]
        optimiser.step()
        assert theta.grad is held[0] and head.grad is held[1]
        assert [g._values()._version if sparse else g._version for g in held] == versions
        assert all(torch.equal(g.to_dense(), grad.to_dense()) for g in held)


def test_parameters_without_gradient_stand_still_but_the_penalty_does_not():
    theta = torch.nn.Parameter(start())
    optimiser = masked_optimiser(theta, penalty=0.5)
    optimiser.step()
    assert torch.equal(theta, start()) and threshold(optimiser) == 0.5
    assert len(optimiser.state) == 0


BAD = [
    ("lr", -1e-9), ("lr", math.nan), ("penalty", -1.0), ("penalty", math.nan), ("eps", -1e-9), ("eps", math.nan),
    ("temperature", 0.0), ("temperature", -1.0), ("temperature", math.nan), ("rule", "rmsprop"),
    ("betas", (1.0, 0.9)), ("betas", (0.9, 1.0)), ("betas", (-0.1, 0.9)), ("betas", (0.9, math.nan)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD)
def test_values_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        AdaPrune([torch.nn.Parameter(start())], **{name: value})
    with pytest.raises(ValueError, match=name):
        AdaPrune([{"params": [torch.nn.Parameter(start())], name: value}])


def test_a_masked_group_needs_the_shared_threshold():
    with pytest.raises(ValueError, match="threshold"):
        AdaPrune([{"params": [torch.nn.Parameter(start())], "masked": True}])
    optimiser = AdaPrune([torch.nn.Parameter(start())])
    with pytest.raises(ValueError, match="threshold"):
        optimiser.add_param_group({"params": [torch.nn.Parameter(start())], "masked": True, "threshold": 0.0})
    assert len(optimiser.param_groups) == 1


def through_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_a_restored_state_takes_the_same_steps_bit_for_bit(rule, sparse):
    grads = [g if sparse else g.to_dense() for g in row_gradients(20)]
    theta = torch.nn.Parameter(start((10, 3)))
    optimiser = masked_optimiser(theta, lr=RATE[rule], penalty=1e-4, rule=rule)
    list(walk(optimiser, theta, grads[:10]))
    saved, values = through_file(optimiser.state_dict()), theta.detach().clone()
    expected = list(walk(optimiser, theta, grads[10:]))

    resumed = torch.nn.Parameter(values)
    other = masked_optimiser(resumed, lr=7.0, penalty=0.0, rule=rule)
    shared = other.param_groups[0]["threshold"]
    other.load_state_dict(saved)
    assert other.param_groups[0]["threshold"] is shared  # the tensor that the masked layers hold
    assert float(shared) == pytest.approx(10e-4) and other.param_groups[0]["lr"] == RATE[rule]
    found = list(walk(other, resumed, grads[10:]))
    assert all(torch.equal(a, b) and x == y for (a, x), (b, y) in zip(expected, found, strict=True))
    assert float(shared) == found[-1][1]
    assert float(saved["param_groups"][0]["threshold"]) == pytest.approx(10e-4)  # loading took a copy


def test_a_learning_rate_scheduler_drives_all_groups():
    theta, head = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    groups = [{"params": [theta], "masked": True, "threshold": zero(), "lr": 0.4}, {"params": [head], "lr": 0.1}]
    optimiser = AdaPrune(groups, rule="sgd")
    scheduler = LambdaLR(optimiser, lambda step: 1 / (1 + step))
    for _ in range(2):
        theta.grad, head.grad = torch.ones(1), torch.ones(1)
        optimiser.step()
        scheduler.step()
    # Rates 0.1 then 0.05; theta's 0.4 then 0.2, times the slope 1/4 (at -0.1 it is 0.249376).
    assert head.item() == pytest.approx(-0.15)
    assert theta.item() == pytest.approx(-0.1 - 0.2 * 0.249376, rel=1e-5)
    assert scheduler.get_last_lr() == pytest.approx([0.4 / 3, 0.1 / 3])


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**31), rule=st.sampled_from(RULES), sparse=st.booleans(),
    penalty=st.sampled_from([0.0, 1e-5]), recovery=st.booleans(),
)  # fmt: skip
def test_without_recovery_a_pruned_connection_never_comes_back(seed, rule, sparse, penalty, recovery):
    generator = torch.Generator().manual_seed(seed)
    theta = torch.nn.Parameter(start((30, 5), torch.float32, seed))
    optimiser = masked_optimiser(theta, lr=5 * RATE[rule], rule=rule, penalty=penalty, recovery=recovery)
    came_back, before = 0, theta.detach() > 0
    for _ in range(200):
        noise = torch.randn(30, 5, generator=generator) / 10
        rows = torch.randperm(30, generator=generator)[:15]
        theta.grad = torch.sparse_coo_tensor(rows[None], noise[:15], (30, 5)) if sparse else noise
        optimiser.step()
        after = theta.detach() > threshold(optimiser)
        came_back, before = came_back + int((after & ~before).sum()), after
    assert came_back > 0 if recovery else came_back == 0


# A problem small enough to know the best mask.


def masked_logistic(seed):
    """Masked logistic regression, d = 10, whose labels come from w0 with every second weight removed."""
    generator = torch.Generator().manual_seed(seed)
    w0 = torch.randn(10, dtype=torch.float64, generator=generator)
    w0 = w0.sign() * (0.4 + w0.abs())
    x = torch.randn(400, 10, dtype=torch.float64, generator=generator)
    y = (x @ (w0 * torch.tensor([1.0, 0.0] * 5, dtype=torch.float64)) > 0).double()
    return w0, lambda mask: torch.nn.functional.binary_cross_entropy_with_logits(x @ (w0 * mask), y)


def learn_mask(w0, loss_of_mask, seed, penalty=0.0, steps=600):
    """theta and threshold after full-batch AdaPrune from a normal start, with dL/dm at the hard mask."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.nn.Parameter(0.01 + 0.001 * torch.randn(10, dtype=torch.float64, generator=generator))
    optimiser = masked_optimiser(theta, lr=2e-4, penalty=penalty)
    for _ in range(steps):
        mask = (theta.detach() > threshold(optimiser)).double().requires_grad_()
        (theta.grad,) = torch.autograd.grad(loss_of_mask(mask), mask)
        optimiser.step()
    return theta.detach(), threshold(optimiser)


@pytest.mark.parametrize("seed", range(5))
def test_finds_the_best_of_all_masks(seed):
    w0, loss_of_mask = masked_logistic(seed)
    best, lowest = best_mask(loss_of_mask, 10)
    theta, level = learn_mask(w0, loss_of_mask, seed)
    found = float(loss_of_mask((theta > level).double()))
    assert found == pytest.approx(lowest, abs=1e-12), f"best {best}"
    assert lowest < 0.9 * float(loss_of_mask(torch.ones(10).double()))


@pytest.mark.parametrize("seed", range(5))
def test_finds_the_best_of_all_masks_of_one_size(seed):
    w0, loss_of_mask = masked_logistic(seed)
    best, lowest = best_mask(loss_of_mask, 10, kept=5)
    theta, _ = learn_mask(w0, loss_of_mask, seed)
    kept = torch.zeros(10, dtype=torch.float64).index_fill(0, theta.topk(5).indices, 1.0)
    by_magnitude = torch.zeros(10, dtype=torch.float64).index_fill(0, w0.abs().topk(5).indices, 1.0)
    assert float(loss_of_mask(kept)) == pytest.approx(lowest, abs=1e-12), f"best {best}"
    assert float(loss_of_mask(by_magnitude)) > lowest


def test_reference_search_tries_every_mask():
    wanted = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    assert best_mask(lambda mask: (mask - wanted).abs().sum(), 4) == ((1, 0, 1, 1), 0.0)
    assert best_mask(lambda mask: (mask - wanted).abs().sum(), 4, kept=1)[1] == 2.0
    tried = []
    best_mask(lambda mask: tried.append(tuple(mask.tolist())) or 0.0, 3)
    assert sorted(tried) == list(itertools.product((0.0, 1.0), repeat=3))
