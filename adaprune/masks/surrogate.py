"""The relaxation of the mask and its surrogate gradient: Eqs. 2, 3 and 4.

theta is read relative to ``threshold`` throughout: subtracting a penalty from every theta and adding it to the
threshold are the same.
"""

import torch
from torch import Tensor


def relaxed_mask(theta: Tensor, temperature: float, threshold: float = 0.0) -> Tensor:
    """m_t = sigmoid(t theta), the relaxation of the mask (Eq. 2); a step function as t grows.

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

    (In place after the first difference: on a CPU, each further temporary costs more than its arithmetic.)
    """
    soft = relaxed_mask(theta, temperature, threshold)
    grad = torch.ops.aten.sigmoid_backward.grad_input(grad_mask, soft, grad_input=soft)  # grad_mask * soft * (1 - soft)
    return grad if temperature == 1 else grad.mul_(temperature)
