"""zero_shot: only the similarity of two texts' vectors, which is what a sentence encoder was made for."""

import time

import numpy as np
import torch

from adaprune.methods.probe import text_vectors
from adaprune.runs import Method
from adaprune.training import Fit, Job, Outcome


def zero_shot(job: Job) -> Outcome:
    """Answers with the cosine of the two texts' vectors, under the encoder's mask if it has one.

        s = cos(u, v);   two classes by the side of a cut: z = (-a (s - c), a (s - c)),  a = 1 or -1

    The cut c and the side a are those with the best main metric on the training rows: only two numbers are learned. A
    correlation needs neither.

    Raises:
        ValueError: a task with single texts, or with more than two classes.
    """
    start, classes = time.monotonic(), job.task.num_labels
    if "text_pair" not in job.task.splits["train"].column_names:
        raise ValueError(f"zero_shot compares two texts, but {job.task.name} has one: use method='probe'")
    if classes > 2:
        raise ValueError(f"zero_shot separates two classes, but {job.task.name} has {classes}: use method='probe'")
    cosines = {split: _cosines(*text_vectors(job, split)) for split in job.task.splits}
    if not job.task.labels:
        weights, answers = [], {split: values[:, None] for split, values in cosines.items()}
    else:
        cut, side = _cut(job, cosines["train"])
        weights = [torch.tensor([cut, side], dtype=torch.float32)]
        answers = {split: side * np.stack([cut - values, values - cut], axis=1) for split, values in cosines.items()}
    done = Fit(seconds=time.monotonic() - start, examples=len(cosines["train"]))
    return Outcome(done, updates=weights, answer=answers.__getitem__)


def _cosines(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
    return (u * v).sum(1) / np.maximum(lengths, 1e-12)


def _cut(job: Job, cosines: np.ndarray) -> tuple[float, float]:
    """The cut (one of 99 quantiles) and the side of class 1 with the best main metric on the training rows."""
    labels = np.asarray(job.task.splits["train"]["label"])
    tried = [(cut, side) for cut in np.quantile(cosines, np.linspace(0.01, 0.99, 99)) for side in (1.0, -1.0)]

    def metric(cut: float, side: float) -> float:
        logits = side * np.stack([cut - cosines, cosines - cut], axis=1)
        return job.task.metrics(logits, labels)[job.task.primary]

    return max(tried, key=lambda pair: metric(*pair))


ZERO_SHOT = Method(
    zero_shot, line="the cosine of two texts' vectors, nothing trained", mask=False, reads=(), colour="#4A3800",
    marker="1",
)  # fmt: skip
