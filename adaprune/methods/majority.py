"""majority: predicts for every text the most frequent training label. Nothing is learned."""

import numpy as np

from adaprune.data import TaskData
from adaprune.runs import Method
from adaprune.training import Fit, Job, Outcome


def majority(job: Job) -> Outcome:
    """Predicts the most frequent class of the training rows, or their mean value, for every text."""
    fit = Fit(examples=len(job.task.splits["train"]))
    return Outcome(fit, updates=[], answer=lambda split: constant(job.task, len(job.task.splits[split])))


def constant(task: TaskData, rows: int) -> np.ndarray:
    """The same answer for each of ``rows``: the shares of the classes in training, or the mean; (rows, outputs)."""
    labels = np.asarray(task.splits["train"]["label"])
    said = np.bincount(labels, minlength=task.num_labels) / len(labels) if task.labels else np.array([labels.mean()])
    return np.tile(said, (rows, 1))


MAJORITY = Method(
    majority, line="the majority class, whatever the text", mask=False, reads=(), colour="#464646", marker="_",
)  # fmt: skip
