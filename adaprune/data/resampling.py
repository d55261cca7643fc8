"""The bootstrap over dev rows: the same resamples for every run on a dev split, so that runs can be paired."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RESAMPLES = 300


def resampled(metric: Callable[[np.ndarray, np.ndarray], float], predictions: np.ndarray, labels: np.ndarray):
    """The metric on ``RESAMPLES`` samples of the rows, drawn with replacement: float32, (RESAMPLES,).

    The rows drawn depend only on their number. So two runs on one dev split are scored on the same samples, and the
    spread of their difference is that of the paired bootstrap (Efron and Tibshirani 1993, chapter 16).
    """
    rows = len(labels)
    generator = np.random.default_rng(rows)
    draws = (generator.integers(rows, size=rows) for _ in range(RESAMPLES))
    return np.array([metric(predictions[drawn], labels[drawn]) for drawn in draws], dtype=np.float32)
