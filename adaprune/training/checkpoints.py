"""What an earlier start of a run has left: checkpoints that can be trusted, finished stages, a record.

A folder counts only once it is complete, and a damaged file is named. What was made of something else is refused.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from adaprune.data import is_users, load_task
from adaprune.runs import Paths, Plan, Run, plan_then, read_record, replacing, write_bytes
from adaprune.training.encoders import source_of, tensor_hash
from adaprune.training.job import Fit, Settings
from adaprune.training.model_files import MINILM, file_hash, files_beside, weights_in

Result = tuple[dict[str, torch.Tensor], Fit]  # of a stage

SEAL = "whole.json"  # file -> bytes; written last, so that a killed save leaves none
ORIGIN = "origin.json"  # the origin of the checkpoints in a folder


def trained_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that training changes (theta, head, or weights), by name."""
    return {name: tensor.detach() for name, tensor in model.named_parameters() if tensor.requires_grad}


def save_trained(model: nn.Module, path: Path, **facts: str) -> None:
    """Writes ``trained_tensors`` to a safetensors file (see `write_tensors`)."""
    write_tensors(path, trained_tensors(model), **facts)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], **facts: str) -> None:
    """Writes a safetensors file, completely or not at all, with ``facts`` in its header; makes its folder.

    Raises:
        OSError: it cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with replacing(path) as temporary:
            save_file(plain, temporary, metadata=facts)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk with its own error
        raise OSError(f"cannot write {path} ({error}): make room or choose another results_dir") from error


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[safe_open]:
    """An open safetensors file; ValueError that ends in ``remedy`` if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from error


