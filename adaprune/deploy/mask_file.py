"""Mask files: everything a task adds to a base model, at 1 bit a weight or less, and bound to exactly that base.

A file is a safetensors file, never a pickle; docs/mask_format.md has every byte:

- ``mask.<weight name>``, uint8: the mask in one of the codings of `adaprune.deploy.coding`, in row-major order.
- ``head.<parameter name>``, float32.
- metadata ``adaprune``, JSON ``{"card": {...}, "sha256": of the card as ASCII JSON with sorted keys, no spaces}``.

The card has what the caller gave and ``format`` (2; files of format 1 have plain bits only, and are read), ``base``
{tensor of the base model: sha256}, ``tensors`` {mask: shape, kept, coding, sha256} and ``head`` {parameter: shape,
sha256}; sha256 as in `encoders.tensor_hash`, of the stored tensor. The .safetensors file alone is complete; the .json
beside it repeats the card to be read, with ``file_sha256`` added.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from adaprune.deploy.coding import decode, encode
from adaprune.deploy.sparse import check_runtime, set_runtime
from adaprune.masks import count_kept, maskable, thetas_of
from adaprune.runs import read_bytes, write_bytes
from adaprune.training import AdaptationHead, AdaptedModel, tensor_hash, tensor_hashes

FORMAT = 2
MAX_FILE = 2**30  # bytes; what is larger is not read
MAX_WEIGHTS = 2**33  # and so many for each byte of the file, or in all where that is more:
WEIGHTS_A_BYTE, FEW_WEIGHTS = 256, 2**26  # (a head has 4 width^2 bytes, a layer 12 width^2 weights: more than enough)
MAX_HEADER = 2**23  # bytes, for the header and for the card beside the file
_HOSTILE = (SafetensorError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, eq=False)
class Mask:
    """What a mask file holds: ``masks`` (base tensor's name -> boolean, True = kept), the head's tensors, the card."""

    masks: dict[str, Tensor]
    head: dict[str, Tensor]
    card: dict[str, Any]
    kept = property(lambda self: count_kept(self.masks)["kept"], doc="Number of weights in scope that stay.")
    total = property(lambda self: count_kept(self.masks)["total"], doc="Number of weights in scope.")
    sparsity = property(lambda self: count_kept(self.masks)["sparsity"], doc="The share removed, 1 - kept / total.")
    density = property(lambda self: self.kept / self.total, doc="The share kept.")


def save_mask(
    path: str | Path,
    masks: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
    card: Mapping[str, Any],
    encoder: nn.Module,
    plain: bool = False,
) -> Path:
    """Writes the mask file ``path`` and its card beside it, each whole or not at all; returns the path.

    Killed at any moment, there is the old mask or the new one, at worst without the card beside it.

    Args:
        path: ``<folder>/<name>.safetensors``; the folder is made, an older file replaced.
        masks, head: weight name -> boolean tensor of its shape; the ``state_dict()`` of an `AdaptationHead`, float32.
        card: JSON values; ``labels`` (class names by number, empty for regression) must be among them.
        encoder: the untouched base model, with or without masked layers attached.
        plain: every mask as packed bits, for readers that know no other coding.

    Raises:
        ValueError, TypeError: a mask or head that does not fit, a card without labels or that JSON cannot hold.
        FileExistsError: the .json beside it is no card.
        OSError: the folder cannot be written.
    """
    path, beside = _paths(path)
    if "labels" not in card or {"format", "base", "tensors", "head", "file_sha256"} & set(card):
        raise ValueError(f"card: labels must, format, base, tensors, head, file_sha256 must not be given: {[*card]}")
    if os.path.lexists(beside) and not _is_card(beside):
        raise FileExistsError(f"{beside} is no mask's card, yet would be replaced by one: move it, or rename the mask")
    _check_masks(masks, encoder)
    stored, described = _stored(masks, head, plain)
    whole = {**card, "format": FORMAT, "base": tensor_hashes(encoder), **described}
    whole = json.loads(json.dumps(whole, allow_nan=False))  # as it will be read
    content = save(stored, metadata={"adaprune": json.dumps({"card": whole, "sha256": _digest(whole)})})
    _decode(path, content)  # what could not be read back is not written
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.unlink(missing_ok=True)  # so that no card ever stands beside another's mask
        write_bytes(path, content)
        write_bytes(beside, json.dumps({**whole, "file_sha256": _digest(content)}, indent=1).encode() + b"\n")
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror or error}): make room or choose another folder") from error
    return path


def load_mask(path: str | Path) -> Mask:
    """The mask in a file of `save_mask`, every byte checked; takes memory in proportion to the file's real size.

    Raises:
        ValueError, OSError: a damaged or foreign file, or another's card beside it; no such file. Names the file.
    """
    path, beside = _paths(path)
    mask = _decode(path, content := read_bytes(path, MAX_FILE))
    if os.path.lexists(beside):
        try:
            found = _digest(json.loads(read_bytes(beside, MAX_HEADER)))
        except _HOSTILE as error:
            found = str(error)
        if found != _digest({**mask.card, "file_sha256": _digest(content)}):
            raise ValueError(f"{beside} is not the card of {path}: get both again, or delete it (the mask has its own)")
    return mask


@torch.no_grad()
def apply_mask(model: nn.Module, mask: Mask, runtime: str = "dense") -> AdaptedModel:
    """``model`` adapted to the mask's task, in evaluation mode: f(x; w0 * m, p) with the paper's letters.

    The given encoder itself is changed: its masked weights become 0, it is frozen, and its config gets the task's
    labels. It then costs what the base costs. A second mask is refused on it, because it is no longer the base that
    the masks were made for: load the base again. Where this function raises, nothing has been changed.

    Args:
        model: the base encoder (``AutoModel``), or an AdaptedModel around it, whose head is replaced.
        runtime: ``dense``; ``sparse`` or ``auto`` compute with the kept weights alone, see `deploy.set_runtime`.

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


def fitting_head(encoder: nn.Module, mask: Mask) -> AdaptationHead:
    """The mask's head, on the encoder's device, once all of the mask is known to fit the encoder; changes nothing.

    Raises:
        ValueError: another base (names the tensor), masked layers still attached, a mask or head that does not fit.
    """
    if thetas_of(encoder):
        raise ValueError("the encoder has masked layers attached: adaprune.masks.detach(encoder) first")
    check_base(encoder, mask)
    _check_masks(mask.masks, encoder)
    head = _head(mask.head, mask.card).to(next(encoder.parameters()).device)
    if (head.mix.numel(), head.output.in_features) != (encoder.config.num_hidden_layers, encoder.config.hidden_size):
        raise ValueError(
            f"the mask's head reads {head.mix.numel()} layers of width {head.output.in_features}, the "
            f"encoder has {encoder.config.num_hidden_layers} of width {encoder.config.hidden_size}"
        )
    return head


def check_base(encoder: nn.Module, mask: Mask) -> None:
    """ValueError, with what differs, where ``encoder`` is not the base that the mask was made for."""
    heads, state = encoder.config.num_attention_heads, encoder.state_dict()
    if (expected := mask.card.get("heads", heads)) != heads:  # no tensor tells them apart
        raise ValueError(f"mask made for another base: one of {expected} attention heads a layer, this one has {heads}")
    for name, expected in mask.card["base"].items():
        if name not in state or tensor_hash(state[name]) != expected:
            raise ValueError(
                f"mask made for another base: {name} {'differs' if name in state else 'is missing'}. "
                "Load the model and revision of the mask's card, in float32 and with no mask applied yet"
            )


def _check_masks(masks: Mapping[str, Tensor], encoder: nn.Module) -> None:
    """ValueError, with the name, where a mask is no boolean tensor of a maskable weight's shape."""
    modules = maskable(encoder, "encoder+embeddings")
    for name, mask in masks.items():
        if name not in modules:
            raise ValueError(f"{name} cannot be masked in {type(encoder).__name__}")
        expected = tuple(modules[name].weight.shape)
        if mask.dtype != torch.bool or mask.shape != expected:
            raise ValueError(f"{name}: the mask must be boolean {expected}, got {mask.dtype} {tuple(mask.shape)}")


def _head(tensors: Mapping[str, Tensor], card: Mapping) -> AdaptationHead:
    """The head with copies of these tensors; ValueError where they are not those of an AdaptationHead in float32."""
    try:
        if any(tensor.dtype != torch.float32 or not tensor.numel() for tensor in tensors.values()):
            raise ValueError("not all are float32, or one is empty")
        outputs, width = tensors["output.weight"].shape
        with torch.device("meta"):  # draws no random numbers
            kind = "mlp" if "hidden.weight" in tensors else "linear"
            head = AdaptationHead(len(tensors["mix"]), width, outputs, kind, card.get("pooling", "cls"))
        head.load_state_dict({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, assign=True)
    except _HOSTILE as error:
        raise ValueError(f"the head's tensors are not those of an AdaptationHead: {error}") from None
    return head


def _stored(masks: Mapping[str, Tensor], head: Mapping[str, Tensor], plain: bool) -> tuple[dict, dict]:
    """The tensors of the file, and what the card says of them under ``tensors`` and ``head``."""
    stored, described = {}, {"tensors": {}, "head": {}}
    for name, mask in masks.items():
        coding, data = encode(mask.cpu().numpy().ravel(), plain)
        stored[f"mask.{name}"] = bits = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
        said = {"shape": [*mask.shape], "kept": int(mask.sum()), "coding": coding, "sha256": tensor_hash(bits)}
        described["tensors"][name] = said
    for name, tensor in head.items():
        stored[f"head.{name}"] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        described["head"][name] = {"shape": [*tensor.shape], "sha256": tensor_hash(tensor)}
    return stored, described


def _decode(path: Path, content: bytes) -> Mask:
    """The mask in a file's bytes; ValueError, with the file, where anything in it disagrees."""
    try:
        if (size := int.from_bytes(content[:8], "little")) > min(MAX_HEADER, len(content) - 8):
            raise ValueError(f"the header claims {size} bytes")
        sealed = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["adaprune"])
        card, labels = sealed["card"], sealed["card"]["labels"]
        if _digest(card) != sealed["sha256"] or card["format"] not in (1, FORMAT):
            raise ValueError("the card's sha256 or format does not fit")
        tensors = load(content)  # finds out whether header and length fit before anything is allocated
        names = {f"mask.{name}" for name in card["tensors"]} | {f"head.{name}" for name in card["head"]}
        if names != tensors.keys() or not card["tensors"] or card["tensors"].keys() - card["base"].keys():
            raise ValueError(f"its tensors are not those of its card: {sorted(names ^ tensors.keys())[:3]}")
        limit = min(MAX_WEIGHTS, max(FEW_WEIGHTS, WEIGHTS_A_BYTE * len(content)))
        if sum(_entries(name, said) for name, said in card["tensors"].items()) > limit:
            raise ValueError(f"its {len(content)} bytes claim to hold the masks of more than {limit} weights")
        head = {name: tensors[f"head.{name}"] for name in card["head"]}
        for name, said in card["head"].items():
            if said != {"shape": [*head[name].shape], "sha256": tensor_hash(head[name])}:
                raise ValueError(f"{name} is not what the card says")
        masks = {name: _mask(name, tensors[f"mask.{name}"], said) for name, said in card["tensors"].items()}
        outputs = _head(head, card).output.out_features
        if not isinstance(labels, list) or outputs != (len(labels) or 1) or {type(label) for label in labels} - {str}:
            raise ValueError(f"the head has {outputs} outputs, the card's labels are {labels}")
    except _HOSTILE as error:
        raise ValueError(f"{path} is not a whole mask file of format {FORMAT}: {error}") from None
    return Mask(masks, head, card)


def _entries(name: str, said: dict) -> int:
    """How many entries a mask has by the card; ValueError where that is no count."""
    shape, kept = said["shape"], said["kept"]
    if not isinstance(shape, list) or len(shape) > 8 or any(type(n) is not int or n < 0 for n in [*shape, kept]):
        raise ValueError(f"{name} is not what the card says: shape or kept are no counts")
    if any(n > MAX_WEIGHTS for n in shape) or kept > (total := math.prod(shape)):
        raise ValueError(f"{name} is not what the card says: too many entries, or more kept than there are")
    return total


def _mask(name: str, stored: Tensor, said: dict) -> Tensor:
    """One mask, decoded once its bytes are known to be the card's."""
    if stored.dtype != torch.uint8 or stored.ndim != 1 or tensor_hash(stored) != said["sha256"]:
        raise ValueError(f"{name} is not what the card says")
    try:
        entries = decode(said.get("coding", "bits"), stored.numpy().tobytes(), _entries(name, said), said["kept"])
    except ValueError as error:
        raise ValueError(f"{name} is not what the card says: {error}") from None
    return torch.from_numpy(entries.reshape(said["shape"]))


def _paths(path: str | Path) -> tuple[Path, Path]:
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"{path}: the name of a mask file ends in .safetensors")
    return Path(path), Path(path).with_suffix(".json")


def _is_card(path: Path) -> bool:
    try:
        return {"file_sha256", "tensors"} <= json.loads(read_bytes(path, MAX_HEADER)).keys()
    except (OSError, *_HOSTILE):
        return False


def _digest(content: bytes | dict) -> str:
    """sha256 in hexadecimal: of bytes, or of the canonical form of JSON values."""
    if not isinstance(content, bytes):
        content = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    return hashlib.sha256(content).hexdigest()
