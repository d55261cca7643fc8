"""The files of a local model: what identifies it, where it was loaded from, and why it cannot be loaded."""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path

from adaprune.data import expanded

# Besides the weights, these files decide what a model does with a text: its shape, its tokenizer, its pooling.
BESIDE = ("config.json", "*token*.json", "vocab.*", "merges.txt", "*.model", "1_Pooling/config.json")
# Keys of a config.json that only say who saved it, and how.
SAYS_NOTHING = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")

MINILM = "minilm"
LFS = b"version https://git-lfs"  # the beginning of the pointer that stands for a file which git-lfs has not downloaded

_PLACES: dict[str, str] = {}  # local models: revision -> folder; cards of masks contain no local path


def weights_in(folder: Path) -> str | None:
    """``sha256:`` and the hash of a local model's weight file or of all its shards; None if it is not a folder.

    For shards it is the hash of their names and hashes, one line per shard, in the order of names.
    """
    if (weights := folder / "model.safetensors").is_file():
        return f"sha256:{file_hash(weights)}"
    if not (index := folder / "model.safetensors.index.json").is_file():
        return None
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is damaged, it names no shards.") from error
    lines = "".join(f"{name} {file_hash(folder / name)}\n" for name in shards)
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def files_beside(folder: Path) -> str | None:
    """Name and hash of each file that matters beside a local model's weights, in one line; None if it is not a folder.

    The hash of a config.json leaves out which version of transformers wrote it.
    """
    found = sorted({path for pattern in BESIDE for path in folder.glob(pattern) if path.is_file()})
    hashes = ((path.relative_to(folder).as_posix(), _meaning(path)) for path in found)
    return ", ".join(f"{name} {digest[:12]}" for name, digest in hashes) or None


def _meaning(path: Path) -> str:
    if path.name == "config.json":
        try:
            said = {k: v for k, v in json.loads(path.read_text(encoding="utf-8")).items() if k not in SAYS_NOTHING}
            return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
        except (ValueError, AttributeError, RecursionError):
            pass  # damaged, which loading it reports
    return file_hash(path)


def file_hash(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remember(revision: str, folder: str) -> None:
    """Notes that the local model of this revision was loaded from ``folder``."""
    _PLACES[revision] = str(Path(folder).resolve())


def place_of(revision: str) -> str | None:
    """The folder from which this process last loaded the local model with this revision, or None."""
    return _PLACES.get(revision)


def unreachable(model: str, error: Exception) -> OSError:
    """The error for a ``model`` that cannot be loaded: why, and what to do."""
    place, said = expanded(model), " ".join(str(error).split())
    if isinstance(error, KeyError):  # its message is only the key
        said = f"its config.json says {said}, which this version of transformers does not know."
    said = said if len(said) <= 300 else f"{said[:300]}..."
    if place.is_file():
        return OSError(f"model {model!r} cannot be loaded: it is a file. Give the folder with config.json beside it.")
    if not (model and place.is_dir()):
        meant = f" Did you mean {MINILM!r}?" if difflib.get_close_matches(model.lower(), [MINILM]) else ""
        return OSError(
            f"model {model!r} cannot be loaded: there is no such folder, and as a hub id: {said}{meant} Offline, use "
            "model='minilm' (bundled), a local folder with config.json, model.safetensors and a tokenizer, or download "
            "the id once while online."
        )
    if pointers := [path.name for path in sorted(place.iterdir()) if path.is_file() and _begins(path, LFS)]:
        return OSError(f"model {model!r} cannot be loaded: {pointers[0]} was not fetched by git-lfs: git lfs pull")
    return OSError(
        f"model {model!r} cannot be loaded: {said} Give a local folder with config.json, model.safetensors and a "
        "tokenizer that fit together: get the model again, or load it where it works and save_pretrained it."
    )


def _begins(path: Path, mark: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(mark)) == mark
