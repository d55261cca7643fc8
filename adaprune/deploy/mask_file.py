"""Mask files: everything a task adds to a base model, and bound to exactly that base.

A file is a safetensors file, never a pickle; docs/mask_format.md has every byte:

- ``flips``, uint8: where all masks differ from a reference, as `adaprune.deploy.flips` codes it. Or, where that is not
  clearly shorter, ``mask.<weight name>``, uint8: each mask in one of the codings of `adaprune.deploy.coding`.
- ``head.<parameter name>``, float32.
- metadata ``adaprune``, JSON ``{"card": {...}, "sha256": of the card as ASCII JSON with sorted keys, no spaces}``.

The card has what the caller gave and ``format`` (3 with flips, 2 without; 1, with plain bits only, is still read),
``base`` {tensor of the base model: sha256}, ``tensors`` {mask: shape, kept, coding, sha256}, ``flips`` and ``head``
{parameter: shape, sha256}; sha256 as in `encoders.tensor_hash`, of the stored tensor. The .safetensors file alone is
complete; the .json beside it repeats the card to be read, with ``file_sha256`` added.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import errors as hub_errors
from huggingface_hub import hf_hub_download
from safetensors.torch import save
from torch import Tensor, nn

from adaprune.deploy.coding import encode
from adaprune.deploy.flips import encode_flips
from adaprune.deploy.mask import OWN, Mask, check_masks, digest, fitting_head, weights_of
from adaprune.deploy.reading import (
    FORMAT,
    HOSTILE,
    MAX_FILE,
    MAX_HEADER,
    check_reference,
    read_mask,
    sha256_of,
)
from adaprune.deploy.zoo_files import ZOO, is_zoo_name, zoo_file
from adaprune.masks import maskable
from adaprune.runs import read_bytes, write_bytes
from adaprune.runtime import check_runtime, set_runtime
from adaprune.training import AdaptedModel, tensor_hash, tensor_hashes

PLAIN_FORMAT = 2  # of files without flips, which older readers can read
WORTH = 0.95  # flips are taken where they are shorter than this share of the other codings, which need no base


def save_mask(
    path: str | Path,
    masks: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
    card: Mapping[str, Any],
    encoder: nn.Module,
    plain: bool = False,
    reference: str | Path | None = None,
) -> Path:
    """Writes the mask file ``path`` and its card beside it, each whole or not at all; returns the path.

    Killed at any moment, there is the old mask or the new one, at worst without the card beside it.

    Args:
        path: ``<folder>/<name>.safetensors``; the folder is made, an older file replaced.
        masks, head: weight name -> boolean tensor of its shape; the ``state_dict()`` of an `AdaptationHead`, float32.
        card: JSON values; ``labels`` (class names by number, empty for regression) must be among them.
        encoder: the untouched base model, with or without masked layers attached.
        plain: every mask as packed bits, for readers that know no other coding.
        reference: a mask file of the same base in the same folder, which readers need then too: the masks are stored by
            where they differ from it. None = from the base's largest weights.

    Raises:
        ValueError, TypeError: a mask or head that does not fit, a card without labels or that JSON cannot hold; a
            reference that is of another base or folder, or has one itself.
        FileExistsError: the .json beside it is no card.
        OSError: the folder cannot be written, the reference not read.
    """
    path, beside = _paths(path)
    if "labels" not in card or set(OWN) & set(card):
        raise ValueError(f"card: labels must, {', '.join(OWN)} must not be given: {[*card]}")
    if os.path.lexists(beside) and not _is_card(beside):
        raise FileExistsError(f"{beside} is no mask's card, yet would be replaced by one: move it, or rename the mask")
    check_masks(masks, encoder)
    base = tensor_hashes(encoder)
    named = None if reference is None else _named(path, Path(reference), base, masks)
    stored, described = _stored(masks, head, encoder, plain, named)
    whole = {**card, "format": FORMAT if "flips" in described else PLAIN_FORMAT, "base": base, **described}
    whole = json.loads(json.dumps(whole, allow_nan=False))  # as it will be read
    content = save(stored, metadata={"adaprune": json.dumps({"card": whole, "sha256": sha256_of(whole)})})
    read_mask(path, content).resolve(encoder)  # what does not come back bit for bit is not written
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.unlink(missing_ok=True)  # so that no card ever stands beside another's mask
        write_bytes(path, content)
        write_bytes(beside, json.dumps({**whole, "file_sha256": sha256_of(content)}, indent=1).encode() + b"\n")
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror or error}): make room or choose another folder") from error
    return path


def load_mask(path: str | Path, base: nn.Module | None = None) -> Mask:
    """The mask in a file of `save_mask`, every byte checked; takes memory in proportion to the file's real size.

    Args:
        path: the file; or a name of the `zoo`, as ``"sst2"``.
        base: the model that the mask was made for, to know its ``masks`` at once. `apply_mask` and ``add_task`` have
            the model themselves; else the one that the card names is loaded when ``masks`` are asked for, see `Mask`.

    Raises:
        ValueError, OSError: a damaged or foreign file, or another's card beside it; no such file; no reference, or
            another, where the file names one. Names the file.
        ValueError: ``base`` is another one (names the tensor); a name that the zoo does not have (says which it has).
    """
    path, beside = _paths(zoo_file(path) if is_zoo_name(path) else path)
    mask = read_mask(path, content := read_bytes(path, MAX_FILE))
    if os.path.lexists(beside):
        try:
            found = sha256_of(json.loads(read_bytes(beside, MAX_HEADER)))
        except HOSTILE as error:
            found = str(error)
        if found != sha256_of({**mask.card, "file_sha256": sha256_of(content)}):
            raise ValueError(f"{beside} is not the card of {path}: get both again, or delete it (the mask has its own)")
    return mask if base is None else mask.resolve(base)


def find_mask(name: Path, revision: str | None = None) -> Path:
    """The file of one mask: a path, a name of the zoo, or a folder or hub repository that `Adapted` wrote.

    Raises:
        FileNotFoundError: there is none.
    """
    if not name.exists() and (ZOO / f"{name}.safetensors").is_file():
        return ZOO / f"{name}.safetensors"
    if name.is_dir() or name.suffix == ".safetensors":
        path = name / "mask.safetensors" if name.is_dir() else name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        return path
    try:
        return Path(hf_hub_download(str(name), "mask.safetensors", revision=revision))
    except (OSError, ValueError, hub_errors.HFValidationError) as error:
        raise FileNotFoundError(
            f"{name} is no folder with mask.safetensors, no mask file, and cannot be had from the hub "
            f"({str(error).splitlines()[0]})"
        ) from error


@torch.no_grad()
def apply_mask(model: nn.Module, mask: Mask, runtime: str = "dense") -> AdaptedModel:
    """``model`` adapted to the mask's task, in evaluation mode: f(x; w0 * m, p) with the paper's letters.

    The given encoder itself is changed: its masked weights become 0, it is frozen, and its config gets the task's
    labels. It then costs what the base costs. A second mask is refused on it, because it is no longer the base that
    the masks were made for: load the base again. Where this function raises, nothing has been changed.

    Args:
        model: the base encoder (``AutoModel``), or an AdaptedModel around it, whose head is replaced.
        runtime: ``dense``; ``sparse`` or ``auto`` compute with the kept weights alone, see `runtime.set_runtime`.

    Raises:
        ValueError: another base (names the tensor), one that a MaskedEncoder serves or with masked layers attached, a
            mask or head that does not fit, a runtime that there is not or that the model's dtype or device rules out.
    """
    encoder = model.encoder if isinstance(model, AdaptedModel) else model
    if any(hasattr(module, "mask_name") for module in encoder.modules()):  # its tasks need the weights as they are
        raise ValueError("a MaskedEncoder serves this encoder: add_task(name, mask) there, or load the base again")
    head = fitting_head(encoder, mask)
    check_runtime(runtime, encoder)
    adapted = model if isinstance(model, AdaptedModel) else AdaptedModel(encoder, head)
    if adapted.head.output.out_features != head.output.out_features:
        raise ValueError(f"the mask's head has {head.output.out_features} outputs, the model's other: give the encoder")
    for name, module in maskable(encoder, "encoder+embeddings").items():
        if name in mask.masks:
            module.weight.mul_(mask.masks[name].to(module.weight.device))
    encoder.requires_grad_(False)
    if labels := mask.card["labels"]:
        encoder.config.id2label = dict(enumerate(labels))
        encoder.config.label2id = {label: number for number, label in enumerate(labels)}
    adapted.head = head
    return set_runtime(adapted.eval(), runtime)


def _stored(
    masks: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
    encoder: nn.Module,
    plain: bool,
    reference: tuple[dict, Mask] | None,
) -> tuple[dict[str, Tensor], dict]:
    """The tensors of the file, and what the card says of them under ``tensors``, ``head`` and ``flips``."""
    arrays = {name: mask.cpu().numpy() for name, mask in masks.items()}
    coded = {name: encode(array.ravel(), plain) for name, array in arrays.items()}
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
) -> tuple[dict[str, Any], bytes] | None:
    """Where masks differ from their reference: what the card says, and the bytes; None if weights are not float32."""
    weights = weights_of(encoder, masks)
    if weights is None or not masks:
        return None
    named, mask = reference or (None, None)
    others = mask and {name: kept.numpy() for name, kept in mask.resolve(encoder).masks.items()}
    said, data = encode_flips(masks, weights, others)
    return {"reference": named, **said, "masks": digest(masks)}, data


def _bytes(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def _named(path: Path, reference: Path, base: Mapping, masks: Mapping[str, Tensor]) -> tuple[dict, Mask]:
    """How the card names the reference, and its mask; ValueError where it cannot be the reference of these masks."""
    if reference.parent.resolve() != path.parent.resolve() or reference.name == path.name:
        raise ValueError(f"reference must be another mask file in the folder of {path}, got {reference}")
    mask = read_mask(_paths(reference)[0], content := read_bytes(reference, MAX_FILE), alone=True)
    check_reference(mask, base, {name: kept.shape for name, kept in masks.items()})
    return {"file": reference.name, "sha256": sha256_of(content)}, mask


def _paths(path: str | Path) -> tuple[Path, Path]:
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"{path}: the name of a mask file ends in .safetensors")
    return Path(path), Path(path).with_suffix(".json")


def _is_card(path: Path) -> bool:
    try:
        return {"file_sha256", "tensors"} <= json.loads(read_bytes(path, MAX_HEADER)).keys()
    except (OSError, *HOSTILE):
        return False
