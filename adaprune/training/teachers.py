"""What a fine-tuned teacher says of the training rows and of corrupted copies of them, which pupils learn from.

Records hold no weights, so a teacher leaves its logits. The copies are made again from the texts by whoever needs them.
"""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from adaprune.data import TaskData, expanded, tokenize
from adaprune.runs import Paths, Run, read_record
from adaprune.training.checkpoints import reading, write_tensors
from adaprune.training.fitting import predict
from adaprune.training.heads import missing_label
from adaprune.training.job import Job

if TYPE_CHECKING:
    import datasets

COPIES = "words and splices"  # the only kind, as `runs.Plan` names it
CORRUPTED = 0.15  # share of the words that a copy has from elsewhere
MOST_COPIES = 4  # of each row
MOST_WORDS = 512  # of a text in a copy: no run reads more tokens
MOST_COPIED = 40_000  # copies of all rows together, a bound on the teacher's cost; at least one of each row


def copies_in(rows: int) -> int:
    """How many copies there are of each of ``rows`` training rows."""
    return max(1, min(MOST_COPIES, MOST_COPIED // rows))


def corrupted(rows: datasets.Dataset) -> datasets.Dataset:
    """Copies of training rows without labels: first copies of all rows, then second ones, and so on.

    Of each two copies one has 15 % of the words of each text (between blanks) replaced by words drawn from all words of
    the same column. The other is a splice: the first half of each text's words, then the second half of another row's.
    Only the rows decide which, not the seed of a run: teacher and pupil have the same copies, whatever their models.
    """
    from datasets import Dataset

    draw, times = random.Random(0), copies_in(len(rows))
    copies = [
        (row, draw.randrange(len(rows)), (turn + row) % 2 == 1) for turn in range(times) for row in range(len(rows))
    ]
    columns = {}
    for name in ("text", "text_pair"):
        if name in rows.column_names:
            texts = [text.split(maxsplit=MOST_WORDS)[:MOST_WORDS] for text in rows[name]]
            words = list(chain.from_iterable(texts)) or [""]
            columns[name] = [
                _spliced(texts[row], texts[other]) if splice else _replaced(texts[row], words, draw)
                for row, other, splice in copies
            ]
    classes = rows.features["label"].dtype.startswith("int")
    columns["label"] = [missing_label(classes)] * len(copies)
    return Dataset.from_dict(columns, features=rows.features)


def _replaced(text: list[str], words: list[str], draw: random.Random) -> str:
    """The text with `CORRUPTED` of its words from elsewhere."""
    return " ".join(draw.choice(words) if draw.random() < CORRUPTED else word for word in text)


def _spliced(text: list[str], other: list[str]) -> str:
    """The first half of one text, its middle word with it, and the second half of the other."""
    return " ".join(text[: (len(text) + 1) // 2] + other[(len(other) + 1) // 2 :])


def lessons_of(job: Job) -> np.ndarray:
    """The logits of the job's trained model on its training rows and, after them, on their copies."""
    sentences = _with_copies(job).sentences
    return np.concatenate([predict(job.model, sentences, split, job.settings) for split in ("train", "copies")])


def write_logits(path: Path, logits: np.ndarray, task: TaskData) -> None:
    """Writes a teacher's `lessons_of` to its ``Paths.logits``, completely or not at all.

    The file has one float32 tensor ``logits`` (rows and copies, outputs), the task's fingerprint and the copies' kind.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(logits, dtype=np.float32))
    write_tensors(path, {"logits": tensor}, data=task.fingerprint, copies=COPIES)


def read_teacher(run: Run, teacher: Paths | None) -> dict | None:
    """The record of the run's ``teacher`` (its `Paths.teacher`); None if it has none.

    Raises:
        ValueError: the teacher was not fine-tuned, or has another task or number of training rows.
        FileNotFoundError: there is no such record.
    """
    if teacher is None:
        return None
    if not teacher.record.is_file():
        wrong = "no record" if expanded(run.teacher).is_file() else "not a file"
        raise FileNotFoundError(
            f"teacher {run.teacher!r} is {wrong}: give the path of a finished finetune record, .json"
        )
    record = read_record(teacher.record)
    taught = record["run"]
    if taught["method"] != "finetune":
        raise ValueError(f"teacher {run.teacher} has method {taught['method']!r}: give a record of method 'finetune'")
    if expanded(taught["task"]).resolve() != expanded(run.task).resolve():
        raise ValueError(f"teacher {run.teacher} learned task {taught['task']!r}, this run's is {run.task!r}")
    if taught["max_train_examples"] != run.max_train_examples:
        raise ValueError(
            f"teacher {run.teacher} learned from other rows of {run.task} (max_train_examples "
            f"{taught['max_train_examples']}, here {run.max_train_examples}): give a teacher of the same data"
        )
    return record


def read_logits(record: dict, teacher: Paths, task: TaskData) -> Tensor:
    """The logits (training rows and copies, outputs) of the ``teacher`` with this record.

    Raises:
        ValueError: the teacher has other data, or its logits are damaged.
        FileNotFoundError: its logits are missing.
    """
    file = teacher.logits
    if record["environment"]["data_fingerprint"] != task.fingerprint:
        raise ValueError(f"teacher {teacher.record} learned from sentences of {task.name} that differ from those here")
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: delete {teacher.record} and run the teacher again")
    with reading(file, f"delete it and {teacher.record}, run the teacher again") as stored:
        logits, facts = stored.get_tensor("logits"), stored.metadata() or {}
    rows = len(task.splits["train"])
    expected = (rows * (1 + copies_in(rows)), task.num_labels)
    if (facts.get("data"), facts.get("copies")) != (task.fingerprint, COPIES) or tuple(logits.shape) != expected:
        raise ValueError(
            f"{file} is not of {teacher.record}'s data, or not of shape {expected}, all rows and their copies "
            f"({COPIES}): delete {teacher.record} and run the teacher again"
        )
    return logits


def with_teacher(job: Job, logits: Tensor | None) -> Job:
    """The job with a teacher's ``logits`` on its training rows and, if its plan says so, their copies.

    Unchanged without a teacher.
    """
    if logits is None:
        return job
    job = _with_copies(job) if job.plan.copies else job
    splits, rows = dict(job.sentences.splits), len(job.sentences.splits["train"])
    for name, values in (("train", logits[:rows]), ("copies", logits[rows:])):
        if name in splits:
            split = splits[name]
            splits[name] = split.add_column(
                "teacher_logits", values.tolist(), new_fingerprint=f"{split._fingerprint}-taught"
            )
    sentences = replace(job.sentences, splits=splits)
    return replace(job, sentences=sentences, seen={name: sentences.seen(len(rows)) for name, rows in job.seen.items()})


def _with_copies(job: Job) -> Job:
    """The job with the copies of its training rows as a split of their own."""
    copies = tokenize(corrupted(job.task.splits["train"]), job.sentences.tokenizer, job.run.max_length)
    return replace(job, sentences=replace(job.sentences, splits={**job.sentences.splits, "copies": copies}))
