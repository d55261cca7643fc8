"""Exercises of lessons 5 to 7: an independent implementation of each, its inputs, and common mistakes."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import entropy, norm
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from torch import Tensor

from adaprune.report import gains
from adaprune.teach.judging import Exercise

# Lesson 5

Runs = Sequence[tuple[str, int, str, float]]  # task, seed, method, score


def linear_share(linear: int, seen: int, unseen: int, sparsity: float) -> float:
    """The share of linear layers and seen rows that is removed if unseen rows are kept as long as possible."""
    gone = sparsity * (linear + seen + unseen)
    return min(1.0, gone / (linear + seen))


def paired_difference(runs: Runs, one: str, other: str) -> float:
    """The mean of ``one`` minus ``other`` over the pairs of task and seed that both have."""
    scores = {(task, seed, method): score for task, seed, method, score in runs}
    ours = {(task, seed): score for (task, seed, method), score in scores.items() if method == one}
    return float(np.mean([score - scores[*pair, other] for pair, score in ours.items() if (*pair, other) in scores]))


def _mean(runs: Runs, method: str) -> float:
    return float(np.mean([score for *_, by, score in runs if by == method]))


RUNS = (
    ("stsb", 0, "learned", 0.83), ("stsb", 0, "magnitude", 0.75), ("stsb", 1, "learned", 0.82),
    ("mrpc", 0, "magnitude", 0.68), ("mrpc", 0, "learned", 0.70), ("rte", 0, "learned", 0.55),
)  # fmt: skip

# Lesson 6


def majority_score(train: Sequence[int], dev: Sequence[int]) -> float:
    """The accuracy on dev of always predicting the most frequent label of train."""
    said = np.bincount(train).argmax()
    return float((np.asarray(dev) == said).mean())


def nearest_mean(vectors: Tensor, labels: Tensor, new: Tensor) -> np.ndarray:
    """The label whose mean vector is nearest, for each row of new; by scikit-learn."""
    return NearestCentroid().fit(vectors.numpy(), labels.numpy()).predict(new.numpy())


def share_of_gain(scores: Sequence[float], floors: Sequence[float], tuned: Sequence[float]) -> float:
    """The sum of the gains over the sum of fine-tuning's gains, for tasks that have room."""
    rows = np.array([scores, floors, tuned])
    score, floor, best = rows[:, rows[2] - rows[1] >= gains.ROOM]
    return float((score - floor).sum() / (best - floor).sum())


DRAW = torch.Generator().manual_seed(3)
LABELS = torch.tensor([0, 1] * 10)
CLOUDS = torch.randn(20, 3, generator=DRAW) + 2.0 * LABELS[:, None]
NEW = 1 + 1.5 * torch.randn(12, 3, generator=DRAW)

# Lesson 7


def to_gaps(mask: Tensor, base: Tensor) -> list[int]:
    """How many unchanged entries lie between each flip and the previous one."""
    gaps, count = [], 0
    for now, was in zip(mask.tolist(), base.tolist(), strict=True):
        if now == was:
            count += 1
        else:
            gaps.append(count)
            count = 0
    return gaps


def from_gaps(gaps: list[int], base: Tensor) -> Tensor:
    """The mask whose flips have these gaps."""
    mask, at = base.tolist(), -1
    for gap in gaps:
        at += gap + 1
        mask[at] = not mask[at]
    return torch.tensor(mask)


def least_bits(weights: int, flips: int) -> float:
    """Shannon's limit for flips that are equally likely everywhere."""
    return float(weights * entropy([flips / weights, 1 - flips / weights], base=2))


BASE = torch.tensor([1, 1, 1, 0, 0, 1, 0, 0, 1, 0], dtype=torch.bool)
MASK = torch.tensor([1, 0, 1, 0, 0, 0, 1, 0, 1, 0], dtype=torch.bool)

