"""Tasks in a folder or a repository of the hub: their mask files, an index and a model card."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

from huggingface_hub import ModelCardData, hf_hub_download, snapshot_download
from huggingface_hub import errors as hub_errors

from adaprune.data import expanded
from adaprune.deploy.mask_file import load_mask, save_mask
from adaprune.training import MINILM

INDEX = "adaprune.json"  # {"tasks": [names]}; the mask of each task is <name>.safetensors beside it
NAME = r"[A-Za-z0-9][\w-]{0,99}"


def save_tasks(served, folder: Path) -> None:
    """Writes what `MaskedEncoder.save_pretrained` says."""
    if not served.tasks:
        raise ValueError("there is no task to save: add_task one")
    stale = _stale(served, folder)
    own = ("format", "base", "tensors", "head")
    for name in served.tasks:
        task = served.task(name)
        card = {key: value for key, value in task.card.items() if key not in own}
        save_mask(folder / f"{name}.safetensors", task.masks(), task.head.state_dict(), card, served.encoder)
    base = "sentence-transformers/all-MiniLM-L6-v2" if served.base.id == MINILM else served.base.id
    data = ModelCardData(
        library_name="adaprune",
        pipeline_tag="text-classification",
        base_model=None if expanded(base).exists() else base,
        license=None if served.base.licence == "unknown" else served.base.licence,
    )
    said = "\n".join(f"- {name}: {served.task(name).card.get('metrics', 'no metrics')}" for name in served.tasks)
    text = f"# Masks\n\nA binary mask and a head for each task, over an untouched base model.\n\n{said}\n"
    if is_foreign(folder / "README.md"):
        warnings.warn(f"{folder / 'README.md'} is not adaprune's: it stays, no model card is written", stacklevel=2)
    else:
        (folder / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n\n{text}", encoding="utf-8")
    for name in stale:
        for file in (folder / f"{name}.safetensors", folder / f"{name}.json"):
            file.unlink(missing_ok=True)
    (folder / INDEX).write_text(json.dumps({"tasks": served.tasks}) + "\n", encoding="utf-8")


def _stale(served, folder: Path) -> list[str]:
    """The tasks of an earlier save in ``folder`` that were deleted since; FileExistsError where others are there."""
    earlier = tasks_in(folder) if (folder / INDEX).is_file() else []
    stale = [name for name in earlier if name not in served.tasks]
    if unknown := [name for name in stale if name not in served.deleted]:
        raise FileExistsError(
            f"{folder} holds the tasks {', '.join(unknown)}, which this model does not have and whose index would be "
            "replaced: save into another folder, or add_task them first"
        )
    for name in served.tasks:
        file = folder / f"{name}.safetensors"
        if name not in earlier and file.exists() and load_mask(file).card != served.task(name).card:
            raise FileExistsError(f"{file} is another mask, not of an earlier save: move it, or save elsewhere")
    return stale


def is_foreign(readme: Path) -> bool:
    """Whether a model card is there that this package did not write."""
    return readme.exists() and "library_name: adaprune" not in readme.read_text(encoding="utf-8", errors="replace")


def folder_of(name: str | Path, revision: str | None) -> Path | None:
    """The folder of tasks called ``name``, fetched from the hub where it is no path; None for a base model."""
    if (folder := expanded(name)).is_dir() or name == MINILM:
        return folder if (folder / INDEX).is_file() else None
    try:
        hf_hub_download(str(name), INDEX, revision=revision)
    except (OSError, ValueError, hub_errors.EntryNotFoundError):
        return None
    return Path(snapshot_download(str(name), revision=revision, allow_patterns=["*.safetensors", "*.json"]))


def tasks_in(folder: Path) -> list[str]:
    """The names of the tasks in a folder, none of which can lead out of it."""
    try:
        names = json.loads((folder / INDEX).read_text(encoding="utf-8"))["tasks"]
        fit = isinstance(names, list) and names and all(re.fullmatch(NAME, name) for name in names)
    except (ValueError, TypeError, LookupError, RecursionError):
        fit = False
    if not fit:
        raise ValueError(f"{folder / INDEX} is no list of tasks")
    return names


def mask_file(name: str, source: str | Path, revision: str | None) -> Path:
    """The mask file of the task ``name`` in ``source``: that file itself, or one of a folder or repository of tasks."""
    if str(source).endswith(".safetensors"):
        return expanded(source)
    folder = folder_of(source, revision)
    if folder is None:
        raise FileNotFoundError(f"{source} is neither a mask file nor a folder or repository with {INDEX}")
    names = tasks_in(folder)
    if name not in names and len(names) > 1:
        raise ValueError(f"{source} has no task {name!r}: it has {', '.join(names)}")
    return folder / f"{name if name in names else names[0]}.safetensors"
