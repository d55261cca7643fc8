"""The optimiser of the paper: Eqs. 4-7 as functions, Algorithm 1's step as a torch optimiser.

Letters: theta mask parameters, alpha = ``lr`` of theta, gamma = ``penalty``, t_s = ``temperature``,
p head parameters, beta = ``lr`` of the head's group, m = 1[theta > threshold].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from adaprune.masks.schedules import cubic_sparsity

RULES = ("adam", "sgd", "adafactor")
SURROGATES = ("sigmoid", "identity", "sampled")
# State with one entry, or one row, for each row of its parameter.
_BY_ROW = ("exp_avg", "exp_avg_sq", "row_square", "average")
# Of a factored rule's exp_avg, by theta's type: with beta1 = 0.9 an update is far above bfloat16's rounding.
_AVERAGE = {torch.float32: torch.bfloat16}


def relaxed_mask(theta: Tensor, temperature: float, threshold: float = 0.0) -> Tensor:
    """m_t = sigmoid(t theta), the relaxation of the mask (Eq. 2); a step function as t grows.

    Here and in Eqs. 3 and 4 theta is read relative to ``threshold``.

    >>> relaxed_mask(torch.tensor([-0.001, 0.001]), 1e5)
    tensor([0., 1.])
    """
    relative = torch.sub(theta, threshold)
    return (relative if temperature == 1 else relative.mul_(temperature)).sigmoid_()


def surrogate_slope(theta: Tensor, temperature: float, threshold: float = 0.0) -> Tensor:
    """t_s sigmoid(t_s theta) (1 - sigmoid(t_s theta)), the derivative of Eq. 2 at the small temperature (Eq. 3).

    >>> surrogate_slope(torch.tensor([0.0]), 1.0)
    tensor([0.2500])
    """
    return surrogate_gradient(torch.ones_like(theta), theta, temperature, threshold)


def surrogate_gradient(grad_mask: Tensor, theta: Tensor, temperature: float, threshold: float = 0.0) -> Tensor:
    """g_theta = dL/dm * t_s sigmoid(t_s theta) (1 - sigmoid(t_s theta)), with dL/dm at the hard mask (Eq. 4).

    (In place from the difference on: on a CPU every further temporary costs more than its arithmetic.)
    """
    soft = relaxed_mask(theta, temperature, threshold)
    grad = torch.ops.aten.sigmoid_backward.grad_input(grad_mask, soft, grad_input=soft)  # grad_mask * soft * (1 - soft)
    return grad if temperature == 1 else grad.mul_(temperature)


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


def adafactor_direction(grad: Tensor, state: dict, betas: tuple[float, float], eps: float) -> Tensor:
    """Adam's direction with the second moment of a matrix kept as its row and column means.

        r_i ~ mean_j g_ij^2,   c_j ~ mean_i g_ij^2,   v_ij = r_i c_j / mean(r),   d = m_hat / (sqrt(v_hat) + eps)

    (Shazeer and Stern 2018, section 3; both means decay with beta2, and v_hat is bias-corrected as Adam's.) For a
    whole matrix mean(r) = mean(c); the second is divided by, because it stays right where ``grad`` holds some of
    the rows only. ``state`` holds ``step``, ``exp_avg`` (not where beta1 is 0: there m_hat = g), ``row_square`` and
    ``column_square``, updated in place. The result takes the memory of ``grad``.
    """
    beta1, beta2 = betas
    rows, columns = state["row_square"], state["column_square"]
    if beta1:
        state["exp_avg"].lerp_(grad.to(state["exp_avg"].dtype), 1 - beta1)
    work = grad.square()
    rows.lerp_(work.mean(1), 1 - beta2)
    columns.lerp_(work.mean(0), 1 - beta2)
    rms = (rows / (1 - beta2 ** state["step"])).sqrt_()
    profile = (columns / columns.mean().clamp_min(torch.finfo(columns.dtype).tiny)).sqrt_()
    correction = 1 - beta1 ** state["step"]
    scale = torch.outer(rms * correction, profile, out=work).add_(eps * correction)
    if beta1:
        grad.copy_(state["exp_avg"])  # to one type first: dividing mixed ones is fifty times slower
    return grad.div_(scale)


def _refuse_bad(group: dict) -> None:
    """Raises ValueError where a setting is out of range, or a masked group lacks its threshold."""
    if group["rule"] not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {group['rule']!r}")
    if group["surrogate"] not in SURROGATES:
        raise ValueError(f"surrogate must be one of {', '.join(SURROGATES)}, got {group['surrogate']!r}")
    if not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"betas must lie in [0, 1), got {group['betas']}")
    if not 0 <= group["average"] < 1:
        raise ValueError(f"average must lie in [0, 1), got {group['average']}")
    for name in ("lr", "penalty", "eps", "shrink"):
        if not group[name] >= 0:
            raise ValueError(f"{name} must not be negative, got {group[name]}")
    if not group["temperature"] > 0:
        raise ValueError(f"temperature must be positive, got {group['temperature']}")
    if group["masked"] and not isinstance(group["threshold"], Tensor):
        raise ValueError("a masked group needs the threshold tensor its layers share (masks.threshold_of)")


class AdaPrune(torch.optim.Optimizer):
    """Algorithm 1's step: theta by Eqs. 4, 5 and 7, the head p by Eq. 6.

        theta <- theta - alpha d(g_theta) - gamma,    g_theta = dL/dm * t_s sigmoid'(t_s theta)   (masked groups)
        p     <- p - beta d(dL/dp)                                                                (other groups)

    ``p.grad`` of a masked group is dL/dm at the hard mask, as the masked layers give it; it is
    read, never written. d is the identity (``rule="sgd"``, as printed and as the theorem has it) or Adam's direction
    (``rule="adam"``, a step of about alpha, which the published numbers seem to need), or the same from a factored
    second moment and a bfloat16 first one (``rule="adafactor"``, a quarter of Adam's state; groups that are not masked
    get Adam).

    The penalty is the same for every theta, so it is added to the group's shared ``threshold`` instead, and theta is
    read relative to it: the same masks without a pass over the weights. Sparse gradients (embedding rows) update
    their rows only. A row's averages are corrected for their start at 0 by the steps of the whole table, as in dense
    Adam, so that the later a row is first seen, the longer its step: 25 alpha at step 1,001 under betas (0, 0.999).

    Args:
        params: parameters or groups. A group that holds theta sets ``masked=True``, and ``threshold`` to the
            float64 scalar that the masked layers share.
        lr: alpha, or beta in a group that is not masked.
        penalty: gamma, added to the threshold at each step.
        temperature: t_s > 0 of the surrogate.
        rule: "adam", "sgd" or "adafactor".
        betas, eps: of Adam. eps is small because dL/dm is: a gradient times a weight, 1e-6 and less.
        recovery: False leaves a pruned connection pruned.
        surrogate: slope of the mask that dL/dm is multiplied with: "sigmoid" (Eq. 4), "identity" (1), or "sampled"
            (Eq. 3 at theta itself, for a mask drawn with probability sigmoid(theta)).
        shrink, ramp: c and T of a penalty c_t sum_i sigmoid(theta_i) in the loss, c_t = c (1 - (1 - t / T)^3), at
            most c. Of rows in a sparse gradient only.
        reflect: theta stands for |s| and goes on from 0 as s would: the step of scores s whose mask is 1[|s| > t].
        average: a > 0 keeps in theta's state ``average`` <- a average + (1 - a) theta, from theta_0 on; of rows in a
            sparse gradient, over the steps that move them. Nothing here reads it.

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
        surrogate: str = "sigmoid",
        shrink: float = 0.0,
        ramp: int = 1,
        reflect: bool = False,
        average: float = 0.0,
    ):
        defaults = dict(
            lr=lr, penalty=penalty, temperature=temperature, rule=rule, betas=betas, eps=eps, recovery=recovery,
            surrogate=surrogate, shrink=shrink, ramp=ramp, reflect=reflect, average=average, masked=False,
            threshold=None,
        )  # fmt: skip
        _refuse_bad(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict) -> None:
        """Adds a group; raises ValueError where one of its settings is out of range."""
        _refuse_bad({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict) -> None:
        """Restores a saved state; thresholds are copied into the tensors that the masked layers hold."""
        shared = [group["threshold"] for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, threshold in zip(self.param_groups, shared, strict=True):
            if threshold is not None:
                threshold.copy_(group["threshold"])
            group["threshold"] = threshold
        for parameter, state in self.state.items():
            if "row_square" in state and "exp_avg" in state:  # torch casts what it loads to the parameter's type
                state["exp_avg"] = state["exp_avg"].to(_AVERAGE.get(parameter.dtype, parameter.dtype))

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
        (The averages are made now: made amid a step's activations, they would leave holes in the heap.)
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
        """Eq. 5 or 6 for one parameter; only for the rows in its gradient where that is sparse."""
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
        """The state of a parameter, made on first use: its number of steps and the averages of the group's rule."""
        state = self.state[parameter]
        if state:
            return state
        state["step"] = 0
        if group["rule"] == "adafactor" and group["masked"] and parameter.dim() == 2:
            if group["betas"][0]:
                state["exp_avg"] = torch.zeros_like(parameter, dtype=_AVERAGE.get(parameter.dtype))
            state["row_square"] = parameter.new_zeros(parameter.shape[0])
            state["column_square"] = parameter.new_zeros(parameter.shape[1])
        elif group["rule"] != "sgd":
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        if group["masked"] and group["average"]:
            state["average"] = parameter.detach().clone()
        return state

    def _move(self, parameter: Tensor, grad: Tensor, group: dict, state: dict) -> None:
        """Eq. 5 (masked groups, with the slope of the surrogate) or Eq. 6 for dense tensors of one shape."""
        if group["masked"]:
            threshold = float(group["threshold"])
            if group["surrogate"] != "identity":
                centre = threshold if group["surrogate"] == "sigmoid" else 0.0
                grad = surrogate_gradient(grad, parameter, group["temperature"], centre)
            if group["shrink"]:
                weight = group["shrink"] * cubic_sparsity(state["step"], 0, group["ramp"], 1.0)
                grad = grad.add(surrogate_slope(parameter, 1.0), alpha=weight)
        if group["rule"] == "sgd":
            direction = sgd_direction(grad, state)
        else:
            rule = adafactor_direction if "row_square" in state else adam_direction
            direction = rule(grad, state, group["betas"], group["eps"])
        if group["masked"] and not group["recovery"]:
            direction = direction * (parameter > threshold)
        parameter.add_(direction, alpha=-group["lr"])
        if group["reflect"]:
            sign = parameter.sign().masked_fill_(parameter == -torch.inf, 1.0)  # pruned for good, not the largest
            for value in (state["exp_avg"], parameter) if "exp_avg" in state else (parameter,):
                value.mul_(sign)
        if "average" in state:  # no lerp: of an infinite theta it makes no number
            state["average"].mul_(group["average"]).add_(parameter, alpha=1 - group["average"])
