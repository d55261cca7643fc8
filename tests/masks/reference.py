"""Algorithm 1 of the paper as it is printed, on one tensor theta: slow, plain, without any of the package's code.

No threshold, no masked layers, no in-place arithmetic: gamma is subtracted from every theta, the mask is 1[theta > 0].
"""

import torch
from torch import Tensor


def sgd(gradients: list[Tensor]) -> Tensor:
    """The step direction after gradients g_1 ... g_t: g_t (Eq. 5)."""
    return gradients[-1]


def adam(gradients: list[Tensor], beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-12) -> Tensor:
    """The step direction after gradients g_1 ... g_t by Kingma and Ba's unrolled sums.

    m_t = (1 - beta1) sum_i beta1^(t-i) g_i,  v_t = (1 - beta2) sum_i beta2^(t-i) g_i^2,
    direction = (m_t / (1 - beta1^t)) / (sqrt(v_t / (1 - beta2^t)) + eps)
    """
    t = len(gradients)
    m = sum((1 - beta1) * beta1 ** (t - i) * g for i, g in enumerate(gradients, start=1))
    v = sum((1 - beta2) * beta2 ** (t - i) * g * g for i, g in enumerate(gradients, start=1))
    return (m / (1 - beta1**t)) / ((v / (1 - beta2**t)) ** 0.5 + eps)


def adafactor(gradients: list[Tensor], beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-12) -> Tensor:
    """Adam's direction where v_t is replaced by (row means) (column means) / (mean), of v_t itself.

    (Shazeer and Stern 2018. A mean over a row of v_t is the running mean of that row's mean square.)
    """
    t = len(gradients)
    m = sum((1 - beta1) * beta1 ** (t - i) * g for i, g in enumerate(gradients, start=1))
    v = sum((1 - beta2) * beta2 ** (t - i) * g * g for i, g in enumerate(gradients, start=1))
    factored = v.mean(1, keepdim=True) * v.mean(0, keepdim=True) / v.mean()
    return (m / (1 - beta1**t)) / ((factored / (1 - beta2**t)) ** 0.5 + eps)


DIRECTIONS = {"sgd": sgd, "adam": adam, "adafactor": adafactor}


def algorithm_1(
    theta: Tensor, grads_of_mask: list[Tensor], alpha: float, gamma: float, t_s: float, rule: str
) -> list[Tensor]:
    """theta after each step of Algorithm 1 for given dL/dm; the mask after step i is 1[theta_i > 0].

    theta <- theta - alpha d(g_theta) - gamma 1,    g_theta = dL/dm t_s e^(-t_s theta) / (1 + e^(-t_s theta))^2
    """
    path, gradients = [], []
    for grad_of_mask in grads_of_mask:
        decay = torch.exp(-t_s * theta)
        gradients.append(grad_of_mask * t_s * decay / (1 + decay) ** 2)
        theta = theta - alpha * DIRECTIONS[rule](gradients) - gamma * torch.ones_like(theta)
        path.append(theta)
    return path


def best_mask(loss_of_mask, size: int, kept: int | None = None) -> tuple[tuple[int, ...], float]:
    """The mask of ``size`` entries with the lowest loss, by trying all of them (those with ``kept`` ones only)."""
    found = None
    for code in range(2**size):
        mask = tuple(code >> i & 1 for i in range(size))
        if kept is None or sum(mask) == kept:
            value = float(loss_of_mask(torch.tensor(mask, dtype=torch.float64)))
            if found is None or value < found[1]:
                found = mask, value
    return found
