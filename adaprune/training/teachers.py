"""A fine-tuned teacher's logits on the training rows, which students learn from, as records hold no weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adaprune.data import TaskData, expanded
from adaprune.runs import Paths, Run, read_record
from adaprune.training.checkpoints import reading, write_tensors
from adaprune.training.job import Job


def write_logits(path: Path, logits: np.ndarray, task: TaskData) -> None:
    """Writes a teacher's logits (rows, outputs) to its ``Paths.logits``, completely or not at all.

    The file has one float32 tensor ``logits``, in the order of the training split, and the task's fingerprint.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(logits, dtype=np.float32))
    write_tensors(path, {"logits": tensor}, data=task.fingerprint)


def read_teacher(run: Run, teacher: Paths | None) -> dict | None:
    """The record of the run's ``teacher`` (its `Paths.teacher`); None if it has none.

    Raises:
        ValueError: the teacher was not fine-tuned, or has another task or number of training rows.
        FileNotFoundError: there is no such record.
    """
    if teacher is None:
        return None
    if not teacher.record.is_file():
        raise FileNotFoundError(f"teacher {run.teacher!r} is not a file: give the path of a finished finetune record")
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
    """The logits (training rows, outputs) of the ``teacher`` with this record.

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
        logits, origin = stored.get_tensor("logits"), (stored.metadata() or {}).get("data")
    expected = (len(task.splits["train"]), task.num_labels)
    if origin != task.fingerprint or tuple(logits.shape) != expected:
        raise ValueError(f"{file} is not of {teacher.record}'s data, or not of shape {expected}: run the teacher again")
    return logits


def with_teacher(job: Job, logits: Tensor | None) -> Job:
    """The job with a teacher's ``logits`` added to its training rows; unchanged without a teacher."""
    if logits is None:
        return job
    train = job.sentences.splits["train"]
    train = train.add_column("teacher_logits", logits.tolist(), new_fingerprint=f"{train._fingerprint}-taught")
    return replace(job, sentences=replace(job.sentences, splits={**job.sentences.splits, "train": train}))
