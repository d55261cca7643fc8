"""Mask files: everything that a task adds to a base model, bound to exactly that base.

A mask file is a safetensors file, never a pickle; docs/mask_format.md describes every byte:

- ``flips``, uint8: where all masks differ from a reference, as coded by `adaprune.deploy.flips`. If that is not clearly
  shorter, ``mask.<weight name>``, uint8, instead: each mask in one of the codings of `adaprune.deploy.coding`.
- ``head.<parameter name>``, float32.
- metadata ``adaprune``, JSON ``{"card": {...}, "sha256": of the card as ASCII JSON with sorted keys, no spaces}``.

The card contains what the caller gave, ``format`` (3 with flips, 2 without; 1, with only plain bits, is still read),
``base`` {tensor of the base model: sha256}, ``tensors`` {mask: shape, kept, coding, sha256}, ``flips`` and ``head``
{parameter: shape, sha256}. Each sha256 is that of the stored tensor, as in `encoders.tensor_hash`. The .safetensors
file is complete in itself; the .json next to it repeats the card for people, with ``file_sha256`` added.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from adaprune.data import expanded
from adaprune.deploy.coding import encode
from adaprune.deploy.flips import encode_flips
from adaprune.deploy.mask import OWN, Mask, base_of, check_masks, check_precision, digest, given, weights_of
from adaprune.deploy.reading import (
    AGAIN,
    FEW_WEIGHTS,
    FORMAT,
    HOSTILE,
    MAX_FILE,
    MAX_HEADER,
    NOT_WHOLE,
    check_reference,
    fit_labels,
    read_mask,
    sha256_of,
)
from adaprune.deploy.zoo_files import is_zoo_name, zoo_file, zoo_names
from adaprune.runs import read_bytes, write_bytes
from adaprune.training import load_encoder, tensor_hash, tensor_hashes

PLAIN_FORMAT = 2  # for files without flips, which older readers can read
WORTH = 0.95  # flips are used if they take less than this share of the other codings, which need no base


def save_mask(
    path: str | Path,
    masks: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
    card: Mapping[str, Any],
    encoder: nn.Module,
    plain: bool = False,
    reference: str | Path | None = None,
) -> Path:
    """Writes the mask file ``path`` and its card next to it, each completely or not at all; returns the path.

    If the process is killed at any moment, the old mask or the new one is there, at worst without the card next to it.

    Args:
        path: ``<folder>/<name>.safetensors``; the folder is made, and an older file replaced.
        masks, head: weight name -> boolean tensor of its shape; the ``state_dict()`` of an `AdaptationHead`, float32.
        card: JSON values, which must include ``labels`` (class names by number, empty for a regression).
        encoder: the untouched base model, with or without masked layers attached.
        plain: store every mask as packed bits, for readers that know no other coding.
        reference: a mask file of the same base in the same folder, which readers then need too: the masks are stored as
            differences from it, if that is shorter than codings without. None = from the base's largest weights.

    Raises:
        ValueError, TypeError: a mask or head that does not fit, a card without labels or that JSON cannot hold, an
            encoder in half precision, or a reference that has another base or folder, or a reference itself.
        FileExistsError: ``path`` holds tensors that are not a mask's, or the .json next to it is not a card.
        OSError: the folder cannot be written, or the reference cannot be read.
    """
    path, beside = _paths(path)
    if not masks:
        raise ValueError("masks is empty: a mask file has at least one mask, by the name of the weight")
    if "labels" not in card or set(OWN) & set(card):
        raise ValueError(f"card: labels must, {', '.join(OWN)} must not be given: {[*card]}")
    if os.path.lexists(beside) and not _is_card(beside):
        raise FileExistsError(f"{beside} is not a mask's card, yet would be replaced: move it, or rename the mask")
    if path.is_file() and not _may_be_mask(path):
        raise FileExistsError(f"{path} holds tensors, but no mask, and would be replaced: move it, or rename the mask")
    if not isinstance(encoder, nn.Module):
        raise TypeError(f"encoder must be a torch module, got {type(encoder).__name__}: give load_encoder(...).model")
    outputs, labels = len(head.get("output.weight", ())), card["labels"]
    if outputs and not fit_labels(labels, outputs):
        raise ValueError(
            f"card: labels must be different texts, one for each of the head's {outputs} outputs, got {labels!r:.200}"
        )
    check_precision(encoder)
    check_masks(masks, encoder)
    base = tensor_hashes(encoder)
    named = None if reference is None else _named(path, expanded(reference), base, masks)
    stored, described = _stored(masks, head, encoder, plain, named)
    whole = {**card, "format": FORMAT if "flips" in described else PLAIN_FORMAT, "base": base, **described}
    whole = json.loads(json.dumps(whole, allow_nan=False))  # check it as it will be read
    content = save(stored, metadata={"adaprune": json.dumps({"card": whole, "sha256": sha256_of(whole)})})
    repeated = _repeated(path, content, whole, encoder)
    try:
        beside.unlink(missing_ok=True)  # so that a card is never next to another mask
        write_bytes(path, content)
        write_bytes(beside, repeated)
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror or error}): make room or choose another folder") from error
    return path


def _repeated(path: Path, content: bytes, card: dict, encoder: nn.Module) -> bytes:
    """The .json that repeats the card; ValueError if `load_mask` would not read both back, bit for bit."""
    repeated = json.dumps({**card, "file_sha256": sha256_of(content)}, indent=1).encode() + b"\n"
    if len(repeated) > MAX_HEADER:
        raise ValueError(f"card: its .json would have {len(repeated):,} bytes, of at most {MAX_HEADER:,}")
    try:
        read_mask(path, content).resolve(encoder)
    except ValueError as error:
        why = str(error).removeprefix(f"{path} {NOT_WHOLE}: ").removesuffix(f"; {AGAIN}")
        raise ValueError(f"a mask with this head and card could not be read: {why}") from None
    return repeated


def load_mask(path: str | Path, base: nn.Module | None = None) -> Mask:
    """The mask in a file of `save_mask`, with every byte checked; takes memory proportional to the file's real size.

    Args:
        path: the file, or a name from the `zoo`, such as ``"sst2"``, even if a folder here has that name.
        base: the model that the mask was made for, to decode its ``masks`` at once. `apply_mask` and ``add_task`` have
            the model themselves; otherwise the one that the card names is loaded when ``masks`` is used, see `Mask`.

    Raises:
        TypeError: ``base`` is not a module (an `Encoder` has it as ``.model``).
        ValueError, OSError: a damaged or foreign file, or another file's card next to it; no such file; a missing or
            different reference. Names the file.
        ValueError: ``base`` is another model (names the tensor), or the zoo has no such name (lists those it has).
    """
    if not str(path).strip():
        raise ValueError(f"no mask is named: give a file's path, or a name from the zoo ({', '.join(zoo_names())})")
    path, beside = _paths(zoo_file(path) if is_zoo_name(path) else path)
    mask = read_mask(path, content := read_bytes(path, MAX_FILE))
    if os.path.lexists(beside) and not _is_record(beside):
        try:
            found = sha256_of(json.loads(read_bytes(beside, MAX_HEADER)))
        except (OSError, *HOSTILE) as error:
            found = str(error)
        if found != sha256_of({**mask.card, "file_sha256": sha256_of(content)}):
            raise ValueError(f"{beside} is not the card of {path}: get both again, or delete it (the mask has its own)")
    try:
        return mask if base is None else mask.resolve(base)
    except ValueError as error:  # about the base alone, it names no file
        raise ValueError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None


def whole_file(path: Path, model: str, expected: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """The bytes of the mask file ``path`` and its card; written anew if it needs a reference beside it to be read.

    ``model`` says where the base is, which is then loaded: masks are written with the weights that they belong to.

    Raises:
        FileNotFoundError, ValueError: the file that had the card ``expected`` is gone or has changed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}, from which this model was loaded, is no longer there")
    content = read_bytes(path, MAX_FILE)
    if (card := read_mask(path, content).card) != expected:
        raise ValueError(f"{path} has changed since this model was loaded from it: load it again")
    if (card.get("flips") or {}).get("reference") is None:
        return content, card
    base = load_encoder(*base_of({**card, "model": model}, path)).model
    mask = load_mask(path, base)
    with tempfile.TemporaryDirectory() as folder:
        alone = save_mask(Path(folder) / path.name, mask.masks, mask.head, given(card), base)
        return alone.read_bytes(), load_mask(alone).card


