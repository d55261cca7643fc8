"""Metrics, worked out on paper."""

import numpy as np
import pytest
import torch

from adaprune.data.metrics import score


def logits(*classes: int, num_labels: int = 2) -> np.ndarray:
    """Raw scores, (n, num_labels), whose largest is at the given class."""
    return np.eye(num_labels)[list(classes)] * 3 - 1


def test_f1_and_accuracy_by_hand():
    # Class 1: one hit, one false alarm, one miss, so precision = recall = 1/2; two of four rows are right.
    found = score(("accuracy", "f1"), logits(1, 1, 0, 0), [1, 0, 1, 0], 2)
    assert found == {"accuracy": 0.5, "f1": 0.5}
    # Two hits, one false alarm, no miss: 2 * 2 / (2 * 2 + 1) = 0.8.
    assert score(("f1",), logits(1, 1, 1, 0), [1, 0, 1, 0], 2)["f1"] == pytest.approx(0.8)


def test_matthews_by_hand():
    # TP 2, TN 1, FP 1, FN 0: (2 * 1 - 1 * 0) / sqrt(3 * 2 * 2 * 1) = 2 / sqrt(12).
    found = score(("matthews_correlation",), logits(1, 1, 1, 0), [1, 0, 1, 0], 2)
    assert found["matthews_correlation"] == pytest.approx(2 / 12**0.5)


def test_correlations_by_hand():
    # Ranks 1 2 4 3 against 1 2 3 4: 1 - 6 * 2 / (4 * 15) = 0.8, whatever the values are.
    found = score(("spearman", "pearson"), [[0.0], [1.0], [100.0], [2.0]], [1.0, 2.0, 3.0, 4.0], 1)
    assert found["spearman"] == pytest.approx(0.8)
    assert score(("pearson",), [1.0, 2.0, 3.0], [2.0, 4.0, 6.0], 1)["pearson"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("predictions", "labels"), [([2.5] * 3, [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [4.0] * 3), ([1.0], [2.0])]
)
def test_correlation_with_a_constant_is_zero_without_a_warning(predictions, labels):
    assert score(("spearman", "pearson"), predictions, labels, 1) == {"spearman": 0.0, "pearson": 0.0}


def test_nearly_constant_predictions_give_no_warning():
    found = score(("pearson",), 1e6 + np.array([0.0, 1e-9, 2e-9, 1e-3]) * 1e-6, [1.0, 2.0, 3.0, 4.0], 1)
    assert -1 <= found["pearson"] <= 1


@pytest.mark.parametrize("metric", ["f1", "f1_macro", "matthews_correlation"])
def test_one_predicted_class_gives_a_number_without_a_warning(metric):
    assert 0 <= score((metric,), logits(0, 0), [1, 0], 2)[metric] < 1
    assert np.isfinite(score((metric,), logits(0, 0), [0, 0], 2)[metric])


def test_tensors_of_any_float_type_are_taken():
    predictions = torch.tensor(logits(1, 0), dtype=torch.bfloat16, requires_grad=True)
    assert score(("accuracy",), predictions, torch.tensor([1, 1]), 2) == {"accuracy": 0.5}


def test_misfit_and_diverged_predictions_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 3\), expected \(2, 2\)"):
        score(("accuracy",), np.zeros((2, 3)), [0, 1], 2)
    with pytest.raises(ValueError, match="NaN or infinity"):
        score(("accuracy",), np.full((2, 2), np.nan), [0, 1], 2)
