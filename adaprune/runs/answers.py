"""A run's answer to each dev row, stored compactly next to its record, so that runs can be compared row by row."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from adaprune.data import RESAMPLES, TaskData, resampled
from adaprune.runs.files import read_bytes, write_bytes

LARGEST = 2**26  # largest file that is read, in bytes


def write_answers(path: Path, logits: np.ndarray, task: TaskData, scored: bool = True) -> None:
    """Writes the answers of a run on the dev split, completely or not at all.

    ``answers``: the class of each row as uint8 (uint16 for more than 256 classes), or the value as float32.
    ``resampled``: the main metric on bootstrap samples of the rows, which are the same for all runs (`data.resampled`),
    so that intervals can be computed without the labels.

    Args:
        scored: False leaves ``resampled`` empty. The samples are known, so 300 exact scores give 300 equations for the
            labels. So `adapt` writes them only for named tasks, whose labels are public, not for a user's own file.
    """
    split = task.splits["validation"]
    labels = np.asarray(split["label"])
    if task.labels:
        answers = logits.argmax(1).astype(np.uint8 if logits.shape[1] <= 256 else np.uint16)
    else:
        answers = logits.reshape(-1).astype(np.float32)
    scores = np.zeros(0, np.float32)
    if scored:
        scores = resampled(lambda said, true: task.metrics(said, true)[task.primary], logits, labels)
    content = io.BytesIO()
    np.savez_compressed(content, answers=answers, resampled=scores)
    write_bytes(path, content.getvalue())


def read_answers(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The answers of a run and its resampled scores (none for a user's own file).

    Raises:
        FileNotFoundError: no such file; records older than 0.2 have none.
        ValueError: a damaged or foreign file; the message names it.
    """
    content = read_bytes(path, LARGEST)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as found:
            answers, scores = found["answers"], found["resampled"]
        if answers.ndim != 1 or answers.dtype.kind not in "uf":
            raise ValueError("its answers are no classes or values of rows")
        if scores.shape not in ((RESAMPLES,), (0,)) or scores.dtype != np.float32 or not np.isfinite(scores).all():
            raise ValueError(f"its scores are not those of {RESAMPLES} samples")
    except Exception as error:  # zip, zlib and numpy each raise their own errors for damaged bytes
        raise ValueError(f"{path} is damaged ({error}): delete it and its record, then run again") from error
    return answers, scores
