"""Schedules by hand, and each control bringing a drifting theta to the asked sparsity."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaprune.masks.schedules import (
    CONTROLS,
    SparsityControl,
    cubic_sparsity,
    quantile_threshold,
    slanted_triangular,
    warmup_linear,
)
from adaprune.masks.theta import initial_theta


def zero():
    return torch.zeros((), dtype=torch.float64)


# Learning rates.


def test_slanted_triangular_by_hand():
    # T = 100, cut 0.1: peak at 10. Halfway up p = 1/2: (1 + 15.5) / 32; halfway down (step 55) the same.
    assert slanted_triangular(5, 100) == pytest.approx(16.5 / 32)
    assert slanted_triangular(55, 100) == pytest.approx(16.5 / 32)
    # A quarter of the way down: p = 3/4. Cut 0.25, ratio 5: rise over 25 steps from 1/5.
    assert slanted_triangular(32, 98, cut=10 / 98) == pytest.approx((1 + 0.75 * 31) / 32)
    assert slanted_triangular(5, 100, cut=0.25, ratio=5) == pytest.approx((1 + 0.2 * 4) / 5)


def test_warmup_linear_by_hand():
    assert [warmup_linear(step, 10, warmup=0.2) for step in (1, 2, 4, 9)] == pytest.approx([0.5, 1, 0.75, 0.125])


@pytest.mark.parametrize("schedule", [slanted_triangular, warmup_linear])
@given(total=st.integers(2, 3000), data=st.data())
def test_rates_stay_in_the_unit_interval_and_peak_once(schedule, total, data):
    step = data.draw(st.integers(0, total + 5))
    assert 0 <= schedule(step, total) <= 1
    peak = max(1, int(total * 0.1))
    assert schedule(peak, total) == 1
    if step < peak:
        assert schedule(step, total) < schedule(step + 1, total)
    elif step < total:
        assert schedule(step, total) > schedule(step + 1, total)


# Sparsity.


def test_cubic_sparsity_by_hand():
    # From 0.1 to 0.9 in steps 10 ... 20: halfway 0.9 - 0.8 / 8; at 1/5 of the way 0.9 - 0.8 * 0.512.
    found = [cubic_sparsity(step, 10, 20, 0.9, initial=0.1) for step in (0, 10, 12, 15, 20, 99)]
    assert found == pytest.approx([0.1, 0.1, 0.9 - 0.8 * 0.512, 0.8, 0.9, 0.9])


def sparsity_of(thetas, level):
    return (torch.cat([theta.flatten() for theta in thetas]) <= level).double().mean()


def test_quantile_is_the_value_that_a_share_does_not_exceed():
    parts = [torch.tensor([[5.0, 1.0], [4.0, 2.0]]), torch.tensor([3.0, 0.0])]
    assert quantile_threshold(parts, 0.5) == 2.0
    assert quantile_threshold(parts, 1.0) == 5.0
    assert sparsity_of(parts, 2.0) == 0.5


@pytest.mark.parametrize("lowest", [0.01, 0.0, -0.5, 1e-9, 1e4])
def test_a_quantile_of_nothing_is_below_every_theta(lowest):
    theta = torch.tensor([lowest, 2e4])
    assert sparsity_of([theta], quantile_threshold([theta], 0.0)) == 0


def test_a_large_theta_is_sampled_to_the_stated_accuracy():
    # Columns differ, as those of trained weights do: a stride that shares a factor with the width sees few of them.
    generator = torch.Generator().manual_seed(0)
    scale = torch.exp(0.5 * torch.randn(1024, generator=generator))
    theta = torch.randn(8192, 1024, generator=generator).abs() * scale
    for sparsity in (0.2, 0.5, 0.9):
        level = quantile_threshold([theta], sparsity)
        assert sparsity_of([theta], level) == pytest.approx(sparsity, abs=0.002)


@pytest.mark.parametrize("shape", [(100, 77), (7700,)])
def test_small_thetas_are_not_sampled(shape):
    theta = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert sparsity_of([theta, theta + 1e-4], quantile_threshold([theta, theta + 1e-4], 0.3)) == pytest.approx(0.3)


# Controls.


def drift(kind, target, end, steps, gamma=0.0, recovery=True, noise=1e-4):
    """Sparsity after each of ``steps`` noisy steps under a control, until it stops; and the thresholds."""
    generator = torch.Generator().manual_seed(0)
    theta = 0.01 + 0.001 * torch.randn(4000, generator=generator)
    control, level = SparsityControl(kind, target, end, recovery=recovery), zero()
    sparsities, levels = [], []
    for step in range(1, steps + 1):
        theta = theta + noise * torch.randn(4000, generator=generator)
        level.add_(gamma)
        stopped = control.update(step, [theta[:1500], theta[1500:]], level)
        sparsities.append(control.sparsity([theta], level))
        levels.append(float(level))
        if stopped:
            break
    return sparsities, levels


@pytest.mark.parametrize("target", [0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["feedback", "cubic"])
def test_the_target_stands_at_the_asked_step_and_afterwards(kind, target):
    sparsities, levels = drift(kind, target, end=120, steps=150)
    assert len(sparsities) == 150
    assert sparsities[119] == pytest.approx(target, abs=0.005)
    assert sparsities[59] < sparsities[119] + 1e-9 and sparsities[0] < 0.9 * target
    assert all(value == pytest.approx(target, abs=0.02) for value in sparsities[119:])
    assert kind == "cubic" or levels == sorted(levels)


@pytest.mark.parametrize("target", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["feedback", "cubic"])
def test_without_recovery_sparsity_only_rises_and_the_target_is_reached(kind, target):
    sparsities, _ = drift(kind, target, end=120, steps=150, recovery=False, noise=1e-4)
    assert sparsities == sorted(sparsities)
    assert sparsities[119:] == pytest.approx([target] * 31, abs=0.001)


@pytest.mark.parametrize("kind", ["feedback", "cubic"])
def test_without_recovery_what_is_pruned_stays_pruned(kind):
    generator = torch.Generator().manual_seed(1)
    theta, level = 0.01 + 0.001 * torch.randn(1000, generator=generator), zero()
    control, pruned = SparsityControl(kind, 0.6, 60, recovery=False), torch.zeros(1000, dtype=torch.bool)
    for step in range(1, 81):
        theta += 5e-4 * torch.randn(1000, generator=generator)
        control.update(step, [theta], level)
        (kept,) = control.kept([theta], level)
        assert torch.equal(kept, theta > -math.inf) and not (pruned & kept).any()
        pruned = ~kept
    assert pruned.float().mean() == pytest.approx(0.6, abs=0.001)


def test_what_is_kept_by_hand():
    thetas, shared = [torch.tensor([-math.inf, 1.0, 2.0]), torch.tensor([3.0, 4.0])], zero().fill_(2.0)
    own = torch.tensor([0.0, 3.0], dtype=torch.float64)  # of each matrix
    recovering, final = (SparsityControl("cubic", 0.5, 10, recovery=recovery) for recovery in (True, False))
    for level, expected in ((shared, [[0, 0, 0], [1, 1]]), (own, [[0, 1, 1], [0, 1]])):
        assert [mask.int().tolist() for mask in recovering.kept(thetas, level)] == expected
        assert recovering.sparsity(thetas, level) == pytest.approx(1 - sum(map(sum, expected)) / 5)
        assert [mask.int().tolist() for mask in final.kept(thetas, level)] == [[0, 1, 1], [1, 1]]
        assert final.sparsity(thetas, level) == pytest.approx(1 / 5)


def test_equal_thetas_are_not_pruned_all_at_once():
    level = zero()
    SparsityControl("cubic", 0.5, 100).update(5, [torch.full((1000,), 0.01)], level)
    assert sparsity_of([torch.full((1000,), 0.01)], float(level)) == 0
    two = torch.cat([torch.full((500,), 0.01), torch.full((500,), 0.02)])
    assert quantile_threshold([two], 0.9) == pytest.approx(0.01)


@pytest.mark.parametrize("target", [0.2, 0.5, 0.9])
def test_penalty_stops_as_soon_as_the_target_is_exceeded(target):
    sparsities, levels = drift("penalty", target, end=1, steps=5000, gamma=1e-5)
    assert len(sparsities) < 2000
    assert sparsities[-1] == pytest.approx(target, abs=0.005) and sparsities[-1] > target
    assert all(value <= target for value in sparsities[:-1])
    assert levels[-1] == pytest.approx(1e-5 * len(levels))


@pytest.mark.parametrize("end", [1, 2, 7, 39, 40, 101])
@pytest.mark.parametrize("kind", ["feedback", "cubic"])
def test_any_number_of_steps_will_do(kind, end):
    sparsities, _ = drift(kind, 0.7, end=end, steps=end)
    assert sparsities[-1] == pytest.approx(0.7, abs=0.005)


@pytest.mark.parametrize("kind", CONTROLS)
def test_sparsity_zero_prunes_nothing_and_never_stops(kind):
    sparsities, _ = drift(kind, 0.0, end=50, steps=60, gamma=1e-3)
    assert sparsities == [0.0] * 60


@pytest.mark.parametrize("kind", CONTROLS)
@pytest.mark.parametrize("recovery", [True, False])
def test_a_control_has_no_memory(kind, recovery):
    # A resumed run makes a new one: at any step it must move a given threshold as the old one would.
    generator = torch.Generator().manual_seed(3)
    theta, level = 0.01 + 0.003 * torch.randn(500, generator=generator), zero()
    lasting = SparsityControl(kind, 0.6, 60, recovery=recovery)
    for step in range(1, 81):
        theta = theta + 1e-4 * torch.randn(500, generator=generator)
        level.add_(1e-5)
        copied, twin = level.clone(), theta.clone()
        stop = lasting.update(step, [theta], level)
        assert SparsityControl(kind, 0.6, 60, recovery=recovery).update(step, [twin], copied) == stop
        assert torch.equal(theta, twin)
        assert torch.equal(copied, level)
    assert float(level) > 0 and level.dtype == torch.float64  # without recovery too: the centre of the slope


def test_cubic_follows_its_schedule():
    sparsities, _ = drift("cubic", 0.8, end=100, steps=100)
    for step in (5, 25, 50, 75, 100):
        assert sparsities[step - 1] == pytest.approx(cubic_sparsity(step, 0, 100, 0.8), abs=1e-3)


def test_feedback_shares_the_way_among_the_steps_left():
    # Theta stands still at 1 ... 10; half of it lies at or below 5. From 0 in 4 steps: 1.25 each.
    level, theta = zero(), torch.arange(1.0, 11.0)
    found = []
    for step in range(1, 6):
        SparsityControl("feedback", 0.5, 4).update(step, [theta], level)
        found.append(float(level))
    assert found == pytest.approx([1.25, 2.5, 3.75, 5.0, 5.0])


def test_feedback_never_lowers_the_threshold():
    level = torch.tensor(9.0, dtype=torch.float64)
    for step in (1, 4, 5):
        SparsityControl("feedback", 0.5, 4).update(step, [torch.arange(1.0, 11.0)], level)
        assert float(level) == 9.0


def test_unknown_control_and_no_steps_are_refused():
    with pytest.raises(ValueError, match="penalty, feedback, cubic, got 'magic'"):
        SparsityControl("magic", 0.5, 10)
    for kind in ("feedback", "cubic"):
        with pytest.raises(ValueError, match="0.5 cannot be reached in 0 steps: train for longer"):
            SparsityControl(kind, 0.5, 0)


def test_an_impossible_penalty_is_refused_with_what_would_do():
    # Theta 0.01 ... 0.1; its 0.5 quantile is 0.05. 1000 steps of 3e-6 give 0.003: 16667 steps, or gamma 5e-5.
    theta = torch.arange(1, 11, dtype=torch.float64) / 100
    control = SparsityControl("penalty", 0.5, 1)
    told = r"penalty=3e-06 .*0\.5.*1000 steps.*needs 16667 steps, or a penalty of 5.05e-05, or none: it then adapts"
    with pytest.raises(ValueError, match=told):
        control.check([theta], 1000, 3e-6, 0.0)
    with pytest.raises(ValueError, match="needs inf steps"):
        control.check([theta], 1000, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"needs 1667 steps, or a penalty of 2.02e-05"):
        control.check([theta], 1000, 0.0, 3e-5)


@given(mean=st.floats(1e-3, 10), steps=st.integers(1, 10_000), rate=st.sampled_from([0.0, 1e-9]))
def test_what_the_refusal_asks_for_is_enough(mean, steps, rate):
    control, theta = SparsityControl("penalty", 0.5, 1), torch.full((10,), mean)
    with pytest.raises(ValueError) as refusal:
        control.check([theta], steps, 1e-8, rate)
    needed, gamma = re.search(r"needs (\d+) steps, or a penalty of (\S+),", str(refusal.value)).groups()
    assert control.check([theta], steps, float(gamma), rate) is None
    assert control.check([theta], int(needed) + 1, 1e-8, rate) is None


def test_check_lets_other_controls_and_sparsity_zero_pass():
    theta = torch.ones(10)
    assert SparsityControl("feedback", 0.5, 1).check([theta], 1, 0.0, 0.0) is None
    assert SparsityControl("cubic", 0.5, 1).check([theta], 1, 0.0, 0.0) is None
    assert SparsityControl("penalty", 0.0, 1).check([theta], 1, 0.0, 0.0) is None


# Point 1 of the paper's inconsistencies: gamma = 2e-7 at batch 8, 90 % of the training rows. (rows, epochs, reach)
PAPER = {"stsb": (5_749, 5, 0.0006), "sst2": (67_349, 3, 0.0045), "mnli": (392_702, 2, 0.018)}


@pytest.mark.parametrize("task", PAPER)
def test_the_printed_gamma_moves_theta_by_as_much_as_the_notes_say(task):
    rows, epochs, reach = PAPER[task]
    steps = epochs * math.ceil(0.9 * rows / 8)
    assert steps * 2e-7 == pytest.approx(reach, rel=0.12)
    theta = initial_theta({"w": torch.zeros(100, 50)}, "normal", torch.Generator().manual_seed(0))["w"]
    control = SparsityControl("penalty", 0.5, 1)
    if task == "mnli":  # 0.018 is more than theta's mean of 0.01
        assert control.check([theta], steps, 2e-7, 0.0) is None
    else:
        with pytest.raises(ValueError, match=f"{steps} steps of at most 2e-07"):
            control.check([theta], steps, 2e-7, 0.0)