def read_tensors(path: Path, remedy: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and facts in a file of `write_tensors`; ValueError that ends in ``remedy`` if it is damaged."""
    with reading(path, remedy) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def load_trained(model: nn.Module, path: Path) -> dict[str, str]:
    """Copies the tensors of ``save_trained`` back into ``model``; returns the facts.

    Raises:
        ValueError: the file is damaged, or holds tensors other than those that the model trains.
    """
    expected = trained_tensors(model)
    with reading(path, f"delete the folder {path.parent} to start over") as file:
        names = set(file.keys())
        if names != set(expected):
            raise ValueError(f"{path} holds tensors other than this run trains: {sorted(names ^ set(expected))[:3]}")
        for name in names:
            expected[name].copy_(file.get_tensor(name))
        return file.metadata() or {}


def facts_of(path: Path) -> dict[str, str]:
    """The facts in the header of a file of ``save_trained``."""
    with reading(path, f"delete the folder {path.parent} to start over") as file:
        return file.metadata() or {}


def check_origin(folder: Path, **origin: str | int | None) -> None:
    """Prepares ``folder`` for the checkpoints of a run on ``origin``: data, model, processes, and the like.

    Raises:
        ValueError: there are checkpoints or finished stages of another origin, which this run must not continue, or
            the note of their origin is damaged.
    """
    note = folder / ORIGIN
    begun = last_whole(folder) is not None or any(folder.rglob("stage-*.safetensors")) or any(folder.rglob(SEAL))
    if note.is_file() and begun:
        try:
            before = json.loads(note.read_text())
            # what an older note does not say is taken to be the same
            changed = [name for name, value in origin.items() if before.get(name, value) != value]
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{note} is damaged ({error}): delete the folder {folder} to start over") from None
        if changed:
            raise ValueError(
                f"the interrupted run in {folder} had another {changed[0]} ({before.get(changed[0])}, now "
                f"{origin[changed[0]]}): delete that folder to start over"
            )
    write_bytes(note, json.dumps(origin).encode())  # all processes of a run write the same


def sources_of(teacher: Paths | None, mask: Path | None) -> dict[str, Any]:
    """What identifies the results that a run is made from, by name; it goes into the run's ``environment``.

    Of its ``teacher``: the base's revision, the scores and, if they are there, the hash of the logits. Of the ``mask``
    that an ablation changes: the file's hash, if it is there.

    Raises:
        FileNotFoundError: the teacher has no record.
        ValueError: its record or its logits are damaged.
    """
    found: dict[str, Any] = {}
    if teacher is not None:
        record = read_record(teacher.record)
        found["teacher_revision"] = record["environment"]["model_revision"]
        found["teacher_scores"] = record["metrics"]["validation"]
        if teacher.logits.is_file():
            with reading(teacher.logits, f"delete it and {teacher.record}, run the teacher again") as stored:
                found["teacher_logits"] = tensor_hash(stored.get_tensor("logits"))
    if mask is not None and mask.is_file():
        found["ablated_mask"] = file_hash(mask)
    return found


def check_unchanged(record: dict, run: Run, plan: Plan, paths: Paths, mask: Path | None = None) -> dict:
    """The ``record`` of a finished run; ValueError if the same fields would give a different run today.

    Data, model, teacher and the ``mask`` of which the run is an ablation are compared if they are still available; a
    record can be read without them.
    """
    shutil.rmtree(paths.checkpoints, ignore_errors=True)  # a kill can come between the record and this
    made, then = record["environment"], plan_then(record)
    if plan.steps:  # then the epochs depend on the rows
        then.pop("epochs", None)
    changed = [
        f"{name} was {then[name]!r}, is {value!r}"
        for name, value in asdict(plan).items()
        if name in then and then[name] != value
    ]
    with suppress(FileNotFoundError):
        if run.model != MINILM:
            folder = Path(source_of(run.model))
            before, now = made["model_revision"], weights_in(folder)
            if now and str(before).startswith("sha256:") and before != now:
                changed.append(f"the weights of model {run.model!r} have changed (they were {before}, are {now})")
            before, now = made.get("model_files"), files_beside(folder)  # records from before 0.2 do not say
            if now and before and before != now:
                changed.append(f"config.json or tokenizer of model {run.model!r} have changed ({before}; now {now})")
    with suppress(FileNotFoundError):
        if is_users(run.task, run.data_dir):
            data = load_task(run.task, run.data_dir, run.max_train_examples).fingerprint
            if made["data_fingerprint"] not in (None, data):
                changed.append("the data have changed")
    with suppress(FileNotFoundError):  # records from before 0.2 do not say
        for name, now in sources_of(paths.teacher, mask).items():
            if made.get(name, now) != now:
                whose = f"teacher {run.teacher}" if name != "ablated_mask" else str(mask)
                changed.append(f"{name} has changed, of {whose} (it was {made[name]}, is {now})")
    if changed:
        raise ValueError(f"{paths.record}: {'; '.join(changed)}: choose another results_dir, or delete the record")
    return record


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within, no other process makes the run whose checkpoints are in ``folder``.

    If another process does, this one says so and waits. The lock goes with its process, however that ends, and its file
    once the run is made. Where the file system has no locks there is none.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{folder}.lock", fallback_to_soft=False)  # a soft one would outlive a killed process
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logging.getLogger(__name__).warning("another process makes this run: waiting for it (%s)", lock.lock_file)
        lock.acquire()
    except OSError:
        yield
        return
    try:
        yield
        Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()


def seal(folder: Path) -> None:
    """Marks a checkpoint folder as complete, with the size of every file in it."""
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.name != SEAL}
    write_bytes(folder / SEAL, json.dumps(sizes).encode())


def last_whole(folder: Path) -> Path | None:
    """The newest complete checkpoint in ``folder``; incomplete ones (from a kill while saving) are removed.

    Raises:
        ValueError: a complete checkpoint has since lost bytes or a file; the message names it.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)
    whole = [path for path in found if (path / SEAL).is_file()]
    for path in set(found) - set(whole):
        shutil.rmtree(path)
    if not whole:
        return None
    try:
        sizes = json.loads((whole[0] / SEAL).read_text())
    except ValueError as error:
        raise ValueError(f"checkpoint {whole[0] / SEAL} is damaged: delete {whole[0]}") from error
    for name, size in sizes.items():
        file = whole[0] / name
        present = file.stat().st_size if file.is_file() else 0
        if present != size:
            raise ValueError(
                f"checkpoint {file} is damaged: {present} bytes of {size}. Delete {whole[0]} to continue from the "
                f"previous checkpoint, or {folder} to start over"
            )
    return whole[0]


def stage(settings: Settings, name: str, work: Callable[[Settings], Result]) -> Result:
    """The result of ``work``, tensors and a `Fit`: computed now, or read back if an earlier start has done it.

    ``work`` gets ``settings`` with its own folder inside the run's, for its checkpoints. Its result is written
    completely or not at all, then its checkpoints are removed.

    Raises:
        ValueError: the stage's file is damaged.
        OSError: it cannot be written.
    """
    file, folder = settings.folder / f"stage-{name}.safetensors", settings.folder / name
    if not file.is_file():
        tensors, done = work(replace(settings, folder=folder))
        processes = PartialState()
        processes.wait_for_everyone()
        if processes.is_main_process:
            write_tensors(file, tensors, fit=json.dumps(asdict(done)))
            shutil.rmtree(folder, ignore_errors=True)
        processes.wait_for_everyone()
    tensors, facts = read_tensors(file, "delete it to do that stage again")
    return tensors, Fit(**json.loads(facts["fit"]))
