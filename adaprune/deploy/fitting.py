"""A mask put on its base: what a mask is, and whether it fits the encoder it is meant for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from adaprune.masks import count_kept, maskable, thetas_of
from adaprune.training import AdaptationHead, AdaptedModel, tensor_hash

HOSTILE = (SafetensorError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


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


@torch.no_grad()
def apply_mask(model: nn.Module, mask: Mask) -> AdaptedModel:
    """``model`` adapted to the mask's task, in evaluation mode: f(x; w0 * m, p) with the paper's letters.

    The given encoder itself is changed: its masked weights become 0, it is frozen, and its config gets the task's
    labels. It then costs what the base costs. A second mask is refused on it, because it is no longer the base that
    the masks were made for: load the base again. Where this function raises, nothing has been changed.

    Args:
        model: the base encoder (``AutoModel``), or an AdaptedModel around it, whose head is replaced.

    Raises:
        TypeError: ``model`` is no module (an `Encoder` has it as ``.model``), or ``mask`` is none of `load_mask`.
        ValueError: another base (names the tensor), one that a MaskedEncoder serves or with masked layers attached, a
            mask or head that does not fit.
    """
    if not isinstance(model, nn.Module):
        hint = "give its .model" if hasattr(model, "model") else "give load_encoder(...).model"
        raise TypeError(f"model must be an encoder (a torch module), got {type(model).__name__}: {hint}")
    if not isinstance(mask, Mask):
        raise TypeError(f"mask must be what load_mask(path) returns, got {type(mask).__name__} {mask!r:.100}")
    encoder = model.encoder if isinstance(model, AdaptedModel) else model
    if any(hasattr(module, "mask_name") for module in encoder.modules()):  # its tasks need the weights as they are
        raise ValueError("a MaskedEncoder serves this encoder: add_task(name, mask) there, or load the base again")
    head = fitting_head(encoder, mask)
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
    return adapted.eval()


def fitting_head(encoder: nn.Module, mask: Mask) -> AdaptationHead:
    """The mask's head, on the encoder's device, once all of the mask is known to fit the encoder; changes nothing.

    Raises:
        ValueError: another base (names the tensor), masked layers still attached, a mask or head that does not fit.
    """
    if thetas_of(encoder):
        raise ValueError("the encoder has masked layers attached: adaprune.masks.detach(encoder) first")
    check_base(encoder, mask)
    check_masks(mask.masks, encoder)
    head = head_of(mask.head, mask.card).to(next(encoder.parameters()).device)
    if (head.mix.numel(), head.output.in_features) != (encoder.config.num_hidden_layers, encoder.config.hidden_size):
        raise ValueError(
            f"the mask's head reads {head.mix.numel()} layers of width {head.output.in_features}, the "
            f"encoder has {encoder.config.num_hidden_layers} of width {encoder.config.hidden_size}"
        )
    return head


def check_base(encoder: nn.Module, mask: Mask) -> None:
    """ValueError, with what differs, where ``encoder`` is not the base that the mask was made for."""
    check_precision(encoder)
    heads, state = encoder.config.num_attention_heads, encoder.state_dict()
    if (expected := mask.card.get("heads", heads)) != heads:  # no tensor tells them apart
        raise ValueError(f"mask made for another base: one of {expected} attention heads a layer, this one has {heads}")
    for name, expected in mask.card["base"].items():
        if name not in state or tensor_hash(state[name]) != expected:
            raise ValueError(
                f"mask made for another base: {name} {'differs' if name in state else 'is missing'}. "
                "Load the model and revision of the mask's card, in float32 and with no mask applied yet"
            )


def check_precision(encoder: nn.Module) -> None:
    """ValueError, with the name, where a base tensor is not in float32: masks are bound to such tensors."""
    for name, tensor in encoder.named_parameters():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ValueError(
                f"mask made for another base: {name} is in {str(tensor.dtype).removeprefix('torch.')}, masks belong to "
                "tensors in float32: load the base with load_encoder, and convert it once the mask is on"
            )


def check_masks(masks: Mapping[str, Tensor], encoder: nn.Module) -> None:
    """ValueError, with the name, where a mask is no boolean tensor of a maskable weight's shape."""
    modules = maskable(encoder, "encoder+embeddings")
    for name, mask in masks.items():
        if name not in modules:
            raise ValueError(f"{name} cannot be masked in {type(encoder).__name__}")
        expected = tuple(modules[name].weight.shape)
        if mask.dtype != torch.bool or mask.shape != expected:
            raise ValueError(f"{name}: the mask must be boolean {expected}, got {mask.dtype} {tuple(mask.shape)}")


def head_of(tensors: Mapping[str, Tensor], card: Mapping) -> AdaptationHead:
    """The head with copies of these tensors; ValueError where they are not those of an AdaptationHead in float32."""
    try:
        if any(tensor.dtype != torch.float32 or not tensor.numel() for tensor in tensors.values()):
            raise ValueError("not all are float32, or one is empty")
        outputs, width = tensors["output.weight"].shape
        with torch.device("meta"):  # draws no random numbers
            kind = "mlp" if "hidden.weight" in tensors else "linear"
            head = AdaptationHead(len(tensors["mix"]), width, outputs, kind, card.get("pooling", "cls"))
        head.load_state_dict({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, assign=True)
    except HOSTILE as error:
        raise ValueError(f"the head's tensors are not those of an AdaptationHead: {error}") from None
    return head
