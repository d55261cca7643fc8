"""Mask files: everything a task adds to a base model, at 1 bit a weight, and bound to exactly that base.

A file is a safetensors file (8 bytes header length, little-endian; JSON header; data), never a pickle:

- ``mask.<weight name>``, uint8, shape (ceil(n / 8),): the mask's n entries in row-major order, 1 = kept. Entry i
  is bit i mod 8 of byte i // 8, bit 0 the least significant; unused high bits of the last byte are 0.
- ``head.<parameter name>``, float32: the head.
- metadata ``adaprune``, JSON ``{"card": {...}, "sha256": digest}``: the card and the sha256 of its canonical form
  (sorted keys, no spaces, ASCII).

The card holds what the caller gave and ``format`` (1), ``base`` {tensor of the base model: sha256}, ``tensors``
{mask: shape, kept, sha256} and ``head`` {parameter: shape, sha256}; these sha256 are `encoders.tensor_hash`, taken
of the tensor as stored. The .safetensors file alone is complete. The .json beside it is a copy of the card to read,
with ``file_sha256``, the sha256 of the whole .safetensors file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from adaprune.encoders import tensor_hash, tensor_hashes
from adaprune.heads import AdaptationHead, AdaptedModel
from adaprune.masks import count_kept, maskable, thetas_of

FORMAT = 1
MAX_FILE = 2**30  # bytes: 8.6 billion weights; what is larger is not read
MAX_HEADER = 2**23  # bytes, for the header and for the card beside the file
_KEY = "adaprune"

_Sha256 = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\Z")]
_Shape = Annotated[list[Annotated[int, Field(ge=1, lt=2**48)]], Field(max_length=8)]


class _Stored(BaseModel):
    """What the card says of one stored tensor."""

    model_config = ConfigDict(strict=True, extra="forbid")
    shape: _Shape
    sha256: _Sha256


class _StoredMask(_Stored):
    """The same of a mask, whose shape is that before packing."""

    kept: int


class _Card(BaseModel):
    """What every card must hold; the rest is the caller's."""

    model_config = ConfigDict(strict=True, extra="allow")
    format: Literal[1]
    labels: list[str]
    base: Annotated[dict[str, _Sha256], Field(min_length=1)]
    tensors: Annotated[dict[str, _StoredMask], Field(min_length=1)]
    head: dict[str, _Stored]


@dataclass(frozen=True, eq=False)
class Mask:
    """What a mask file holds: ``masks`` (base tensor's name -> boolean, True = kept), the head's tensors, the card."""

    masks: dict[str, Tensor]
    head: dict[str, Tensor]
    card: dict[str, Any]

    @property
    def kept(self) -> int:
        """Number of weights in scope that stay."""
        return int(count_kept(self.masks)["kept"])

    @property
    def total(self) -> int:
        """Number of weights in scope."""
        return int(count_kept(self.masks)["total"])

    @property
    def density(self) -> float:
        """kept / total."""
        return self.kept / self.total

    @property
    def sparsity(self) -> float:
        """1 - kept / total."""
        return float(count_kept(self.masks)["sparsity"])


def save_mask(path: str | Path, masks: Mapping[str, Tensor], head: Mapping[str, Tensor], card: Mapping[str, Any],
              encoder: nn.Module) -> Path:
    """Writes the mask file ``path`` and its card beside it, each whole or not at all; returns the path.

    Killed at any moment, there is the old mask or the new one, at worst without the card beside it.

    Args:
        path: ``<folder>/<name>.safetensors``; the folder is made, an older file replaced.
        masks: weight name -> boolean tensor of the weight's shape, on any device.
        head: ``AdaptationHead.state_dict()``, float32.
        card: JSON values; ``labels`` (class names by number, empty for regression) must be among them.
        encoder: the untouched base model, with or without masked layers attached.

    Raises:
        ValueError: a mask that does not fit the encoder, a head of another shape, a card without labels.
        TypeError: a card that JSON cannot hold.
        OSError: the folder cannot be written.
    """
    path = _mask_path(path)
    reserved = sorted({"format", "base", "tensors", "head", "file_sha256"} & set(card))
    if reserved:
        raise ValueError(f"card: {', '.join(reserved)} is filled in here, leave it out")
    _check_masks(masks, encoder)
    packed = {name: _pack(mask) for name, mask in masks.items()}
    plain = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in head.items()}
    whole = {
        **card,
        "format": FORMAT,
        "base": tensor_hashes(encoder),
        "tensors": {name: {"shape": list(mask.shape), "kept": int(mask.sum()), "sha256": tensor_hash(packed[name])}
                    for name, mask in masks.items()},
        "head": {name: {"shape": list(tensor.shape), "sha256": tensor_hash(tensor)} for name, tensor in plain.items()},
    }
    try:
        whole = json.loads(json.dumps(whole, allow_nan=False))  # keys as JSON has them, before they are sorted
    except (TypeError, ValueError) as error:
        raise type(error)(f"card: {error}") from None
    sealed = json.dumps({"card": whole, "sha256": _digest(_canonical(whole))})
    stored = {f"mask.{name}": bits for name, bits in packed.items()} | {f"head.{name}": t for name, t in plain.items()}
    content = save(stored, metadata={_KEY: sealed})
    _decode(path, content)  # what could not be read back is not written
    beside = json.dumps({**whole, "file_sha256": _digest(content)}, indent=1, ensure_ascii=False) + "\n"
    _replace(path, content, beside.encode())
    return path


