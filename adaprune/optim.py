"""The optimiser of the paper: Eqs. 4-7 as functions, Algorithm 1's step as a torch optimiser.

Letters: theta mask parameters, alpha = ``lr`` of theta, gamma = ``penalty``, t_s = ``temperature``,
p head parameters, beta = ``lr`` of the head's group, m = 1[theta > threshold].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

RULES = ("adam", "sgd")


def relaxed_mask(theta: Tensor, temperature: float) -> Tensor:
    """m_t = sigmoid(t theta), the relaxation of the mask (Eq. 2); a step function as t grows.

    >>> relaxed_mask(torch.tensor([-0.001, 0.001]), 1e5)
    tensor([0., 1.])
    """
    return torch.sigmoid(temperature * theta)


def surrogate_slope(theta: Tensor, temperature: float) -> Tensor:
    """t_s sigmoid(t_s theta) (1 - sigmoid(t_s theta)), the derivative of Eq. 2 at the small temperature (Eq. 3).

    >>> surrogate_slope(torch.tensor([0.0]), 1.0)
    tensor([0.2500])
    """
    soft = relaxed_mask(theta, temperature)
    return temperature * soft * (1 - soft)


def surrogate_gradient(grad_mask: Tensor, theta: Tensor, temperature: float) -> Tensor:
    """g_theta = dL/dm * t_s sigmoid(t_s theta) (1 - sigmoid(t_s theta)), with dL/dm at the hard mask (Eq. 4)."""
    return grad_mask * surrogate_slope(theta, temperature)


def sgd_direction(grad: Tensor, state: dict) -> Tensor:
    """The gradient itself: the step of Eq. 5 and 6 as printed, and the one the theorem is about."""
    return grad


def adam_direction(grad: Tensor, state: dict, betas: tuple[float, float], eps: float) -> Tensor:
    """m_hat / (sqrt(v_hat) + eps): an Adam step of about 1 per entry (Kingma and Ba 2015, Algorithm 1).

    ``state`` holds ``step``, ``exp_avg`` and ``exp_avg_sq`` and is updated in place.
    """
    beta1, beta2 = betas
    average, square = state["exp_avg"], state["exp_avg_sq"]
    average.lerp_(grad.to(average.dtype), 1 - beta1)
    square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    scale = (square / (1 - beta2 ** state["step"])).sqrt_().add_(eps)
    return (average / (1 - beta1 ** state["step"])).div_(scale)


class AdaPrune(torch.optim.Optimizer):
    """Algorithm 1's step: theta by Eqs. 4, 5 and 7, the head p by Eq. 6.

        theta <- theta - alpha d(g_theta) - gamma,    g_theta = dL/dm * t_s sigmoid'(t_s theta)   (masked groups)
        p     <- p - beta d(dL/dp)                                                                (other groups)

    ``p.grad`` of a masked group is dL/dm at the hard mask, as the masked layers of ``adaprune.masks`` give it; it is
    read, never written. d is the identity (``rule="sgd"``, as printed and as the theorem has it) or Adam's direction
    (``rule="adam"``, a step of about alpha, which the published numbers seem to need).

    The penalty is the same for every theta, so it is added to the group's shared ``threshold`` instead, and theta is
    read relative to it: the same masks without a pass over the weights. Sparse gradients (embedding rows) update
    their rows only.

    Args:
        params: parameters or groups. A group that holds theta sets ``masked=True``, and ``threshold`` to the
            float64 scalar that the masked layers share.
        lr: alpha, or beta in a group that is not masked.
        penalty: gamma, added to the threshold at each step.
        temperature: t_s > 0 of the surrogate.
        rule: "adam" or "sgd".
        betas, eps: of Adam. eps is small because dL/dm is: a gradient times a weight, 1e-6 and less.
        recovery: False leaves a pruned connection pruned.

    Raises:
        ValueError: a value out of range, or a masked group without a threshold.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 2e-5,
        penalty: float = 0.0,
        temperature: float = 1.0,
        rule: str = "adam",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-12,
        recovery: bool = True,
    ):
        if rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must lie in [0, 1), got {betas}")
        for name, value in {"lr": lr, "penalty": penalty, "eps": eps}.items():
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        defaults = dict(
            lr=lr, penalty=penalty, temperature=temperature, rule=rule, betas=betas, eps=eps, recovery=recovery,
            masked=False, threshold=None,
        )  # fmt: skip
        super().__init__(params, defaults)
        for group in self.param_groups:
            if group["masked"] and not isinstance(group["threshold"], Tensor):
                raise ValueError("a masked group needs the threshold tensor its layers share (masks.threshold_of)")

    def load_state_dict(self, state_dict: dict) -> None:
        """Restores a saved state; thresholds are copied into the tensors that the masked layers hold."""
        shared = [group["threshold"] for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, threshold in zip(self.param_groups, shared, strict=True):
            if threshold is not None:
                threshold.copy_(group["threshold"])
            group["threshold"] = threshold

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update of every parameter that has a gradient, then the penalty. Returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
            if group["masked"]:
                group["threshold"].add_(group["penalty"])
        return loss

    def step_in_backward(self) -> list[torch.utils.hooks.RemovableHandle]:
        """From now on theta is updated inside ``backward`` and its gradient freed at once; ``step`` does the rest.

        Never more than one matrix's gradient exists. Not with several backward passes a step (gradient
        accumulation), nor where gradients are averaged between devices. Returns the hooks, to remove them.
        """

        def hook(group: dict) -> Callable[[Tensor], None]:
            def update(parameter: Tensor) -> None:
                with torch.no_grad():
                    self._update(parameter, group)
                parameter.grad = None

            return update

        return [
            parameter.register_post_accumulate_grad_hook(hook(group))
            for group in self.param_groups
            if group["masked"]
            for parameter in group["params"]
        ]

    def _update(self, parameter: Tensor, group: dict) -> None:
        """Eq. 5 or 6 for one parameter; only for the rows in its gradient where that is sparse."""
        grad = parameter.grad
        state = self.state[parameter]
        self._prepare(parameter, group, state)
        if not grad.is_sparse:
            self._move(parameter, grad, group, state)
            return
        grad = grad.coalesce()
        rows = grad.indices()[0]
        moved = parameter[rows]
        part = {name: value[rows] if isinstance(value, Tensor) else value for name, value in state.items()}
        self._move(moved, grad.values(), group, part)
        parameter[rows] = moved
        for name, value in part.items():
            if isinstance(value, Tensor):
                state[name][rows] = value

    def _prepare(self, parameter: Tensor, group: dict, state: dict) -> None:
        """Counts the step, and makes Adam's two averages at the first one."""
        state["step"] = state.get("step", 0) + 1
        if group["rule"] == "adam" and "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)

    def _move(self, parameter: Tensor, grad: Tensor, group: dict, state: dict) -> None:
        """Eq. 5 (masked groups, with the slope of Eq. 4) or Eq. 6 for dense tensors of one shape."""
        if group["masked"]:
            threshold = float(group["threshold"])
            grad = surrogate_gradient(grad, parameter - threshold, group["temperature"])
        if group["rule"] == "adam":
            direction = adam_direction(grad, state, group["betas"], group["eps"])
        else:
            direction = sgd_direction(grad, state)
        if group["masked"] and not group["recovery"]:
            direction = direction * (parameter > threshold)
        parameter.add_(direction, alpha=-group["lr"])
