"""Reading mask files: turns untrusted bytes into a mask or a clear error, in memory bounded by the file's size."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from adaprune.deploy.coding import decode
from adaprune.deploy.flips import read_flips
from adaprune.deploy.mask import Differences, Mask, head_of
from adaprune.runs import read_bytes
from adaprune.training import tensor_hash

FORMAT = 3  # the newest that can be read, with flips; 2 is without
MAX_FILE = 2**30  # bytes; larger files are not read
MAX_WEIGHTS = 2**33  # weights per byte of the file, or in total if that is more:
WEIGHTS_A_BYTE, FEW_WEIGHTS = 256, 304_000_000  # (the layers of BERT-large: a mask of its units takes few bytes)
MAX_HEADER = 2**20  # bytes, for the header and for the card next to the file (the zoo's have 20,000)
HOSTILE = (SafetensorError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
MAX_SAID = 300  # characters of what a message repeats from a file
NOT_WHOLE, AGAIN = "is not a whole mask file", "get it again, or delete it and the run's record and run again"
_NAMED = ("model", "revision")  # of the base: messages repeat these, and the names of its tensors
_FILE = r"[^/\\\x00]{1,240}\.safetensors"  # a name that cannot lead to another folder


def read_mask(path: Path, content: bytes, alone: bool = False) -> Mask:
    """The mask in a file's bytes; its reference, if it has one, is read from the same folder.

    Args:
        path: names the file in messages, and gives the folder of a reference.
        content: the file's bytes.
        alone: the mask must not have a reference, because it is one itself.

    Raises:
        ValueError: anything is inconsistent, the format is newer than this reader, or the reference is another file.
        FileNotFoundError: the reference is missing.
    """
    try:
        card, tensors = _opened(content)
        shapes, said = card["tensors"], card.get("flips")
        named, seal = (None, "") if said is None else (said["reference"], said["masks"])
        head = _head(tensors, card)
        if said is None:
            masks: Any = {name: _mask(name, tensors[f"mask.{name}"], one) for name, one in shapes.items()}
        elif alone and named is not None:
            raise ValueError("a mask that is a reference to others can have no reference itself")
        else:
            stored, sizes = tensors["flips"], [_matrix(shapes[name]) for name in sorted(shapes)]
            if stored.dtype != torch.uint8 or stored.ndim != 1 or tensor_hash(stored) != said["sha256"]:
                raise ValueError("flips are not what the card says")
            flips = read_flips(said, stored.numpy().tobytes(), sizes, _limit(content))
    except _Newer as error:
        raise ValueError(
            f"{path} is of {error}, newer than this adaprune reads: get a newer version from the repository"
        ) from None
    except HOSTILE as error:
        raise ValueError(f"{path} {NOT_WHOLE}: {_why(error)}; {AGAIN}") from None
    if said is not None:
        masks = Differences(path, flips, str(seal), None if named is None else _reference(path, named, card))
    return Mask(masks, head, card)


class _Newer(ValueError):
    """A file is sound, but of a format that is newer than this reader; says which."""


def _why(error: Exception) -> str:
    """What is wrong with a file; what it says itself is shortened, and without signs that a terminal obeys."""
    lacks = "the card lacks or misstates an entry: " * isinstance(error, (AttributeError, LookupError, TypeError))
    text = f"{lacks}{error}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:MAX_SAID]) + "..." * (len(text) > MAX_SAID)


def sha256_of(content: bytes | dict) -> str:
    """sha256 in hexadecimal: of bytes, or of the canonical form of JSON values."""
    if not isinstance(content, bytes):
        content = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    return hashlib.sha256(content).hexdigest()


def fit_labels(labels: Any, outputs: int) -> bool:
    """Whether these are the names of a head's outputs: different texts, or an empty list for a regression."""
    texts = isinstance(labels, list | tuple) and all(isinstance(label, str) for label in labels)
    return texts and len({*labels}) == len(labels) and outputs == (len(labels) or 1)


def check_reference(reference: Mask, base: Mapping, shapes: Mapping[str, Any]) -> None:
    """ValueError if another mask cannot be the reference of masks with these shapes and this base."""
    if reference.card["base"] != base:
        raise ValueError("the reference was made for another base")
    others = reference.card["tensors"]
    if lacking := [name for name, shape in shapes.items() if name not in others or others[name]["shape"] != [*shape]]:
        raise ValueError(f"the reference has no mask of {lacking[0]} in that shape")