def load_mask(path: str | Path) -> Mask:
    """The mask in a file of `save_mask`, every byte checked; memory stays below some 12 times the file's size.

    Raises:
        ValueError: damaged, cut off, too long, or not the file that the card beside it belongs to; names the file.
        OSError: no such file, or it cannot be read.
    """
    path = _mask_path(path)
    content = _read(path, MAX_FILE)
    mask = _decode(path, content)
    beside = path.with_suffix(".json")
    if os.path.lexists(beside):
        _check_beside(beside, {**mask.card, "file_sha256": _digest(content)})
    return mask


@torch.no_grad()
def apply_mask(model: nn.Module, mask: Mask) -> AdaptedModel:
    """``model`` adapted to the mask's task, in evaluation mode: f(x; w0 * m, p) with the paper's letters.

    The given encoder itself is changed: its masked weights become 0, it is frozen, and its config gets the task's
    labels. It then costs what the base costs. A second mask is refused on it, because it is no longer the base that
    the masks were made for: load the base again. Where this function raises, nothing has been changed.

    Args:
        model: the base encoder (``AutoModel``), or an AdaptedModel around it, whose head is replaced.
        mask: from `load_mask`.

    Raises:
        ValueError: another base (names the tensor), masked layers still attached, a mask or head that does not fit.
    """
    encoder = model.encoder if isinstance(model, AdaptedModel) else model
    if thetas_of(encoder):
        raise ValueError("the encoder has masked layers attached: adaprune.masks.detach(encoder) first")
    _check_base(encoder, mask.card["base"])
    _check_masks(mask.masks, encoder)
    adapted = _with_head(model, encoder, mask)
    modules = maskable(encoder, "encoder+embeddings")
    for name, kept in mask.masks.items():
        weight = modules[name].weight
        weight.mul_(kept.to(weight.device))
    encoder.requires_grad_(False)
    if mask.card["labels"]:
        encoder.config.id2label = dict(enumerate(mask.card["labels"]))
        encoder.config.label2id = {label: number for number, label in enumerate(mask.card["labels"])}
    return adapted.eval()


def _mask_path(path: str | Path) -> Path:
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"{path}: the name of a mask file ends in .safetensors")
    return Path(path)


def _check_masks(masks: Mapping[str, Tensor], encoder: nn.Module) -> None:
    """ValueError, with the name, where a mask is no boolean tensor of a maskable weight's shape."""
    modules = maskable(encoder, "encoder+embeddings")
    if not masks:
        raise ValueError("there is no mask: masks is empty")
    for name, mask in masks.items():
        if name not in modules:
            raise ValueError(f"{name} cannot be masked in {type(encoder).__name__}")
        expected = modules[name].weight.shape
        if mask.dtype != torch.bool or mask.shape != expected:
            raise ValueError(f"{name}: the mask must be boolean of shape {tuple(expected)}, got {mask.dtype} of shape "
                             f"{tuple(mask.shape)}")


def _check_base(encoder: nn.Module, base: Mapping[str, str]) -> None:
    """ValueError, with the name, where a tensor of the card's base is missing or has other bytes."""
    state = encoder.state_dict()
    for name, expected in base.items():
        if name not in state or tensor_hash(state[name]) != expected:
            trouble = "differs" if name in state else "is missing"
            raise ValueError(f"the mask was made for another base: tensor {name} {trouble}. Load the model and revision "
                             "that the mask's card names, in float32 and with no mask applied yet")


def _with_head(model: nn.Module, encoder: nn.Module, mask: Mask) -> AdaptedModel:
    """The encoder with the mask's head on top; a given AdaptedModel gets it in place of a head of equal shape."""
    layers, width, outputs = _head_sizes("the mask", mask.head)
    if (layers, width) != (encoder.config.num_hidden_layers, encoder.config.hidden_size):
        raise ValueError(f"the mask's head reads {layers} layers of width {width}, the encoder has "
                         f"{encoder.config.num_hidden_layers} of width {encoder.config.hidden_size}")
    if isinstance(model, AdaptedModel):
        given = model.head.output.out_features
        if {n: t.shape for n, t in model.head.state_dict().items()} != {n: t.shape for n, t in mask.head.items()}:
            raise ValueError(f"the model's head has another shape than the mask's ({given} and {outputs} outputs): "
                             "give the encoder alone")
    with torch.device("meta"):  # draws no random numbers
        head = AdaptationHead(layers, width, outputs)
    head.load_state_dict({name: tensor.clone() for name, tensor in mask.head.items()}, assign=True)
    head.to(next(encoder.parameters()).device)
    if not isinstance(model, AdaptedModel):
        return AdaptedModel(encoder, head)
    model.head = head
    return model