def _stored(
    masks: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
    encoder: nn.Module,
    plain: bool,
    reference: tuple[dict, Mask] | None,
) -> tuple[dict[str, Tensor], dict]:
    """The tensors of the file, and the card's entries ``tensors``, ``head`` and ``flips`` about them."""
    arrays = {name: mask.cpu().numpy() for name, mask in masks.items()}
    few = sum(array.size for array in arrays.values()) <= FEW_WEIGHTS  # else so few bytes could not claim so many
    coded = {name: encode(array if few else array.ravel(), plain) for name, array in arrays.items()}
    described: dict[str, dict] = {"tensors": {}, "head": {}}
    flips = None if plain else _flips(arrays, encoder, reference)
    if flips is not None and len(flips[1]) + len(json.dumps(flips[0])) < WORTH * sum(len(d) for _, d in coded.values()):
        stored = {"flips": _bytes(flips[1])}
        described["flips"] = {**flips[0], "sha256": tensor_hash(stored["flips"])}
    else:
        stored = {f"mask.{name}": _bytes(data) for name, (_, data) in coded.items()}
    for name, array in arrays.items():
        said = {"shape": [*array.shape], "kept": int(np.count_nonzero(array)), "coding": "flips"}
        if "flips" not in stored:
            said |= {"coding": coded[name][0], "sha256": tensor_hash(stored[f"mask.{name}"])}
        described["tensors"][name] = said
    for name, tensor in head.items():
        stored[f"head.{name}"] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        described["head"][name] = {"shape": [*tensor.shape], "sha256": tensor_hash(tensor)}
    return stored, described


