"""The tasks' metrics, by their official names, from scikit-learn and scipy."""

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


def score(names: tuple[str, ...], predictions, labels, num_labels: int) -> dict[str, float]:
    """The named metrics of raw logits (n, num_labels) against labels (n,), n >= 1; arrays or tensors.

    With one label, predictions are values (n,) or (n, 1), without classification. F1 is that of class 1. A
    correlation with a constant on either side is undefined and reported as 0.0.

    >>> score(("accuracy",), [[0.2, 0.8], [0.9, 0.1]], [1, 1], num_labels=2)
    {'accuracy': 0.5}

    Raises:
        ValueError: shapes that do not fit, or predictions that are not finite.
    """
    predictions, labels = _to_numpy(predictions), _to_numpy(labels).reshape(-1)
    if len(labels) == 0 or predictions.size != len(labels) * num_labels:
        shape = (len(labels), num_labels)
        raise ValueError(f"predictions have shape {predictions.shape}, expected {shape} and at least one row")
    if not np.isfinite(predictions).all():
        raise ValueError("predictions hold NaN or infinity; has training diverged? try a lower learning rate")
    answers = predictions.reshape(len(labels), num_labels)
    if num_labels > 1:
        answers = answers.argmax(axis=1)
    else:  # float32 sums lose digits over a few thousand rows
        answers, labels = answers[:, 0].astype(np.float64), labels.astype(np.float64)
    return {name: float(_METRICS[name](labels, answers)) for name in names}


def _correlation(coefficient: Callable, labels: np.ndarray, predictions: np.ndarray) -> float:
    """A correlation coefficient; 0.0 if one side is constant, where it is undefined."""
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    with warnings.catch_warnings():  # scipy warns about nearly constant input, which a new head gives
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        result = coefficient(labels, predictions)
    return float(np.nan_to_num(getattr(result, "statistic", result)))  # scipy wraps it, scikit-learn does not


# Each takes the true labels and the answers, in this order.
_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy_score,
    "f1": partial(f1_score, zero_division=0),
    "f1_macro": partial(f1_score, average="macro", zero_division=0),
    "matthews_correlation": partial(_correlation, matthews_corrcoef),
    "pearson": partial(_correlation, stats.pearsonr),
    "spearman": partial(_correlation, stats.spearmanr),
}


def _to_numpy(values) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values  # numpy has no bfloat16
    return np.asarray(values)