def _head_sizes(where: str | Path, head: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """layers, width and outputs of a head's tensors; ValueError where they are none of AdaptationHead."""
    shapes = {name: tuple(tensor.shape) for name, tensor in head.items() if tensor.dtype == torch.float32}
    layers, (outputs, width) = math.prod(shapes.get("mix", ())), (*shapes.get("output.weight", ()), 0, 0)[:2]
    expected = {"mix": (layers,), "hidden.weight": (width, width), "hidden.bias": (width,),
                "output.weight": (outputs, width), "output.bias": (outputs,)}
    if shapes != expected or len(head) != len(expected):
        raise ValueError(f"{where}: the head must have the float32 tensors of an AdaptationHead, got {shapes}")
    return layers, width, outputs


def _pack(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1), bitorder="little"))


def _unpack(path: Path, name: str, packed: Tensor, said: _StoredMask) -> Tensor:
    """The boolean mask in ``packed``, after its size was found to fit what the card says."""
    n = math.prod(said.shape)
    if packed.numel() != -(-n // 8):
        raise ValueError(f"{path}: mask {name} has {packed.numel()} bytes, shape {said.shape} needs {-(-n // 8)}")
    bits = np.unpackbits(packed.numpy(), bitorder="little")
    if bits[n:].any() or int(bits.sum(dtype=np.int64)) != said.kept:
        raise ValueError(f"{path}: mask {name} does not keep the {said.kept} weights that its card says")
    return torch.from_numpy(bits[:n].astype(bool)).reshape(said.shape)


def _canonical(card: Any) -> bytes:
    return json.dumps(card, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _decode(path: Path, content: bytes) -> Mask:
    """The mask in a file's bytes; ValueError, with the file, where anything in it disagrees."""
    raw, card = _card(path, content)
    try:
        tensors = load(content)  # checks that header and length fit before anything is allocated
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged ({error}): get the file again") from None
    said = {**{f"mask.{n}": s for n, s in card.tensors.items()}, **{f"head.{n}": s for n, s in card.head.items()}}
    for name in sorted(set(tensors) ^ set(said)):
        raise ValueError(f"{path}: {name} is in the {'file' if name in tensors else 'card'} only")
    for name, tensor in tensors.items():
        if tensor_hash(tensor) != said[name].sha256:
            raise ValueError(f"{path} is damaged: {name} has not the sha256 that its card says")
    head = {name: tensors[f"head.{name}"] for name in card.head}
    outputs = _head_sizes(path, head)[2]
    if outputs != (len(card.labels) or 1):
        raise ValueError(f"{path}: the head has {outputs} outputs for {len(card.labels)} labels")
    masks = {name: _unpack(path, name, tensors[f"mask.{name}"], part) for name, part in card.tensors.items()}
    return Mask(masks, head, raw)


def _card(path: Path, content: bytes) -> tuple[dict[str, Any], _Card]:
    """The card in the header, as it is and checked; ValueError where it is none or its sha256 does not fit."""
    size = int.from_bytes(content[:8], "little")
    if size > min(MAX_HEADER, len(content) - 8):
        raise ValueError(f"{path} is damaged or no mask file: it says its header has {size} bytes")
    try:
        sealed = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][_KEY])
        raw, digest = sealed["card"], sealed["sha256"]
        if _digest(_canonical(raw)) != digest:
            raise ValueError("the card's sha256 does not fit")
        return raw, _Card.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{path}: card.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or no mask file ({error!r}): get the file again") from None


def _check_beside(beside: Path, expected: dict[str, Any]) -> None:
    """ValueError where the card beside a mask file is not the one in it; names the key."""
    try:
        found = json.loads(_read(beside, MAX_HEADER))
        same = _canonical(found) == _canonical(expected)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{beside} is no card ({error}): delete it, the mask file has its own") from None
    if not same:
        keys = [key for key in expected if not isinstance(found, dict) or found.get(key) != expected[key]]
        raise ValueError(f"{beside} does not belong to the mask file beside it (differs in {', '.join(keys) or 'keys'}):"
                         " get both again, or delete it, the mask file has its own")


def _read(path: Path, limit: int) -> bytes:
    """A regular file's bytes; ValueError where it is none or larger than ``limit``."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file")
    with path.open("rb") as file:
        content = file.read(limit + 1) if path.stat().st_size <= limit else b""
    if not content or len(content) > limit:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, expected 1 to {limit}")
    return content


def _replace(path: Path, content: bytes, beside: bytes) -> None:
    """Puts both files in place, the old card away first, so that no card ever stands beside another's mask."""
    card = path.with_suffix(".json")
    for target in (path, card):
        if target.is_dir():
            raise IsADirectoryError(f"cannot write {target}: it is a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path.parent, content) as new_mask, _temporary(path.parent, beside) as new_card:
            card.unlink(missing_ok=True)
            os.replace(new_mask, path)
            os.replace(new_card, card)
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror or error}): make room or choose another folder") from error


@contextmanager
def _temporary(folder: Path, content: bytes) -> Iterator[Path]:
    """A hidden file in the folder, its content on the disk already; gone afterwards unless moved."""
    temporary = folder / f".mask-{secrets.token_hex(8)}.tmp"  # same disk: replacing is atomic
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
