"""A mask with its head and its card, and the base model that it belongs to."""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adaprune.data import expanded, public
from adaprune.deploy.flips import Flips, decode_flips
from adaprune.deploy.runtime import check_runtime, set_runtime
from adaprune.masks import count_kept, maskable, thetas_of
from adaprune.runs import read_record
from adaprune.training import MINILM, AdaptationHead, AdaptedModel, load_encoder, place_of, tensor_hash, weights_in

OWN = ("format", "base", "tensors", "head", "flips", "file_sha256")  # keys that only `save_mask` writes into a card


@dataclass(frozen=True)
class Differences:
    """Masks that a file stores as differences from a reference, so that they are known only with the base's weights.

    ``reference`` is another mask of the same base, or None for the base's own largest weights; ``sha256`` is the
    `digest` that the decoded masks must have. ``path`` names the file in messages.
    """

    path: Path
    flips: Flips
    sha256: str
    reference: Mask | None


class Mask:
    """The content of a mask file: ``masks`` (base tensor's name -> boolean, True = kept), the head's tensors, the card.

    A file stores how its masks differ from the base model's largest weights, so decoding them needs that model. It is
    the model that the mask is applied to, or the base given to `load_mask`. Otherwise the one that the card names is
    loaded when ``masks`` is first used (OSError if it is not available, ValueError if it is another model). Counting
    needs no model.
    """

    def __init__(self, masks: dict[str, Tensor], head: dict[str, Tensor], card: dict[str, Any]) -> None:
        self._masks: dict[str, Tensor] | Differences = masks
        self.head, self.card = head, card

    @property
    def masks(self) -> dict[str, Tensor]:
        if isinstance(self._masks, Differences):
            self.resolve(_at_hand(self._masks.path, self.card))
        return self._masks

    def resolve(self, base: nn.Module) -> Mask:
        """Decodes ``masks`` from the weights of ``base``, after checking that it is the right one; returns the mask.

        Raises:
            TypeError: ``base`` is not a module (an `Encoder` has it as ``.model``).
            ValueError: another base (names the tensor), or a file that does not fit it.
        """
        _check_module(base, "base")
        check_base(base, self)
        if isinstance(self._masks, Differences):
            self._masks = _found(self._masks, self.card, base)
        return self

    @property
    def _counts(self) -> dict[str, int]:
        if not isinstance(self._masks, Differences):
            return count_kept(self._masks)
        said = self.card["tensors"].values()
        return {"kept": sum(one["kept"] for one in said), "total": sum(math.prod(one["shape"]) for one in said)}

    kept = property(lambda self: self._counts["kept"], doc="Number of weights in scope that stay.")
    total = property(lambda self: self._counts["total"], doc="Number of weights in scope.")
    sparsity = property(lambda self: (self.total - self.kept) / self.total, doc="The share removed, 1 - kept / total.")
    density = property(lambda self: self.kept / self.total, doc="The share kept.")


def digest(masks: Mapping[str, np.ndarray]) -> str:
    """sha256, in hexadecimal, of the plain bits of all masks, in the order of their names."""
    found = hashlib.sha256()
    for name in sorted(masks):
        found.update(np.packbits(masks[name], bitorder="little").tobytes())
    return found.hexdigest()


def weights_of(encoder: nn.Module, names: Iterable[str]) -> dict[str, np.ndarray] | None:
    """These weights as float32 arrays on the CPU; None if one has another dtype."""
    modules = maskable(encoder, "encoder+embeddings")
    found = {name: modules[name].weight.detach().cpu() for name in names}
    if any(weight.dtype != torch.float32 for weight in found.values()):
        return None
    return {name: weight.numpy() for name, weight in found.items()}


def given(card: Mapping) -> dict[str, Any]:
    """The part of a card that comes from the caller of `save_mask`."""
    return {key: value for key, value in card.items() if key not in OWN}


