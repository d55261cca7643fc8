"""The optimiser of the paper: Algorithm 1's step (Eqs. 5 to 7) as a torch optimiser.

Notation: theta are the mask parameters, alpha = ``lr`` of theta, gamma = ``penalty``, t_s = ``temperature``,
p are the head's parameters, beta = ``lr`` of the head's group, m = 1[theta > threshold].
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from adaprune.masks.steps import AVERAGE, RULES, direction, new_state
from adaprune.masks.surrogate import surrogate_gradient

_BY_ROW = ("exp_avg", "exp_avg_sq", "row_square")  # state with one entry, or one row, per row of its parameter


class AdaPrune(torch.optim.Optimizer):
    """Algorithm 1's step: theta by Eqs. 4, 5 and 7, the head p by Eq. 6.

        theta <- theta - alpha d(g_theta) - gamma,    g_theta = dL/dm * t_s sigmoid'(t_s theta)   (masked groups)
        p     <- p - beta d(dL/dp)                                                                (other groups)

    The gradient of a masked group's parameter is dL/dm at the hard mask, as the masked layers give it.
    d depends on ``rule``. "sgd" is the identity, as printed and as in the theorem. "adam" is Adam's direction: a step
    of about alpha, which the published numbers seem to need. "adafactor" is the same with a factored second moment and
    a bfloat16 first one, a quarter of Adam's state; groups that are not masked get Adam.

    The penalty is the same for every theta, so it is added to the group's shared ``threshold`` instead, and theta is
    read relative to it. This gives the same masks without a pass over the weights. Sparse gradients (embedding rows)
    update only their rows. The bias correction of a row's averages counts the steps of the whole table, as in dense
    Adam. So the later a row is first seen, the longer its first step: 25 alpha at step 1,001 under betas (0, 0.999).

    Args:
        params: parameters or groups. A group that holds theta sets ``masked=True``, and ``threshold`` to the
            float64 scalar that the masked layers share.
        lr: alpha, or beta in a group that is not masked.
        penalty: gamma, added to the threshold at each step.
        temperature: t_s > 0 of the surrogate.
        rule: "adam", "sgd" or "adafactor".
        betas, eps: of Adam. eps is small because dL/dm is small: a gradient times a weight, 1e-6 or less.

    Whether a pruned connection may come back is decided by what moves the threshold, `SparsityControl`.

    Raises:
        ValueError: a value out of range, or a masked group without a threshold.
    """

    FURTHER: dict = {}  # settings that a subclass adds to every group

    def __init__(
        self,
        params: Iterable,
        lr: float = 2e-5,
        penalty: float = 0.0,
        temperature: float = 1.0,
        rule: str = "adam",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-12,
    ):
        own = dict(lr=lr, penalty=penalty, temperature=temperature, rule=rule, betas=betas, eps=eps)
        defaults = {**own, "masked": False, "threshold": None, **self.FURTHER}
        self.check(defaults)
        super().__init__(params, defaults)

    @staticmethod
    def check(group: dict) -> None:
        """Raises ValueError if a setting is out of range, or a masked group lacks its threshold."""
        if group["rule"] not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, got {group['rule']!r}")
        if not all(0 <= beta < 1 for beta in group["betas"]):
            raise ValueError(f"betas must lie in [0, 1), got {group['betas']}")
        for name in ("lr", "penalty", "eps"):
            if not group[name] >= 0:
                raise ValueError(f"{name} must not be negative, got {group[name]}")
        if not group["temperature"] > 0:
            raise ValueError(f"temperature must be positive, got {group['temperature']}")
        if group["masked"] and not isinstance(group["threshold"], Tensor):
            raise ValueError("a masked group needs the threshold tensor its layers share (masks.threshold_of)")

    def add_param_group(self, param_group: dict) -> None:
        """Adds a group; raises ValueError if one of its settings is out of range."""
        self.check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict) -> None:
        """Restores a saved state and copies the thresholds into the tensors that the masked layers hold."""
        shared = [group["threshold"] for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, threshold in zip(self.param_groups, shared, strict=True):
            if threshold is not None:
                threshold.copy_(group["threshold"])
            group["threshold"] = threshold
        for parameter, state in self.state.items():
            if "row_square" in state and "exp_avg" in state:  # torch casts what it loads to the parameter's type
                state["exp_avg"] = state["exp_avg"].to(AVERAGE.get(parameter.dtype, parameter.dtype))

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Updates every parameter that has a gradient, then applies Eq. 7's penalty. Returns the closure's loss."""
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

    def _move(self, parameter: Tensor, grad: Tensor, group: dict, state: dict) -> None:
        """Eq. 5 (masked groups) or Eq. 6 for dense tensors of one shape."""
        if group["masked"]:
            grad = self._gradient(parameter, grad, group, state)
        parameter.add_(direction(grad, state, group["betas"], group["eps"]), alpha=-group["lr"])

    def _gradient(self, theta: Tensor, grad_mask: Tensor, group: dict, state: dict) -> Tensor:
        """g_theta of Eq. 4. Its slope is centred at the threshold, or at 0 while the threshold is -inf."""
        threshold = float(group["threshold"])
        return surrogate_gradient(
            grad_mask, theta, group["temperature"], threshold if math.isfinite(threshold) else 0.0
        )

    # The rest saves memory and time: theta is moved inside backward, and sparse rows are handled.

    def step_in_backward(self) -> list[torch.utils.hooks.RemovableHandle]:
        """From now on theta is updated inside ``backward`` and its gradient freed at once; ``step`` does the rest.

        So at most one matrix's gradient exists at a time. This does not work with gradient accumulation, nor with
        gradients averaged over devices. Returns the hooks, so that they can be removed. The averages are allocated now,
        because later, between activations, they would fragment the memory.
        """

        def hook(number: int) -> Callable[[Tensor], None]:
            def update(parameter: Tensor) -> None:
                with torch.no_grad():
                    self._update(parameter, self.param_groups[number])  # load_state_dict makes new groups
                parameter.grad = None

            return update

        handles = []
        for number, group in enumerate(self.param_groups):
            for parameter in group["params"] if group["masked"] else []:
                self._state_of(parameter, group)
                handles.append(parameter.register_post_accumulate_grad_hook(hook(number)))
        return handles

    def _update(self, parameter: Tensor, group: dict) -> None:
        """Eq. 5 or 6 for one parameter; if its gradient is sparse, only for the rows in it."""
        grad = parameter.grad
        state = self._state_of(parameter, group)
        state["step"] += 1
        if not grad.is_sparse:
            self._move(parameter, grad, group, state)
            return
        grad = grad.coalesce()
        rows = grad.indices()[0]
        if not len(rows):
            return
        moved = parameter[rows]
        part = {name: value[rows] if name in _BY_ROW else value for name, value in state.items()}
        self._move(moved, grad.values(), group, part)
        parameter[rows] = moved
        for name in _BY_ROW:
            if name in state:
                state[name][rows] = part[name]

    def _state_of(self, parameter: Tensor, group: dict) -> dict:
        """The state of a parameter, made on first use."""
        state = self.state[parameter]
        if not state:
            factored = group["rule"] == "adafactor" and group["masked"] and parameter.dim() == 2
            rule = "adam" if group["rule"] == "adafactor" and not factored else group["rule"]
            state.update(new_state(parameter, rule, group["betas"][0]))
        return state
