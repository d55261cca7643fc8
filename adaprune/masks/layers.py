"""Masks over frozen weights: which weights can be masked, and how a masked layer computes.

A mask is boolean, True = kept, and belongs to a base tensor by name. While it is learned, a layer holds the
real-valued ``theta`` beside its untouched weight and computes with w0 * 1[theta > threshold].
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

SCOPES = ("encoder", "encoder+embeddings")


def masked(weight: Tensor, theta: Tensor, threshold: float) -> Tensor:
    """w0 * 1[theta > threshold]: Eq. 1's masked weights, with Eq. 2's mask as t_l grows.

    (One pass over the memory: torch's derivative of a threshold lets through just what lies above it. Several times
    faster in eager torch than a boolean mask or ``where``, and nothing but the result is allocated.)
    """
    return torch.ops.aten.threshold_backward(weight, theta, threshold)


class _MaskedProduct(torch.autograd.Function):
    """x -> x (w0 * m)^T + b. Recomputes w0 * m in backward instead of keeping a copy of it between the passes.

    The gradient handed to theta is dL/dm = w0 * dL/d(w0 * m), straight through the step; AdaPrune's Eq. 4
    puts the surrogate slope on it. Where x = gelu(z), z is kept for backward instead of x: autograd keeps it anyway.
    """

    @staticmethod
    def forward(ctx, x, weight, theta, bias, threshold):
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        before_gelu = getattr(x.grad_fn, "_saved_self", None) if "Gelu" in type(x.grad_fn).__name__ else None
        ctx.gelu = None if before_gelu is None else x.grad_fn._saved_approximate
        ctx.save_for_backward(x if ctx.gelu is None else before_gelu, weight, theta)
        ctx.threshold = threshold
        kept = masked(weight, theta, threshold).to(x.dtype)
        return functional.linear(x, kept, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx, upstream):
        x, weight, theta = ctx.saved_tensors
        to_input = to_theta = None
        if ctx.needs_input_grad[0]:
            to_input = upstream @ masked(weight, theta, ctx.threshold).to(upstream.dtype)
        if ctx.needs_input_grad[2]:
            x = x if ctx.gelu is None else functional.gelu(x, approximate=ctx.gelu)
            product = upstream.reshape(-1, upstream.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
            to_theta = product.to(theta.dtype).mul_(weight)
        return to_input, None, to_theta, None, None


class _MaskedRows(torch.autograd.Function):
    """ids -> rows of w0 * m. Gathers first, masks after: costs the batch's tokens, not the vocabulary."""

    @staticmethod
    def forward(ctx, ids, weight, theta, threshold):
        ctx.save_for_backward(ids, weight)
        return masked(weight[ids], theta[ids], threshold)

    @staticmethod
    def backward(ctx, upstream):
        ids, weight = ctx.saved_tensors
        rows = (upstream * weight[ids]).reshape(-1, weight.shape[1])
        to_theta = torch.sparse_coo_tensor(ids.reshape(1, -1), rows, weight.shape, check_invariants=False)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            to_theta = to_theta.to_dense()  # reductions between devices take dense gradients only
        return None, None, to_theta, None


class _Step(torch.autograd.Function):
    """theta -> 1[theta > threshold] as floats; straight through in backward."""

    @staticmethod
    def forward(ctx, theta, threshold):
        return (theta > threshold).to(theta.dtype)

    @staticmethod
    def backward(ctx, upstream):
        return upstream, None


NEVER = torch.finfo(torch.float32).min  # exceeded by every theta but -inf


class Masked:
    """What both kinds of masked layers have: ``theta``, ``threshold``, and whether what fell below it may return."""

    def compared(self) -> tuple[Tensor, float]:
        """theta, and the number that it has to exceed: the threshold.

        Without recovery what is pruned has a theta of -inf (see `SparsityControl`), and all else stays.
        """
        return self.theta, float(self.threshold) if self.recovery else NEVER


class MaskedLinear(Masked, nn.Linear):
    """A linear layer that computes with w0 * 1[theta > threshold]; made by ``attach``."""

    def forward(self, x: Tensor) -> Tensor:
        theta, threshold = self.compared()
        if self.weight.requires_grad:  # the weights are trained too: autograd has all the gradients
            return functional.linear(x, self.weight * _Step.apply(theta, threshold), self.bias)
        return _MaskedProduct.apply(x, self.weight, theta, self.bias, threshold)


class MaskedEmbedding(Masked, nn.Embedding):
    """An embedding that looks up rows of w0 * 1[theta > threshold]; made by ``attach``."""

    def forward(self, ids: Tensor) -> Tensor:
        theta, threshold = self.compared()
        if self.weight.requires_grad:
            return functional.embedding(ids, self.weight * _Step.apply(theta, threshold))
        return _MaskedRows.apply(ids, self.weight, theta, threshold)


