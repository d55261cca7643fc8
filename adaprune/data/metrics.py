"""The tasks' metrics, by their official names, from scikit-learn and scipy."""

import warnings
from collections.abc import Callable

import numpy as np
import scipy  # loads its parts when they are used
import torch

CORRELATIONS = {"spearman", "pearson", "matthews_correlation"}  # undefined for labels that are all equal


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
    return {name: float(_metric(name, labels, answers)) for name in names}


def metrics_of_own(classes: bool) -> tuple[str, ...]:
    """The metrics of a task that has none of its own; the first is the main one."""
    return ("accuracy", "f1_macro") if classes else ("spearman", "pearson")


def _correlation(coefficient: Callable, labels: np.ndarray, predictions: np.ndarray) -> float:
    """A correlation coefficient; 0.0 if one side is constant, where it is undefined."""
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    with warnings.catch_warnings():  # scipy warns about nearly constant input, which a new head gives
        warnings.simplefilter("ignore", scipy.stats.NearConstantInputWarning)
        result = coefficient(labels, predictions)
    return float(np.nan_to_num(getattr(result, "statistic", result)))  # scipy wraps it, scikit-learn does not


def _metric(name: str, labels: np.ndarray, answers: np.ndarray) -> float:
    """One metric, of the true labels and the answers."""
    from sklearn import metrics  # seconds, which a process that scores nothing need not wait

    match name:
        case "accuracy":
            return metrics.accuracy_score(labels, answers)
        case "f1":
            return metrics.f1_score(labels, answers, zero_division=0)
        case "f1_macro":
            return metrics.f1_score(labels, answers, average="macro", zero_division=0)
        case "matthews_correlation":
            return _correlation(metrics.matthews_corrcoef, labels, answers)
        case "pearson":
            return _correlation(scipy.stats.pearsonr, labels, answers)
        case "spearman":
            return _correlation(scipy.stats.spearmanr, labels, answers)
    raise ValueError(f"unknown metric {name!r}")


def _to_numpy(values) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values  # numpy has no bfloat16
    return np.asarray(values)
