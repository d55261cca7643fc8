"""The paths of a run's files, all made from its name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adaprune.data import expanded
from adaprune.runs.run import Run


@dataclass(frozen=True)
class Paths:
    """The files of one run in its ``results_dir``, all named after the run.

    ``record`` <name>.json; ``answers`` answers/<name>.npz, the run's answers to the dev rows; ``mask``
    masks/<name>.safetensors; ``snapshots`` the folder of masks during training; ``theta`` thetas/<name>.safetensors,
    its order; ``logits`` teachers/<name>.safetensors, a fine-tuned model's logits of the training rows;
    ``checkpoints`` the folder that is removed once the record is written; ``teacher`` the files of the run's teacher.
    """

    record: Path
    answers: Path
    mask: Path
    snapshots: Path
    theta: Path
    logits: Path
    checkpoints: Path
    teacher: Paths | None = None


def paths_of(run: Run | str | Path) -> Paths:
    """The paths of a run, or of the one whose record is the file ``run``.

    ``~`` and ``$NAME`` are expanded.
    """
    if isinstance(run, Run):
        folder, name, teacher = expanded(run.results_dir), run.name, run.teacher
    else:
        record = expanded(run)
        folder, name, teacher = record.parent, record.name.removesuffix(".json"), ""
    return Paths(
        record=folder / f"{name}.json",
        answers=folder / "answers" / f"{name}.npz",
        mask=folder / "masks" / f"{name}.safetensors",
        snapshots=folder / "masks" / name,
        theta=folder / "thetas" / f"{name}.safetensors",
        logits=folder / "teachers" / f"{name}.safetensors",
        checkpoints=folder / ".checkpoints" / name,
        teacher=paths_of(teacher) if teacher else None,
    )


def record_path(run: Run) -> Path:
    """``<results_dir>/<run name>.json``."""
    return paths_of(run).record


def needed(run: Run) -> list[Path]:
    """The records that must be there before ``run`` starts: its teacher's, and that of the run that it ablates."""
    teacher = [expanded(run.teacher)] if run.teacher else []
    return teacher + ([record_path(run.ablation_of)] if run.ablation else [])


def mask_path(run: Run) -> Path:
    """``<results_dir>/masks/<run name>.safetensors``."""
    return paths_of(run).mask