def base_of(card: Mapping, path: Path) -> tuple[str, str | None]:
    """Name and commit of the base model from the card of the mask file ``path``; ValueError if it names none.

    For a base in a local folder, a card has only the last part of the path. The folder is searched for where this
    process loaded it, and where the run next to the file (in its ``runs``, as the command leaves them) had it, and is
    recognised by its content.
    """
    if not isinstance(name := card.get("model"), str):
        raise ValueError("the card names no base model")
    revision = str(card.get("revision"))
    if revision.startswith("sha256:") and name != MINILM:
        beside = [path.parent.parent / f"{path.stem}.json", *sorted((path.parent / "runs").glob("*.json"))]
        places = [place_of(revision), *(_asked(record, name) for record in beside)]
        for place in [name, *filter(None, places)]:
            if weights_in(expanded(place)) == revision:
                return place, None
    return name, revision if re.fullmatch("[0-9a-f]{40}", revision) else None


def _asked(record: Path, name: str) -> str | None:
    """The model setting of a record's run, if its public name is ``name``."""
    try:
        model = read_record(record)["run"]["model"]
        return model if public(model) == name else None
    except (OSError, ValueError):
        return None


def _check_module(model: object, name: str) -> None:
    """TypeError, with what to give instead, if ``model`` is not a torch module."""
    if not isinstance(model, nn.Module):
        hint = "give its .model" if hasattr(model, "model") else "give load_encoder(...).model"
        raise TypeError(f"{name} must be an encoder (a torch module), got {type(model).__name__}: {hint}")


def check_base(encoder: nn.Module, mask: Mask) -> None:
    """ValueError, with the difference, if ``encoder`` is not the base that the mask was made for."""
    card, state = mask.card, encoder.state_dict()
    named = ", ".join(str(card[key]) for key in ("model", "revision") if card.get(key)) or "none named"
    way = f"Load the model and revision of its card ({named:.200}), in float32 and with no mask applied yet"
    if (expected := card.get("heads")) is not None and (heads := encoder.config.num_attention_heads) != expected:
        many = f"one of {expected} attention heads a layer, this one has {heads}"  # no tensor tells them apart
        raise ValueError(f"mask made for another base: {many}. {way}")
    if not state.keys() & card["base"].keys():
        raise ValueError("none of the base's tensors are in the model: give the encoder alone, load_encoder(...).model")
    for name, expected in card["base"].items():
        if name in state and tensor_hash(state[name]) == expected:
            continue
        how = "differs" if name in state else "is missing"
        if name in state and state[name].is_floating_point() and state[name].dtype != torch.float32:
            how = f"differs, it is {str(state[name].dtype).removeprefix('torch.')} here"
        raise ValueError(f"mask made for another base: {name} {how}. {way}")


def check_precision(encoder: nn.Module) -> None:
    """ValueError, with the name, if a base tensor is not in float32, which masks are bound to."""
    for name, tensor in encoder.named_parameters():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ValueError(
                f"{name} is in {str(tensor.dtype).removeprefix('torch.')}, masks belong to tensors in float32: load "
                "the base with load_encoder, and convert it once the mask is on"
            )


def check_masks(masks: Mapping[str, Tensor], encoder: nn.Module) -> None:
    """ValueError, with the name, if a mask is not a boolean tensor of a maskable weight's shape."""
    modules = maskable(encoder, "encoder+embeddings")
    for name, mask in masks.items():
        if name not in modules:
            raise ValueError(f"{name} cannot be masked in {type(encoder).__name__}")
        expected = tuple(modules[name].weight.shape)
        if mask.dtype != torch.bool or mask.shape != expected:
            raise ValueError(f"{name}: the mask must be boolean {expected}, got {mask.dtype} {tuple(mask.shape)}")


@torch.no_grad()
def apply_mask(model: nn.Module, mask: Mask, runtime: str = "dense") -> AdaptedModel:
    """``model`` adapted to the mask's task, in evaluation mode: f(x; w0 * m, p) in the paper's notation.

    The encoder itself is changed: its masked weights become 0, it is frozen, and its config gets the task's labels. It
    is then as fast as the base. It refuses a second mask, because it is no longer the base that masks were made for:
    load the base again. If this function raises an error, nothing has been changed.

    Args:
        model: the base encoder (``AutoModel``), or an AdaptedModel around it, whose head is replaced.
        runtime: ``dense``; ``sparse`` and ``auto`` compute only with the kept weights, see `set_runtime`.

    Raises:
        TypeError: ``model`` is not a module (an `Encoder` has it as ``.model``), or ``mask`` is not from `load_mask`.
        ValueError: another base (names the tensor), one that a MaskedEncoder serves or with masked layers attached, a
            mask or head that does not fit, or a runtime that does not exist or not for the model's dtype or device.
    """
    _check_module(model, "model")
    if not isinstance(mask, Mask):
        raise TypeError(f"mask must be what load_mask(path) returns, got {type(mask).__name__} {mask!r:.100}")
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
    AdaptedModel.name_labels(encoder.config, mask.card["labels"])
    adapted.head = head
    return set_runtime(adapted.eval(), runtime)


