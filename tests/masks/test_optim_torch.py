"""AdaPrune keeps torch's conventions for optimisers, and what is pruned for good stays so under its steps."""

import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LambdaLR

from adaprune.masks.optim import AdaPrune
from adaprune.masks.schedules import CONTROLS, SparsityControl
from tests.masks.small_theta import (
    RATE,
    RULES,
    gradients,
    masked_optimiser,
    row_gradients,
    start,
    threshold,
    walk,
    zero,
)


def test_defaults_are_the_papers():
    (group,) = AdaPrune([torch.nn.Parameter(start())]).param_groups
    assert {key: group[key] for key in ("lr", "penalty", "temperature", "betas", "masked")} == {
        "lr": 2e-5, "penalty": 0.0, "temperature": 1.0, "betas": (0.9, 0.999), "masked": False,
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


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sparse", [True, False])
def test_step_never_writes_a_gradient(rule, sparse):
    theta, head = torch.nn.Parameter(start((10, 3))), torch.nn.Parameter(start((10, 3)))
    groups = [{"params": [theta], "masked": True, "threshold": zero()}, {"params": [head]}]
    optimiser = AdaPrune(groups, rule=rule, lr=0.1)
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


def test_hooks_set_before_a_state_is_restored_follow_the_restored_settings():
    # load_state_dict replaces the groups; a resumed run sets its hooks first.
    theta = torch.nn.Parameter(start())
    optimiser = masked_optimiser(theta, lr=1.0, rule="sgd")
    optimiser.step_in_backward()
    optimiser.load_state_dict(masked_optimiser(torch.nn.Parameter(start()), lr=0.25, rule="sgd").state_dict())
    (theta - theta.detach()).sum().backward()
    soft = torch.sigmoid(start())
    torch.testing.assert_close(theta.detach(), start() - 0.25 * soft * (1 - soft))
    optimiser.param_groups[0]["lr"] = 0.0
    theta.sum().backward()
    torch.testing.assert_close(theta.detach(), start() - 0.25 * soft * (1 - soft))


@pytest.mark.parametrize("rule", RULES)
def test_while_nothing_is_pruned_theta_takes_the_steps_that_it_takes_around_0(rule):
    # A threshold of minus infinity has no slope of its own, and no penalty lifts it; theta learns all the same.
    theta, twin = (torch.nn.Parameter(start()) for _ in range(2))
    optimiser, other = (masked_optimiser(t, lr=RATE[rule], rule=rule) for t in (theta, twin))
    optimiser.param_groups[0].update(penalty=0.1)
    optimiser.param_groups[0]["threshold"].fill_(-math.inf)
    both = zip(walk(optimiser, theta, gradients(5)), walk(other, twin, gradients(5)), strict=True)
    for (ours, level), (theirs, at_0) in both:
        assert torch.equal(ours, theirs) and (level, at_0) == (-math.inf, 0)
    assert (theta != start()).all()


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
    kind=st.sampled_from(CONTROLS), recovery=st.booleans(),
)  # fmt: skip
def test_without_recovery_a_pruned_connection_never_comes_back(seed, rule, sparse, kind, recovery):
    generator = torch.Generator().manual_seed(seed)
    theta = torch.nn.Parameter(start((30, 5), torch.float32, seed))
    penalty = 1e-5 if kind == "penalty" else 0.0
    optimiser = masked_optimiser(theta, lr=5 * RATE[rule], rule=rule, penalty=penalty)
    control, level = SparsityControl(kind, 0.5, 100, recovery=recovery), optimiser.param_groups[0]["threshold"]
    came_back, before = 0, torch.ones(30, 5, dtype=torch.bool)
    for step in range(1, 201):
        noise = torch.randn(30, 5, generator=generator) / 10
        rows = torch.randperm(30, generator=generator)[:15]
        some = torch.sparse_coo_tensor(rows[None], noise[:15], (30, 5), check_invariants=False)
        theta.grad = some if sparse else noise
        optimiser.step()
        control.update(step, [theta], level)
        (after,) = control.kept([theta], level)
        assert recovery or torch.equal(theta.isfinite(), after)  # what is pruned is at minus infinity, the rest is not
        came_back, before = came_back + int((after & ~before).sum()), after
    assert came_back > 0 if recovery else came_back == 0
    assert not after.all()