def _flips(
    masks: Mapping[str, np.ndarray], encoder: nn.Module, reference: tuple[dict, Mask] | None
) -> tuple[dict[str, Any], bytes]:
    """The differences of the masks from their reference: the card's entry and the bytes."""
    named, mask = reference or (None, None)
    others = mask and {name: kept.numpy() for name, kept in mask.resolve(encoder).masks.items()}
    said, data = encode_flips(masks, weights_of(encoder, masks), others)
    return {"reference": named, **said, "masks": digest(masks)}, data


def _bytes(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def _named(path: Path, reference: Path, base: Mapping, masks: Mapping[str, Tensor]) -> tuple[dict, Mask]:
    """The card's entry for the reference, and its mask; ValueError if it cannot be the reference of these masks."""
    if reference.parent.resolve() != path.parent.resolve() or reference.name == path.name:
        raise ValueError(f"reference must be another mask file in the folder of {path}, got {reference}")
    mask = read_mask(_paths(reference)[0], content := read_bytes(reference, MAX_FILE), alone=True)
    check_reference(mask, base, {name: kept.shape for name, kept in masks.items()})
    return {"file": reference.name, "sha256": sha256_of(content)}, mask


def _paths(path: str | Path) -> tuple[Path, Path]:
    if not isinstance(path, (str, Path)):
        raise TypeError(f"a mask is given by a path or a name of the zoo, got {path!r:.80} ({type(path).__name__})")
    if Path(path).suffix != ".safetensors":
        name = Path(path).name.strip()
        meant = f"; the zoo's mask is {name!r}, as a text" if name in zoo_names() else ""
        raise ValueError(f"{str(path)!r}: the name of a mask file ends in .safetensors{meant}")
    return expanded(path), expanded(path).with_suffix(".json")


def _may_be_mask(path: Path) -> bool:
    """Whether a file may be replaced: it is a mask's, or not a complete safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return "adaprune" in (file.metadata() or {})
    except (OSError, *HOSTILE):
        return True


def _is_record(path: Path) -> bool:
    """Whether a .json is the record of a run, next to which its mask was copied."""
    try:
        return {"schema_version", "run", "metrics"} <= json.loads(read_bytes(path, MAX_HEADER)).keys()
    except (OSError, *HOSTILE):
        return False


def _is_card(path: Path) -> bool:
    try:
        return {"file_sha256", "tensors"} <= json.loads(read_bytes(path, MAX_HEADER)).keys()
    except (OSError, *HOSTILE):
        return False
