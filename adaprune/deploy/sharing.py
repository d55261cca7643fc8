"""Sharing models: folders of tasks, hub repositories."""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from huggingface_hub import HfApi, ModelCardData, hf_hub_download, snapshot_download
from huggingface_hub import errors as hub_errors

from adaprune.data import GLUE, expanded
from adaprune.deploy.mask import given
from adaprune.deploy.mask_file import load_mask, save_mask
from adaprune.deploy.zoo_files import is_zoo_name, zoo_file, zoo_names
from adaprune.runs import write_bytes
from adaprune.training import MINILM, Encoder

INDEX = "adaprune.json"  # {"tasks": [names]}; the mask of each task is <name>.safetensors next to it
OTHERS = "; a folder of save_pretrained or a hub repository (user/name) also works"
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"


def save_tasks(served, folder: Path) -> None:
    """Does the writing of `MaskedEncoder.save_pretrained`."""
    if not served.tasks:
        raise ValueError("there is no task to save: add_task one")
    stale = _stale(served, folder)
    for name in served.tasks:
        task = served.task(name)
        path = folder / f"{name}.safetensors"
        save_mask(path, task.masks(), task.head.state_dict(), given(task.card), served.encoder)
    said = "\n".join(f"- {name}: {served.task(name).card.get('metrics', 'no metrics')}" for name in served.tasks)
    text = f"# Masks\n\nA binary mask and a head for each task, over an untouched base model.\n\n{said}\n"
    if is_foreign(folder / "README.md"):
        warnings.warn(f"{folder / 'README.md'} is not adaprune's: it stays, no model card is written", stacklevel=3)
    else:
        write_bytes(folder / "README.md", f"---\n{front_matter(served.base)}\n---\n\n{text}".encode())
    write_bytes(folder / INDEX, json.dumps({"tasks": served.tasks}).encode() + b"\n")  # before its stale files go
    now = {name.lower(): name for name in served.tasks}
    for name in stale:
        for end in (".safetensors", ".json"):
            file, twin = folder / f"{name}{end}", folder / f"{now.get(name.lower(), name)}{end}"
            if twin == file or not file.exists() or not file.samefile(twin):  # on a disk without capitals, both are one
                file.unlink(missing_ok=True)


def _stale(served, folder: Path) -> list[str]:
    """The tasks of an earlier save in ``folder`` that were deleted since; FileExistsError if there are others."""
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


def tasks_in(folder: Path) -> list[str]:
    """The names of the tasks in a folder; none of them can lead out of it."""
    try:
        names = json.loads((folder / INDEX).read_text(encoding="utf-8"))["tasks"]
        fit = isinstance(names, list) and names and all(re.fullmatch(NAME, name) for name in names)
    except (ValueError, TypeError, LookupError, RecursionError):
        fit = False
    if not fit:
        raise ValueError(f"{folder / INDEX} is not a list of tasks")
    return names


def folder_of(name: str | Path, revision: str | None) -> Path | None:
    """The folder of tasks called ``name``, downloaded from the hub if it is not a path; None for a base model."""
    if (folder := expanded(name)).is_dir() or name == MINILM:
        return folder if (folder / INDEX).is_file() else None
    try:
        hf_hub_download(str(name), INDEX, revision=revision)
    except (OSError, ValueError, hub_errors.EntryNotFoundError):
        return None
    return Path(snapshot_download(str(name), revision=revision, allow_patterns=["*.safetensors", "*.json"]))


def _hides_the_zoo(source: Path) -> bool:
    """Whether there is something called ``source`` that goes before a mask of the zoo: not a folder without masks."""
    masks = (source / INDEX).is_file() or (source / "mask.safetensors").is_file()
    return source.exists() and (masks or not source.is_dir() or str(source) not in zoo_names())


def find_mask(name: str | Path, revision: str | None = None) -> Path:
    """The file of one mask: a path, a name from the zoo, or a folder or hub repository that `Adapted` wrote.

    Raises:
        FileNotFoundError: there is no such file.
    """
    name = expanded(name)
    if is_zoo_name(str(name)) and not _hides_the_zoo(name):  # the hub's names have a slash
        try:
            return zoo_file(str(name))
        except ValueError as error:
            raise FileNotFoundError(f"{name} is neither a folder nor a mask file here, and {error}{OTHERS}") from None
    if name.is_dir() or name.suffix == ".safetensors":
        path = name / "mask.safetensors" if name.is_dir() else name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        return path
    if name.is_file():  # the hub need not be asked
        raise FileNotFoundError(f"{name} is not a mask file: give the folder that holds mask.safetensors, or that file")
    try:
        return Path(hf_hub_download(str(name), "mask.safetensors", revision=revision))
    except (OSError, ValueError, hub_errors.HFValidationError) as error:
        raise FileNotFoundError(
            f"{name} is not a folder with mask.safetensors, not a mask file, and cannot be downloaded from the hub "
            f"({str(error).splitlines()[0]})"
        ) from error


