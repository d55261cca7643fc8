"""Directions of a step: the gradient itself, Adam's, and Adam's with a factored second moment."""

import torch
from torch import Tensor

RULES = ("adam", "sgd", "adafactor")
# Of a factored rule's exp_avg, by theta's type: with beta1 = 0.9 an update is far above bfloat16's rounding.
AVERAGE = {torch.float32: torch.bfloat16}


def sgd_direction(grad: Tensor, state: dict) -> Tensor:
    """The gradient itself: the step of Eqs. 5 and 6 as printed, to which the theorem applies."""
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

    (Shazeer and Stern 2018, section 3; both means decay with beta2, and v_hat is bias-corrected as in Adam.) For a
    whole matrix mean(r) = mean(c); the code divides by mean(c), which stays right if ``grad`` holds only some of the
    rows. ``state`` holds ``step``, ``exp_avg`` (unless beta1 is 0, where m_hat = g), ``row_square`` and
    ``column_square``, and is updated in place. The result reuses the memory of ``grad``.
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
        grad.copy_(state["exp_avg"])  # convert to one type first: dividing mixed types is fifty times slower
    return grad.div_(scale)


def new_state(parameter: Tensor, rule: str, beta1: float) -> dict:
    """The state that ``rule`` needs for a parameter before its first step: a step count, and averages of 0."""
    state: dict = {"step": 0}
    if rule == "adafactor":
        if beta1:
            state["exp_avg"] = torch.zeros_like(parameter, dtype=AVERAGE.get(parameter.dtype))
        state["row_square"] = parameter.new_zeros(parameter.shape[0])
        state["column_square"] = parameter.new_zeros(parameter.shape[1])
    elif rule == "adam":
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    return state


def direction(grad: Tensor, state: dict, betas: tuple[float, float], eps: float) -> Tensor:
    """The direction of the rule that ``state`` was made for."""
    if "row_square" in state:
        return adafactor_direction(grad, state, betas, eps)
    return adam_direction(grad, state, betas, eps) if "exp_avg_sq" in state else sgd_direction(grad, state)
