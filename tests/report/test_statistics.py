"""Statistics over seeds: by hand, against known cases, and against scipy by another route."""

import math

import numpy as np
import pytest
from scipy import stats

from adaprune.report.statistics import (
    holm,
    interval,
    paired_test,
    retention,
    within_cells_interval,
    within_cells_test,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_interval_of_two_scores_is_their_range():
    """Means of two draws are 0, 1/2 and 1 with chances 1/4, 1/2 and 1/4: both 2.5 % points are the ends."""
    assert interval([[0.0, 1.0]], rng()) == (0.0, 1.0)


def test_interval_agrees_with_a_bootstrap_by_hand():
    """Strata of unequal size: each is drawn for itself, and tasks count alike whatever their seeds."""
    first, second = [0.1, 0.4, 0.2, 0.5], [0.9, 0.7]
    draw = rng(1)
    means = [(draw.choice(first, 4).mean() + draw.choice(second, 2).mean()) / 2 for _ in range(20000)]
    expected = np.quantile(means, [0.025, 0.975])
    assert interval([first, second], rng(), resamples=20000) == pytest.approx(expected, abs=0.005)


def test_interval_is_narrower_within_strata_than_across():
    """Two tasks of very different level: pooling them would make the level's spread look like the seeds'."""
    easy, hard = [0.90, 0.91, 0.92], [0.10, 0.11, 0.12]
    low, high = interval([easy, hard], rng())
    assert 0.49 < low < high < 0.53
    low, high = interval([easy + hard], rng())
    assert high - low > 0.3


def test_interval_holds_the_mean_of_five_scores_about_84_times_in_100():
    draw, held = rng(2), 0
    for _ in range(300):
        low, high = interval([draw.normal(size=5)], draw, resamples=300)
        held += low <= 0 <= high
    assert 0.76 < held / 300 < 0.90


def test_interval_follows_its_generator():
    scores = [rng(5).normal(size=7)]
    assert interval(scores, rng(0)) == interval(scores, rng(0)) != interval(scores, rng(1))


def test_one_seed_has_no_interval():
    assert all(map(math.isnan, interval([[0.7]], rng())))
    assert all(map(math.isnan, interval([[0.7, 0.8], [0.7]], rng())))


@pytest.mark.parametrize("strata", [[], [[]], [[0.5, 0.6], []]])
def test_interval_of_nothing_is_refused(strata):
    with pytest.raises(ValueError, match="at least one task, and each task a score"):
        interval(strata, rng())


def test_paired_test_by_hand():
    """Differences 1, 2, 3: t = 2 / (1 / sqrt 3) = 2 sqrt 3, two degrees of freedom; P has a closed form there."""
    t = 2 * math.sqrt(3)
    assert paired_test([2, 4, 6], [1, 2, 3]) == pytest.approx(1 - t / math.sqrt(t**2 + 2), rel=1e-9)


def test_paired_test_is_the_one_sample_test_of_the_differences_and_double_tailed():
    ours, theirs = rng(3).normal(size=(2, 6))
    assert paired_test(ours, theirs) == pytest.approx(stats.ttest_1samp(ours - theirs, 0).pvalue)
    assert paired_test(ours, theirs) == pytest.approx(paired_test(theirs, ours))


def test_paired_test_says_nothing_where_nothing_can_be_said():
    for ours, theirs in [([0.5], [0.4]), ([], []), ([0.5, 0.6], [0.5, 0.6]), ([0.3, 0.4, 0.5], [0.1, 0.2, 0.3])]:
        assert math.isnan(paired_test(ours, theirs))
    with pytest.raises(ValueError, match="as many scores on both sides"):
        paired_test([0.1, 0.2], [0.1])


def test_holm_of_a_known_case():
    """The smallest times 4, the next times 3, then never below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1, 1])
    assert holm([0.2]) == pytest.approx([0.2])
    assert holm([]).shape == (0,)


def test_holm_passes_by_what_was_not_tested():
    assert holm([math.nan, 0.01, math.nan, 0.04]) == pytest.approx([math.nan, 0.02, math.nan, 0.04], nan_ok=True)


def test_holm_lies_between_none_and_bonferroni():
    p = rng(4).uniform(size=9) ** 3
    assert (holm(p) >= p).all() and (holm(p) <= np.minimum(1, 9 * p)).all()
    assert (np.argsort(holm(p)[np.argsort(p)], kind="stable") == np.arange(9)).all()


def test_retention():
    assert retention(0.4, 0.8) == 0.5
    assert math.isnan(retention(0.4, 0.0)) and math.isnan(retention(0.4, -0.1)) and math.isnan(retention(0.4, math.nan))


def test_within_cells_test_by_regression():
    """The cells' means of a linear model with one level a cell, as `lstsq` gives it, and the contrast's t."""
    cells = np.array([0, 0, 0, 1, 1, 2])  # the last cell has one seed: it counts, and says nothing of the noise
    d = np.array([0.2, 0.4, 0.3, -0.1, 0.1, 0.5])
    design = np.eye(3)[cells]
    means, (residual,), *_ = np.linalg.lstsq(design, d)
    weights = np.full(3, 1 / 3)
    error = np.sqrt(residual / 3 * weights @ np.linalg.inv(design.T @ design) @ weights)
    assert within_cells_test(d, cells) == pytest.approx(2 * stats.t.sf(weights @ means / error, 3))


def test_within_cells_test_of_one_cell_is_students():
    d = [0.3, 0.1, 0.4, 0.2]
    assert within_cells_test(d, ["a"] * 4) == pytest.approx(stats.ttest_1samp(d, 0).pvalue)


def test_the_interval_within_cells_holds_zero_exactly_where_the_test_is_not_significant():
    """By scipy, for one cell, where it is the plain interval of the mean; with several, at p = 0.05 it ends at 0."""
    d = [0.1, 0.4, 0.3, -0.1]
    plain = stats.t.interval(0.95, 3, loc=np.mean(d), scale=stats.sem(d))
    assert within_cells_interval(d, ["a"] * 4) == pytest.approx(plain)
    cells = ["a", "a", "b", "b", "b"]
    for shift in np.linspace(-0.6, 0.6, 25):
        moved = np.array([0.0, 0.2, 0.1, 0.2, 0.3]) + shift
        low, high = within_cells_interval(moved, cells)
        assert (low <= 0 <= high) == (within_cells_test(moved, cells) >= 0.05)
    assert all(map(math.isnan, within_cells_interval([0.1, 0.2], ["a", "b"])))


def test_within_cells_test_needs_seeds_that_spread():
    assert math.isnan(within_cells_test([0.1, 0.2], ["a", "b"])) and math.isnan(within_cells_test([], []))
    assert math.isnan(within_cells_test([0.1, 0.1, 0.5, 0.5], ["a", "a", "b", "b"]))
    with pytest.raises(ValueError, match="every difference is of one cell"):
        within_cells_test([0.1, 0.2], ["a"])
