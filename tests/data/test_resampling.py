"""The bootstrap over dev rows: by hand, with the same samples for every run, and of the right width."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaprune.data.metrics import score
from adaprune.data.resampling import RESAMPLES, resampled


def places_drawn(rows):
    """Which rows each sample took, as the metric sees them."""
    seen = []
    resampled(lambda said, true: seen.append((said.copy(), true.copy())) or 0.0, np.arange(rows), np.arange(rows))
    assert all(np.array_equal(said, true) for said, true in seen)  # a row keeps its own label
    return np.stack([said for said, _ in seen])


def test_it_is_the_metric_of_rows_drawn_with_replacement_by_hand():
    said, true = np.array([1, 0, 1, 1, 0]), np.array([1, 1, 1, 0, 0])  # right on rows 0, 2 and 4
    found = resampled(lambda s, t: float((s == t).mean()), said, true)
    generator = np.random.default_rng(5)
    by_hand = [np.isin(generator.integers(5, size=5), [0, 2, 4]).mean() for _ in range(RESAMPLES)]
    assert found.dtype == np.float32 and found.shape == (300,)
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)


def test_the_samples_of_old_records_are_those_of_today():
    """Kept scores can be paired with new ones only while numpy draws as it did."""
    assert places_drawn(8)[:2].tolist() == [[5, 2, 1, 7, 1, 2, 5, 6], [5, 6, 0, 3, 4, 3, 3, 2]]


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 60), seed=st.integers(0, 9))
def test_samples_depend_on_the_number_of_rows_alone(rows, seed):
    np.random.seed(seed)
    one = places_drawn(rows)
    random.random(), torch.rand(1), np.random.rand(3)
    assert np.array_equal(one, places_drawn(rows)) and one.shape == (RESAMPLES, rows)
    assert one.min() >= 0 and one.max() < rows


def test_samples_of_other_numbers_of_rows_are_others():
    assert not np.array_equal(places_drawn(40)[:, :10] % 10, places_drawn(10))
    counts = np.bincount(places_drawn(50).ravel(), minlength=50)
    assert counts.min() > 200 and counts.max() < 400  # each row about 300 times


def test_two_runs_are_judged_on_the_same_rows_so_their_difference_is_narrow():
    """Runs that differ on one row of 400 differ in each sample by how often that row was drawn, and by no more."""
    true = np.arange(400) % 2
    one = np.where(np.arange(400) < 300, true, 1 - true)
    other = one.copy()
    other[7] = 1 - other[7]
    accuracy = lambda s, t: float((s == t).mean())  # noqa: E731
    a, b = (resampled(accuracy, said, true).astype(float) for said in (one, other))
    times = (places_drawn(400) == 7).sum(1)
    np.testing.assert_allclose((a - b) * 400, times, atol=1e-3)
    assert a.std() == pytest.approx(math.sqrt(0.75 * 0.25 / 400), rel=0.15)  # the binomial's
    assert (a - b).std() < a.std() / 5


def test_no_global_random_state_is_touched():
    np.random.seed(0)
    torch.manual_seed(0)
    before, tensor = np.random.get_state()[1].copy(), torch.get_rng_state()
    places_drawn(30)
    assert np.array_equal(before, np.random.get_state()[1]) and torch.equal(tensor, torch.get_rng_state())


@pytest.mark.parametrize("metric", ["accuracy", "f1", "f1_macro", "matthews_correlation", "spearman", "pearson"])
def test_samples_without_a_class_or_without_spread_still_have_a_score(metric):
    """Of three rows one sample in nine holds one row alone: every official metric gives it a finite score."""
    labels = np.array([0, 0, 1])
    if metric in ("spearman", "pearson"):
        said, outputs = np.array([0.1, 0.3, 0.2]), 1
    else:
        said, outputs = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), 2
    found = resampled(lambda s, t: score((metric,), s, t, outputs)[metric], said, labels)
    assert np.isfinite(found).all() and len(np.unique(found)) > 1