def _opened(content: bytes) -> tuple[dict, dict[str, Tensor]]:
    """Card and tensors, after checking that they belong together and claim no more than the file can hold."""
    if (size := int.from_bytes(content[:8], "little")) > (most := min(MAX_HEADER, len(content) - 8)):
        raise ValueError(f"the header claims {size} bytes, and can have {max(most, 0)}")
    said = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    if "adaprune" not in said:
        raise ValueError("it holds other tensors, and no mask of adaprune")
    sealed = json.loads(said["adaprune"])
    card = sealed["card"]
    if sha256_of(card) != sealed["sha256"] or type(card["format"]) is not int or card["format"] < 1:
        raise ValueError("the card's sha256 or format does not fit")
    if card["format"] > FORMAT:
        raise _Newer(f"format {card['format']!s:.20}")
    if (card.get("flips") is not None) != (card["format"] == FORMAT):
        raise ValueError(f"flips belong to format {FORMAT}, and to no other")
    tensors = load(content)  # checks header and length before anything is allocated
    names = {f"mask.{name}" for name in card["tensors"]} if card.get("flips") is None else {"flips"}
    names |= {f"head.{name}" for name in card["head"]}
    if names != tensors.keys() or not card["tensors"] or card["tensors"].keys() - card["base"].keys():
        raise ValueError(f"its tensors are not those of its card: {sorted(names ^ tensors.keys())[:3]}")
    texts = [*card["base"], *(str(card.get(key)) for key in _NAMED)]
    if any(len(text) > MAX_SAID or not text.isprintable() for text in texts):
        raise ValueError("a name of its base is too long, or has signs that cannot be printed")
    limit = _limit(content)
    if type(card.get("heads", 1)) is not int:
        raise ValueError(f"the heads of a layer are no number, but {card['heads']!r:.20}")
    if sum(_entries(name, said) for name, said in card["tensors"].items()) > limit:
        raise ValueError(f"its {len(content)} bytes claim to hold the masks of more than {limit} weights")
    return card, tensors


def _limit(content: bytes) -> int:
    """How many entries a file of these bytes can claim."""
    return min(MAX_WEIGHTS, max(FEW_WEIGHTS, WEIGHTS_A_BYTE * len(content)))


def _head(tensors: Mapping[str, Tensor], card: dict) -> dict[str, Tensor]:
    """The head's tensors, checked against the card and its labels."""
    head, labels = {name: tensors[f"head.{name}"] for name in card["head"]}, card["labels"]
    for name, said in card["head"].items():
        if said != {"shape": [*head[name].shape], "sha256": tensor_hash(head[name])}:
            raise ValueError(f"{name} is not what the card says")
    outputs = head_of(head, card).output.out_features
    if not fit_labels(labels, outputs):
        raise ValueError(
            f"the head has {outputs} outputs, and the card's labels must be as many different texts, got {labels!r}"
        )
    return head


def _entries(name: str, said: dict) -> int:
    """How many entries a mask has according to the card; ValueError if that is no count, or none at all."""
    shape, kept = said["shape"], said["kept"]
    if not isinstance(shape, list) or len(shape) > 8 or any(type(n) is not int or n < 0 for n in [*shape, kept]):
        raise ValueError(f"{name} is not what the card says: shape or kept are no counts")
    if not all(shape):
        raise ValueError(f"{name} is empty, and a mask has entries")
    if any(n > MAX_WEIGHTS for n in shape) or kept > (total := math.prod(shape)):
        raise ValueError(f"{name} is not what the card says: too many entries, or more kept than there are")
    return total


def _mask(name: str, stored: Tensor, said: dict) -> Tensor:
    """One mask, decoded after checking its bytes against the card."""
    if stored.dtype != torch.uint8 or stored.ndim != 1 or tensor_hash(stored) != said["sha256"]:
        raise ValueError(f"{name} is not what the card says")
    try:
        _entries(name, said)
        entries = decode(said.get("coding", "bits"), stored.numpy().tobytes(), tuple(said["shape"]), said["kept"])
    except ValueError as error:
        raise ValueError(f"{name} is not what the card says: {error}") from None
    return torch.from_numpy(entries)


def _matrix(said: dict) -> tuple[int, int]:
    """Rows and columns of a mask that is stored as flips."""
    if said.keys() != {"shape", "kept", "coding"} or said["coding"] != "flips" or len(said["shape"]) != 2:
        raise ValueError("a mask of flips is a matrix with shape, kept and coding")
    return tuple(said["shape"])


def _reference(path: Path, named: Any, card: dict) -> Mask:
    """The mask file in the same folder that is the reference of ``path``; errors name both."""
    name = named.get("file") if isinstance(named, dict) else None
    if not isinstance(name, str) or not re.fullmatch(_FILE, name) or not name.isprintable():
        raise ValueError(f"{path} {NOT_WHOLE}: its reference is not a file beside it")
    beside, whole = path.with_name(name), f"{path} is stored by where it differs from {name!r}"
    try:
        if not os.path.exists(beside):  # unlike that of a Path, False for a name that no disk can hold
            raise FileNotFoundError(f"{whole}, which must lie beside it and does not")
        if sha256_of(content := read_bytes(beside, MAX_FILE)) != (seal := named.get("sha256")):
            raise ValueError(f"it is another file, its sha256 is not {seal!r:.70}: get both again")
        mask = read_mask(beside, content, alone=True)
        check_reference(mask, card["base"], {name: said["shape"] for name, said in card["tensors"].items()})
    except ValueError as error:
        raise ValueError(f"{whole}, which lies beside it: {error}") from None
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(f"{whole}, which cannot be read: {error.strerror}") from error
    return mask
