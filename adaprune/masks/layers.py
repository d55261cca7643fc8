"""Masks over frozen weights: which weights can be masked, and how a masked layer computes.

A mask is boolean (True = kept) and belongs to the base tensor of the same name. While it is learned, a layer holds the
real-valued ``theta`` next to its untouched weight, and computes with w0 * 1[theta > threshold].
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

SCOPES = ("encoder", "encoder+embeddings")


def masked(weight: Tensor, theta: Tensor, threshold: float) -> Tensor:
    """w0 * 1[theta > threshold]: Eq. 1's masked weights, with Eq. 2's mask as t_l grows.

    (This takes one pass over the memory: torch's derivative of a threshold passes exactly what lies above it. In eager
    torch it is several times faster than a boolean mask or ``where``, and it allocates only the result.)
    """
    return torch.ops.aten.threshold_backward(weight, theta, threshold)


class _MaskedProduct(torch.autograd.Function):
    """x -> x (w0 * m)^T + b. Recomputes w0 * m in backward instead of keeping a copy between the passes.

    Theta gets the gradient dL/dm = w0 * dL/d(w0 * m), straight through the step; AdaPrune multiplies it by the
    surrogate slope (Eq. 4). If x = gelu(z), backward uses z instead of x, because autograd keeps z anyway.
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
        product = functional.linear(x, kept, None if bias is None else bias.to(x.dtype))
        # DeBERTa's layers change it in place, which a view forbids; this is the same memory but no view
        return torch.ops.aten._unsafe_view(product, product.shape) if product._is_view() else product

    @staticmethod
    def backward(ctx, upstream):
        x, weight, theta = ctx.saved_tensors
        to_input = to_theta = to_bias = None
        if ctx.needs_input_grad[0]:
            to_input = upstream @ masked(weight, theta, ctx.threshold).to(upstream.dtype)
        if ctx.needs_input_grad[2]:
            x = x if ctx.gelu is None else functional.gelu(x, approximate=ctx.gelu)
            product = upstream.reshape(-1, upstream.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
            to_theta = product.to(theta.dtype).mul_(weight)
        if ctx.needs_input_grad[3]:
            to_bias = upstream.reshape(-1, upstream.shape[-1]).sum(0)
        return to_input, None, to_theta, to_bias, None


class _MaskedRows(torch.autograd.Function):
    """ids -> rows of w0 * m. Gathers first and masks after: the cost grows with the batch, not the vocabulary."""

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
    """theta -> 1[theta > threshold] as floats; the gradient passes straight through."""

    @staticmethod
    def forward(ctx, theta, threshold):
        return (theta > threshold).to(theta.dtype)

    @staticmethod
    def backward(ctx, upstream):
        return upstream, None


NEVER = torch.finfo(torch.float32).min  # every theta except -inf is above it


class Masked:
    """What all masked layers share: ``theta``, ``threshold``, and whether a removed connection may return."""

    def compared(self) -> tuple[Tensor, float]:
        """Theta, and the number that it has to exceed: the threshold.

        Without recovery, pruned connections have a theta of -inf (see `SparsityControl`), and all others stay.
        """
        return self.theta, float(self.threshold) if self.recovery else NEVER


class MaskedLinear(Masked, nn.Linear):
    """A linear layer that computes with w0 * 1[theta > threshold]; made by ``attach``."""

    def forward(self, x: Tensor) -> Tensor:
        theta, threshold = self.compared()
        if self.weight.requires_grad:  # the weights are trained too, so autograd keeps all gradients
            return functional.linear(x, self.weight * _Step.apply(theta, threshold), self.bias)
        return _MaskedProduct.apply(x, self.weight, theta, self.bias, threshold)


class MaskedUnits(Masked, nn.Linear):
    """A linear layer whose theta masks whole units of its inputs, by setting their columns of w0 to 0; see ``attach``.

    theta has one entry per unit. A unit is a run of (inputs / entries) columns: one column for an FFN neuron, a head's
    width for a head. Its gradient is dL/dm, the sum of w0 dL/d(w0 m) over the unit's columns.
    """

    def forward(self, x: Tensor) -> Tensor:
        theta, threshold = self.compared()
        kept = _Step.apply(theta, threshold).to(x.dtype).repeat_interleave(self.in_features // theta.numel())
        return functional.linear(x * kept, self.weight, self.bias)


class MaskedEmbedding(Masked, nn.Embedding):
    """An embedding that looks up rows of w0 * 1[theta > threshold]; made by ``attach``."""

    def forward(self, ids: Tensor) -> Tensor:
        theta, threshold = self.compared()
        if self.weight.requires_grad:
            return functional.embedding(ids, self.weight * _Step.apply(theta, threshold))
        return _MaskedRows.apply(ids, self.weight, theta, threshold)


def maskable(encoder: nn.Module, scope: str = "encoder") -> dict[str, nn.Module]:
    """The modules in ``scope`` by the name of their weight: ``{"encoder.layer.0...query.weight": Linear}``.

    ``encoder`` means every linear layer inside a numbered Transformer layer (BERT-base: 72 matrices, 84,934,656
    weights); ``encoder+embeddings`` adds the word embeddings, which come last.

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

    Layers change class in place; no weight is copied or changed, and the base tensors keep their state-dict names. All
    layers share one threshold (a float64 scalar tensor) that starts at 0; see ``threshold_of``. With units, heads have
    one threshold and FFN neurons another, so they do not compete. A mask that was attached before is removed.
    Parameters that you set to ``requires_grad`` afterwards are trained together with theta.

    Args:
        thetas: weight name -> real tensor of the weight's shape, for any subset of ``maskable``; or, for all of them,
            a vector with one entry per unit of the layer's inputs (see `MaskedUnits`).
        per_matrix: each matrix has its own threshold.
        recovery: False means that a connection is pruned if its theta is -inf, and only then.

    Raises:
        ValueError: a name cannot be masked, or a shape does not fit; the message names it.
    """
    modules = maskable(encoder, "encoder+embeddings")
    for name, theta in thetas.items():
        if name not in modules:
            raise ValueError(f"{name} cannot be masked in {type(encoder).__name__}")
        of_units = theta.dim() == 1 and len(theta) > 0 and modules[name].weight.shape[1] % len(theta) == 0
        if theta.shape != modules[name].weight.shape and not (of_units and isinstance(modules[name], nn.Linear)):
            expected = tuple(modules[name].weight.shape)
            raise ValueError(f"{name}: theta has shape {tuple(theta.shape)}, the weight {expected}")
    detach(encoder).requires_grad_(False)
    for name, theta in thetas.items():
        module = modules[name]
        of_weights = MaskedLinear if isinstance(module, nn.Linear) else MaskedEmbedding
        module.__class__ = MaskedUnits if theta.dim() == 1 else of_weights
        module.theta = nn.Parameter(theta.to(module.weight.device))
        module.recovery = recovery
    parameters = thetas_of(encoder)
    sharing = {name: name if per_matrix else _kind_of(modules[name]) for name in parameters}
    kinds = list(dict.fromkeys(sharing.values()))
    thresholds = torch.zeros(() if kinds == [None] else len(kinds), dtype=torch.float64)
    for name, kind in sharing.items():
        modules[name].thresholds = thresholds
        modules[name].threshold = thresholds if kinds == [None] else thresholds[kinds.index(kind)]
    return parameters


def _kind_of(module: nn.Module) -> tuple[int, int] | None:
    """A layer's inputs and units, which tell heads from FFN neurons; None if theta is per weight."""
    return (module.in_features, module.theta.numel()) if isinstance(module, MaskedUnits) else None


def detach(encoder: nn.Module) -> nn.Module:
    """Undoes ``attach``: the plain encoder with its untouched weights. Returns it."""
    for module in encoder.modules():
        if isinstance(module, Masked):
            module.__class__ = nn.Linear if isinstance(module, nn.Linear) else nn.Embedding
            del module.theta, module.threshold, module.thresholds, module.recovery
    return encoder


def thetas_of(encoder: nn.Module) -> dict[str, nn.Parameter]:
    """The attached theta parameters by the name of the weight that each masks; empty without a mask."""
    return {f"{name}.weight": module.theta for name, module in encoder.named_modules() if isinstance(module, Masked)}


def threshold_of(encoder: nn.Module) -> Tensor:
    """The threshold that the masked layers of ``encoder`` compare theta with (change it in place).

    It is a scalar. With thresholds per matrix it has one entry per matrix, in the order of ``thetas_of``; with units
    one per kind, in the order in which the kinds first appear there.
    """
    return next(m.thresholds for m in encoder.modules() if isinstance(m, Masked))


def set_masks(encoder: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Makes ``encoder`` compute with fixed ``masks`` (boolean, True = kept); nothing is left to learn.

    Raises:
        ValueError: a name or shape does not fit; the message names it.
    """
    for theta in attach(encoder, {name: mask.float() for name, mask in masks.items()}).values():
        theta.requires_grad_(False)