CLAIMS = {
    "share_negative": Exercise(
        lambda mean, deviation: float(norm.cdf(0, mean, deviation)),
        ((0.01, 0.001**0.5), (0.01, 0.01), (0.0, 3.0), (-0.5, 0.5)),
        {
            "That is the share above 0. The question is about the share below 0.":
                lambda mean, deviation: float(norm.sf(0, mean, deviation)),
            "You take the square root of the deviation, but it is already the root of the variance.":
                lambda mean, deviation: float(norm.cdf(0, mean, deviation**0.5)),
            "You square the deviation. Use it as it is.":
                lambda mean, deviation: float(norm.cdf(0, mean, deviation**2)),
        },
    ),
    "linear_share": Exercise(
        linear_share,
        ((10_616_832, 3_980_160, 7_740_288, 0.5), (100, 0, 0, 0.3), (100, 50, 150, 0.25), (100, 50, 150, 0.9)),
        {
            "Your share can exceed 1. Once all linear and seen weights are removed, it is 1, and unseen rows follow.":
                lambda linear, seen, unseen, s: s * (linear + seen + unseen) / (linear + seen),
            "You apply the sparsity to the linear layers and seen rows only. The unseen rows count in the total.":
                lambda linear, seen, unseen, s: s,
            "Seen rows can be removed as well, so divide by the linear layers and the seen rows together.":
                lambda linear, seen, unseen, s: min(1.0, s * (linear + seen + unseen) / linear),
        },
    ),
    "paired_difference": Exercise(
        paired_difference,
        ((RUNS, "learned", "magnitude"), (RUNS, "magnitude", "learned"), (RUNS[:2], "learned", "magnitude")),
        {
            "You subtract the means over all runs, so runs without a partner count on one side only. Pair them first.":
                lambda runs, one, other: _mean(runs, one) - _mean(runs, other),
            "The sign is wrong: a positive number means that `one` is better.":
                lambda runs, one, other: paired_difference(runs, other, one),
        },
    ),
    "majority_score": Exercise(
        majority_score,
        (([0, 1, 1], [1, 0, 1, 1]), ([0, 0, 1], [1, 1, 0, 1]), ([2, 2, 0, 1], [2, 0, 1])),
        {
            "You take the most frequent label of dev. Use the dev labels for nothing but the score.":
                lambda train, dev: float(np.bincount(dev).max() / len(dev)),
            "You score on the training labels. Count how often the answer is right on dev.":
                lambda train, dev: float(np.bincount(train).max() / len(train)),
        },
    ),
    "nearest_mean": Exercise(
        nearest_mean,
        ((CLOUDS, LABELS, NEW), (CLOUDS, 1 - LABELS, NEW), (CLOUDS[:3], LABELS[:3], NEW[:1])),
        {
            "You compare with single rows. First compute the mean of each class, then compare with the two means.":
                lambda v, y, new: KNeighborsClassifier(1).fit(v.numpy(), y.numpy()).predict(new.numpy()),
            "You choose the mean that is farthest away. Choose the nearest.":
                lambda v, y, new: 1 - nearest_mean(v, y, new),
        },
    ),
    "share_of_gain": Exercise(
        share_of_gain,
        (
            ([0.8], [0.6], [0.9]),
            ([0.83, 0.3], [0.8, 0.1], [0.85, 0.5]),
            ([0.70, 0.55, 0.6], [0.69, 0.53, 0.5], [0.71, 0.60, 0.8]),
        ),
        {
            "If fine-tuning gains less than 0.03 over the floor, the task has no room: leave it out of both sums.":
                lambda s, f, t: (sum(s) - sum(f)) / (sum(t) - sum(f)),
            "You average the shares of the tasks, so a task with a tiny room can dominate. Divide the sums instead.":
                lambda s, f, t: float(np.mean([(a - b) / (c - b) for a, b, c in zip(s, f, t, strict=True)
                                               if c - b >= gains.ROOM])),
            "You divide by fine-tuning's score. Subtract the floor from both first.":
                lambda s, f, t: float(np.sum(s) / np.sum(t)),
        },
    ),
    "to_gaps": Exercise(
        to_gaps,
        ((MASK, BASE), (BASE, MASK), (BASE, BASE), (~BASE, BASE)),
        {
            "You return the positions of the flips. Return how many unchanged entries come before each.":
                lambda m, b: torch.nonzero(m != b).flatten().tolist(),
            "Your gaps include the flip itself. Two adjacent flips have a gap of 0.":
                lambda m, b: [gap + 1 for gap in to_gaps(m, b)],
        },
    ),
    "from_gaps": Exercise(
        from_gaps,
        (([1, 3, 0], BASE), ([], BASE), ([0] * 10, BASE), ([9], BASE)),
        {
            "You return the flips. Turn them into a mask: it differs from base where there is a flip.":
                lambda gaps, base: from_gaps(gaps, base) != base,
        },
    ),
    "least_bits": Exercise(
        least_bits,
        ((10, 5), (10, 1), (1000, 42), (10_616_832, 445_907)),
        {
            "You use the logarithm to the base e. Bits need the base 2.":
                lambda weights, flips: least_bits(weights, flips) * math.log(2),
            "That is the number of bits for one weight. Multiply by the number of weights.":
                lambda weights, flips: least_bits(weights, flips) / weights,
        },
    ),
}  # fmt: skip