def fitting_head(encoder: nn.Module, mask: Mask) -> AdaptationHead:
    """The mask's head, on the encoder's device, after checking that the whole mask fits the encoder; changes nothing.

    Raises:
        ValueError: another base (names the tensor), masked layers still attached, a mask or head that does not fit.
    """
    if thetas_of(encoder):
        raise ValueError("the encoder has masked layers attached: adaprune.masks.detach(encoder) first")
    check_masks(mask.resolve(encoder).masks, encoder)
    head = head_of(mask.head, mask.card).to(next(encoder.parameters()).device)
    if (head.mix.numel(), head.output.in_features) != (encoder.config.num_hidden_layers, encoder.config.hidden_size):
        raise ValueError(
            f"the mask's head reads {head.mix.numel()} layers of width {head.output.in_features}, the "
            f"encoder has {encoder.config.num_hidden_layers} of width {encoder.config.hidden_size}"
        )
    return head


def head_of(tensors: Mapping[str, Tensor], card: Mapping) -> AdaptationHead:
    """The head with copies of these tensors; ValueError if they are not those of an AdaptationHead in float32."""
    try:
        if any(t.dtype != torch.float32 or not t.numel() or not t.isfinite().all() for t in tensors.values()):
            raise ValueError("not all are float32, or one is empty or holds NaN or infinity")
        outputs, width = tensors["output.weight"].shape
        with torch.device("meta"):  # draws no random numbers
            kind = "mlp" if "hidden.weight" in tensors else "linear"
            head = AdaptationHead(len(tensors["mix"]), width, outputs, kind, card.get("pooling", "cls"))
        head.load_state_dict({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, assign=True)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"the head's tensors are not those of an AdaptationHead: {error}") from None
    return head


def _found(stored: Differences, card: Mapping, base: nn.Module) -> dict[str, Tensor]:
    """The masks, from the weights of their base; ValueError if the card or the file does not fit it."""
    shapes = {name: said["shape"] for name, said in card["tensors"].items()}
    try:
        check_masks({name: torch.empty(shape, dtype=torch.bool, device="meta") for name, shape in shapes.items()}, base)
        if (weights := weights_of(base, shapes)) is None:
            raise ValueError("its masks are differences from the largest of float32 weights, and the base has others")
        others = None if stored.reference is None else stored.reference.resolve(base).masks
        masks = decode_flips(stored.flips, weights, others and {name: others[name].numpy() for name in shapes})
        wrong = [name for name, said in card["tensors"].items() if np.count_nonzero(masks[name]) != said["kept"]]
        if wrong or digest(masks) != stored.sha256:
            raise ValueError("its masks are not those that were written")
    except ValueError as error:
        raise ValueError(f"{stored.path} does not fit its own base: {error}") from None
    return {name: torch.from_numpy(masks[name]) for name in shapes}


def _at_hand(path: Path, card: Mapping) -> nn.Module:
    """The base model that the card names; OSError, with its name and the remedy, if it cannot be loaded."""
    way = "give the base: load_mask(path, base=encoder)"
    try:
        model, commit = base_of(card, path)
        return _loaded(model, commit, _files(model))
    except OSError as error:
        whole = f"{path} has masks as differences from {card['model']!r:.100}"
        raise OSError(f"{whole}, and {error!s:.600} Or {way}") from error
    except ValueError as error:
        raise ValueError(f"{path} has masks as differences from its base, but {error!s:.600}: {way}") from error


@functools.lru_cache(maxsize=1)  # many masks usually share one base; nobody else holds or changes this copy
def _loaded(model: str, commit: str | None, files: tuple) -> nn.Module:
    return load_encoder(model, commit).model


def _files(model: str) -> tuple[tuple[str, int, int], ...]:
    """The state of a local model's files, so that another model under the same path is loaded again."""
    if not (folder := expanded(model)).is_dir():
        return ()
    found = [file.resolve() for file in folder.iterdir() if file.is_file()]
    return tuple(sorted((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in found))
