"""A model's files: what identifies it, where it was loaded from, why it cannot be loaded; a tokenizer that fits."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

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


def unreachable(model: str, place: Path, error: Exception) -> OSError:
    """The error for a ``model`` that cannot be loaded from ``place``: why, and what to do."""
    said = " ".join(str(error).split())
    if isinstance(error, KeyError):  # its message is only the key
        config = place / "config.json"
        known = f'"{error.args[0]}"' in (
            config.read_text(encoding="utf-8", errors="replace") if config.is_file() else ""
        )
        said = (
            f"its config.json says {said}, which this version of transformers does not know."
            if known
            else f"one of its files, tokenizer.json or another, lacks {said}."
        )
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


def fitted(tokenizer: PreTrainedTokenizerBase, encoder: nn.Module, model: str) -> PreTrainedTokenizerBase:
    """``tokenizer`` ready for ``encoder``: pads on the right, has a pad token, returns the encoder's inputs.

    Raises:
        ValueError: it knows no words (transformers makes such a tokenizer if the files are missing), or gives numbers
            that the encoder's table of word embeddings does not have.
    """
    vocabulary, config = tokenizer.get_vocab(), encoder.config
    words = set(vocabulary) - set(tokenizer.all_special_tokens)
    if not any(character.isalnum() for word in words for character in word):
        raise ValueError(
            f"model {model!r} has no tokenizer: the one made without its files knows no words. Put tokenizer.json, or "
            "the vocabulary and tokenizer_config.json, beside the weights (tokenizer.save_pretrained(folder))"
        )
    rows = encoder.get_input_embeddings().num_embeddings
    if beyond := {token: number for token, number in vocabulary.items() if number >= rows}:
        token = min(beyond, key=beyond.get)
        raise ValueError(
            f"model {model!r}: its tokenizer gives {token!r} the number {beyond[token]}, the table of word embeddings "
            f"has {rows} rows: take the tokenizer it was trained with, or resize_token_embeddings and save it again"
        )
    tokenizer.padding_side = "right"  # the head reads the first token
    if tokenizer.pad_token is None:
        padding = getattr(config, "pad_token_id", None)
        own = tokenizer.convert_ids_to_tokens(padding) if padding is not None and padding < len(vocabulary) else None
        pad = own or tokenizer.eos_token or tokenizer.sep_token or tokenizer.unk_token
        if pad is None:
            raise ValueError(f"the tokenizer of model {model!r} has no token to pad with: set pad_token and save it")
        tokenizer.pad_token = pad  # whichever it is, the attention mask leaves it out
    taken = set(inspect.signature(encoder.forward).parameters) & {*tokenizer.model_input_names}
    kinds = tokenizer("a", "a").get("token_type_ids", [0])
    if 0 < getattr(config, "type_vocab_size", 0) <= max(kinds):
        taken.discard("token_type_ids")
    tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name in taken]
    return tokenizer