def maskable(encoder: nn.Module, scope: str = "encoder") -> dict[str, nn.Module]:
    """The modules of ``scope`` by the name of their weight: ``{"encoder.layer.0...query.weight": Linear}``.

    ``encoder`` = every linear layer that sits in a numbered Transformer layer (BERT-base: 72 matrices,
    84,934,656 weights); ``encoder+embeddings`` = those and the word embeddings, which come last.

    Raises:
        ValueError: an unknown scope, or an encoder with nothing to mask.
    """
    if scope not in SCOPES:
        raise ValueError(f"scope must be one of {', '.join(SCOPES)}, got {scope!r}")
    found = {
        f"{name}.weight": module
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear) and re.search(r"\.\d+\.", f".{name}.")
    }
    if not found:
        raise ValueError(
            f"{type(encoder).__name__} has nothing to mask: no linear layer inside a numbered Transformer layer. "
            "Use an encoder such as BERT, RoBERTa, DistilBERT, ELECTRA or MPNet."
        )
    if scope == "encoder+embeddings":
        table = encoder.get_input_embeddings()
        name = next(name for name, module in encoder.named_modules() if module is table)
        found[f"{name}.weight"] = table
    return found


def attach(
    encoder: nn.Module, thetas: Mapping[str, Tensor], per_matrix: bool = False, recovery: bool = True
) -> dict[str, nn.Parameter]:
    """Freezes ``encoder`` and makes it compute with w0 * 1[theta > threshold]; returns the thetas as parameters.

    Layers change class in place; no weight is copied or touched, and state-dict names of the base tensors stay.
    All of them share one threshold (a float64 scalar tensor), which starts at 0; see ``threshold_of``. A mask that
    was attached before is taken off. What ``requires_grad`` afterwards is trained beside theta.

    Args:
        thetas: weight name -> real tensor of the weight's shape, for any subset of ``maskable``.
        per_matrix: each matrix has a threshold of its own.
        recovery: False makes a connection count as pruned once its theta is -inf, and only then.

    Raises:
        ValueError: a name that cannot be masked, or a shape that does not fit, each named.
    """
    modules = maskable(encoder, "encoder+embeddings")
    for name, theta in thetas.items():
        if name not in modules:
            raise ValueError(f"{name} cannot be masked in {type(encoder).__name__}")
        if theta.shape != modules[name].weight.shape:
            expected = tuple(modules[name].weight.shape)
            raise ValueError(f"{name}: theta has shape {tuple(theta.shape)}, the weight {expected}")
    detach(encoder).requires_grad_(False)
    for name, theta in thetas.items():
        module = modules[name]
        module.__class__ = MaskedLinear if isinstance(module, nn.Linear) else MaskedEmbedding
        module.theta = nn.Parameter(theta.to(module.weight.device))
        module.recovery = recovery
    parameters = thetas_of(encoder)
    thresholds = torch.zeros(len(parameters) if per_matrix else (), dtype=torch.float64)
    for place, name in enumerate(parameters):
        modules[name].thresholds = thresholds
        modules[name].threshold = thresholds[place] if per_matrix else thresholds
    return parameters


def detach(encoder: nn.Module) -> nn.Module:
    """Undoes ``attach``: the plain encoder with its untouched weights. Returns it."""
    for module in encoder.modules():
        if isinstance(module, Masked):
            module.__class__ = nn.Linear if isinstance(module, nn.Linear) else nn.Embedding
            del module.theta, module.threshold, module.thresholds, module.recovery
    return encoder


def thetas_of(encoder: nn.Module) -> dict[str, nn.Parameter]:
    """The attached theta parameters by the name of the weight each one masks; empty without a mask."""
    return {f"{name}.weight": module.theta for name, module in encoder.named_modules() if isinstance(module, Masked)}


def threshold_of(encoder: nn.Module) -> Tensor:
    """What the masked layers of ``encoder`` compare theta with (change it in place).

    A scalar, or with thresholds per matrix one entry for each, in the order of ``thetas_of``.
    """
    return next(m.thresholds for m in encoder.modules() if isinstance(m, Masked))


def set_masks(encoder: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Makes ``encoder`` compute with fixed ``masks`` (boolean, True = kept); nothing is left to learn.

    Raises:
        ValueError: a name or shape that does not fit, named.
    """
    for theta in attach(encoder, {name: mask.float() for name, mask in masks.items()}).values():
        theta.requires_grad_(False)
