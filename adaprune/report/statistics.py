"""Statistics over seeds: intervals, paired tests, Holm's correction, retention. NaN means too little data."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

LEVEL = 0.95
SIGNIFICANT = 0.05  # a corrected p below this
NO_SPREAD = 1e-12  # variation below this is rounding


def interval(
    strata: Sequence[ArrayLike], generator: np.random.Generator | int = 0, resamples: int = 2000
) -> tuple[float, float]:
    """The stratified bootstrap 95 % percentile interval of the mean over strata of the mean over seeds.

    Seeds are drawn with replacement within each stratum, that is, each task, and never across. With few seeds the
    interval is too narrow: with five normal scores it contains the true mean about 84 times in 100, not 95.

    Args:
        strata: for each task, its scores over seeds, (seeds,); one task is one stratum.
        generator: source of the resamples, or its seed: so an interval depends on its own scores only.
        resamples: how many.

    Raises:
        ValueError: no stratum, or an empty one.

    >>> interval([[0.7, 0.7]])
    (0.7, 0.7)
    """
    samples = [np.asarray(scores, dtype=float) for scores in strata]
    if not samples or not all(sample.size for sample in samples):
        raise ValueError("an interval needs at least one task, and each task a score")
    if min(sample.size for sample in samples) < 2:
        return float("nan"), float("nan")
    found = stats.bootstrap(
        samples,
        lambda *drawn, axis: np.mean([scores.mean(axis=axis) for scores in drawn], axis=0),
        n_resamples=resamples,
        confidence_level=LEVEL,
        method="percentile",
        rng=generator,
    ).confidence_interval
    return float(found.low), float(found.high)


def paired_test(ours: ArrayLike, theirs: ArrayLike) -> float:
    """The p-value of the paired two-tailed t-test for scores that are paired by seed, (seeds,) each.

        t = mean(d) / (std(d) / sqrt(n)),   d = ours - theirs,   n - 1 degrees of freedom

    NaN for fewer than two pairs, and if all differences are equal, which leaves t undefined.

    Raises:
        ValueError: the lengths differ.
    """
    ours, theirs = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    if ours.shape != theirs.shape:
        raise ValueError(f"pairs need as many scores on both sides, got {ours.shape} and {theirs.shape}")
    if ours.size < 2 or np.ptp(ours - theirs) < NO_SPREAD:
        return float("nan")
    return float(stats.ttest_rel(ours, theirs).pvalue)


def within_cells_test(differences: ArrayLike, cells: ArrayLike) -> float:
    """The double-tailed p-value that the mean over cells of the mean difference in each is 0, seeds being the noise.

        t = mean_c(m_c) / (s sqrt(sum_c 1/n_c) / C),   s^2 = sum_c sum_i (d_ci - m_c)^2 / (N - C),   N - C degrees

    of freedom: n_c differences with mean m_c in each of C cells, N in total. Cells are fixed effects: a difference that
    is large in one cell and small in another is not noise. NaN if no cell has two differences, or none has any spread.

    Args:
        differences: ours - theirs, (pairs,).
        cells: the cell of each difference, a task and its setting, (pairs,).

    Raises:
        ValueError: the lengths differ.

    >>> round(within_cells_test([0.1, 0.2, 0.7, 0.8], ["a", "a", "b", "b"]), 4)
    0.0061
    """
    mean, error, freedom = _within_cells(differences, cells)
    return float(2 * stats.t.sf(abs(mean) / error, freedom)) if error > 0 else float("nan")


def within_cells_interval(differences: ArrayLike, cells: ArrayLike) -> tuple[float, float]:
    """The 95 % interval of the mean over cells of the mean difference per cell, by the same t.

    >>> [round(end, 4) for end in within_cells_interval([0.1, 0.2, 0.7, 0.8], ["a", "a", "b", "b"])]
    [0.2979, 0.6021]
    """
    mean, error, freedom = _within_cells(differences, cells)
    half = stats.t.ppf(0.5 + LEVEL / 2, freedom) * error if error > 0 else float("nan")
    return float(mean - half), float(mean + half)


def _within_cells(differences: ArrayLike, cells: ArrayLike) -> tuple[float, float, int]:
    """The mean over cells, its standard error (NaN if unknown) and the degrees of freedom."""
    d, cells = np.asarray(differences, dtype=float), np.asarray(cells)
    if d.shape != cells.shape:
        raise ValueError(f"every difference is of one cell, got {d.shape} and {cells.shape}")
    groups = [d[cells == cell] for cell in np.unique(cells)]
    if not groups:
        return float("nan"), float("nan"), 0
    mean, freedom = float(np.mean([group.mean() for group in groups])), d.size - len(groups)
    if freedom < 1 or max(np.ptp(group) for group in groups) < NO_SPREAD:
        return mean, float("nan"), freedom
    variance = sum(((group - group.mean()) ** 2).sum() for group in groups) / freedom
    return mean, float(np.sqrt(variance * sum(1 / group.size for group in groups)) / len(groups)), freedom


def holm(p_values: ArrayLike) -> np.ndarray:
    """p-values (tests,), corrected for multiple tests by Holm's step-down rule; NaN means no test and does not count.

        p'_(i) = max over j <= i of  min(1, (m - j + 1) p_(j)),   p_(1) <= ... <= p_(m)

    >>> holm([0.01, 0.04, 0.03])
    array([0.03, 0.06, 0.06])
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")[: np.count_nonzero(~np.isnan(p))]  # NaN come last
    corrected = np.full(p.shape, np.nan)
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.maximum.accumulate(np.minimum(1, factors * p[order]))
    return corrected


def retention(score: float, finetuned: float) -> float:
    """The share of the fine-tuned model's score that is kept: score / finetuned; NaN unless finetuned is above 0.

    >>> retention(0.4, 0.8)
    0.5
    """
    return score / finetuned if finetuned > 0 else float("nan")
