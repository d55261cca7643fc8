"""Scores of methods other than the paper's: their slopes, their penalty, and scores used by absolute value."""

import torch
from torch import Tensor

from adaprune.masks import AdaPrune, cubic_sparsity, surrogate_gradient, surrogate_slope

SLOPES = ("identity", "sampled", "sigmoid")


class Scores(AdaPrune):
    """`AdaPrune` for scores s instead of theta, as straight-through methods learn them.

        g_s = dL/dm * slope(s)  +  c_t sigmoid'(s),     c_t = c (1 - (1 - t / T)^3), at most c

    Further settings of a group:

    - ``surrogate``: the slope. "identity" (1), "sigmoid" (Eq. 4), or "sampled" (Eq. 3 at s itself, for a mask that is
      drawn with probability sigmoid(s)).
    - ``shrink``, ``ramp``: c and T of a penalty c_t sum_i sigmoid(s_i) in the loss; with a sparse gradient, only for
      the rows in it.
    - ``reflect``: |s| is stored, and continues from 0 as s would: the step of scores whose mask is 1[|s| > t].

    Raises:
        ValueError: as `AdaPrune`; an unknown slope, or a negative ``shrink``.
    """

    FURTHER = {"surrogate": "identity", "shrink": 0.0, "ramp": 1, "reflect": False}

    @staticmethod
    def check(group: dict) -> None:
        AdaPrune.check(group)
        if group["surrogate"] not in SLOPES:
            raise ValueError(f"surrogate must be one of {', '.join(SLOPES)}, got {group['surrogate']!r}")
        if not group["shrink"] >= 0:
            raise ValueError(f"shrink must not be negative, got {group['shrink']}")

    def _gradient(self, theta: Tensor, grad_mask: Tensor, group: dict, state: dict) -> Tensor:
        if group["surrogate"] == "identity":
            grad = grad_mask.clone()  # the rule may overwrite it
        elif group["surrogate"] == "sigmoid":
            grad = super()._gradient(theta, grad_mask, group, state)
        else:
            grad = surrogate_gradient(grad_mask, theta, group["temperature"])
        if group["shrink"]:
            weight = group["shrink"] * cubic_sparsity(state["step"], 0, group["ramp"], 1.0)
            grad = grad.add(surrogate_slope(theta, 1.0), alpha=weight)
        return grad

    def _move(self, parameter: Tensor, grad: Tensor, group: dict, state: dict) -> None:
        super()._move(parameter, grad, group, state)
        if group["masked"] and group["reflect"]:
            sign = parameter.sign().masked_fill_(parameter == -torch.inf, 1.0)  # pruned for good, not the largest
            for value in (state["exp_avg"], parameter) if "exp_avg" in state else (parameter,):
                value.mul_(sign)