def mask_file(name: str, source: str | Path, revision: str | None) -> Path:
    """The mask file of the task ``name`` in ``source``: that file itself, or one in a folder or repository of tasks."""
    if str(source).endswith(".safetensors"):
        return expanded(source)
    if is_zoo_name(source) and not (Path(source).is_dir() and _hides_the_zoo(Path(source))):
        try:
            return zoo_file(source)
        except ValueError as error:
            raise ValueError(f"{error}{OTHERS}") from None
    folder = folder_of(source, revision)
    if folder is None:
        try:
            return find_mask(source, revision)  # what an `Adapted` wrote
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{source} is neither a mask file nor a folder or repository with {INDEX} or mask.safetensors"
            ) from error
    names = tasks_in(folder)
    if name not in names and len(names) > 1:
        raise ValueError(f"{source} has no task {name!r}: it has {', '.join(names)}")
    return folder / f"{name if name in names else names[0]}.safetensors"


def read_as(card: Mapping) -> tuple[tuple[str, ...], int]:
    """The columns that the mask of ``card`` reads, () if that is not known, and the tokens after which texts are cut.

    Raises:
        ValueError: a card that says what no run could have written.
    """
    task, columns, length = card.get("task"), card.get("columns"), card.get("max_length", 128)
    if columns is None:  # cards older than 0.2 do not say
        columns = ["text", "text_pair"][: len(GLUE[task].columns)] if isinstance(task, str) and task in GLUE else []
    scores = card.get("metrics", {})
    fit = columns in ([], ["text"], ["text", "text_pair"]) and type(length) is int and length > 2
    if not fit or not isinstance(scores, Mapping):
        raise ValueError(f"the mask's card says columns={columns!r}, max_length={length!r}, metrics={scores!r:.80}")
    return tuple(columns), length


def serve_in_pipelines() -> None:
    """Lets ``pipeline("text-classification", model=ours)`` find the tokenizer; other models are not affected."""
    from transformers.pipelines import PIPELINE_REGISTRY  # not above: it takes `import adaprune` seconds

    from adaprune.deploy.runtime.pipelines import OwnTokenizer

    PIPELINE_REGISTRY.supported_tasks["text-classification"]["impl"] = OwnTokenizer


def check_files(base: Encoder, card: Mapping) -> None:
    """Warns where the config or the tokenizer of ``base`` are not those that the mask of ``card`` was learned with.

    Its weights are compared by `check_base`; other files beside them can be another version's for the same thing.
    """
    if base.files and (before := card.get("model_files")) and before != base.files:
        warnings.warn(
            f"model {base.id!r}: config.json or tokenizer differ from those that the mask was learned with "
            f"({before}; here {base.files}): answers may differ",
            stacklevel=3,
        )


def front_matter(base: Encoder) -> str:
    """The metadata at the top of a model card for masks over ``base``, as the hub reads it."""
    name = "sentence-transformers/all-MiniLM-L6-v2" if base.id == MINILM else base.id
    return ModelCardData(
        library_name="adaprune",
        pipeline_tag="text-classification",
        base_model=None if expanded(name).exists() else name,
        license=None if base.licence == "unknown" else base.licence,
    ).to_yaml()


def is_foreign(readme: Path) -> bool:
    """Whether there is a model card that this package did not write."""
    return readme.exists() and "library_name: adaprune" not in readme.read_text(encoding="utf-8", errors="replace")


def push(save: Callable[[str], None], repo_id: str, private: bool, token: str | None) -> str:
    """Uploads the folder that ``save`` fills to a hub repository, which is made if needed; returns its address.

    A README.md there that is not from this package is kept.
    """
    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        api = HfApi(token=token)
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        try:
            foreign = is_foreign(Path(hf_hub_download(repo, "README.md", token=token)))
        except (OSError, hub_errors.EntryNotFoundError):
            foreign = False
        return str(
            api.upload_folder(
                repo_id=repo, folder_path=folder, commit_message="Masks of adaprune",
                ignore_patterns=["README.md"] if foreign else None,
            ).repo_url
        )  # fmt: skip
