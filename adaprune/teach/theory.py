"""Theorem 1 in numbers: its bound, and masked problems small enough to try every mask.

Notation of the paper: v = sigmoid(t_l theta) is the relaxed mask in [0, 1]^d, alpha_i = c / sqrt(i) the rate of step i,
G the largest ||dL/dv||, M the largest |theta|, T the number of steps. Losses are computed for masks v (masks, d).
"""

import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor
from torch.nn import functional

from adaprune.masks import initial_theta, relaxed_mask, surrogate_gradient

MOST_WEIGHTS = 14  # 16,384 masks: still quick to try


def bound(T: np.ndarray | float, c: float, G: float, C: float, distance: float = 1.0) -> np.ndarray:
    """The most that E[L(theta_T) - L(theta*)] can be after T steps (Theorem 1; supplement, Corollary 1.4).

        1 / (c sqrt(T)) + c G^2 (1 + C) (1 + log T) / T,   for a loss convex in v, alpha_i = c / sqrt(i)

    T, at least 1, may be an array. C is `constant` of the temperatures. ``distance`` multiplies the first term: the
    paper prints 1; an analysis of gradient descent usually has the squared distance between start and optimum there,
    which can be as large as d for relaxed masks. Raises ValueError if a value is out of range.

    >>> bound(4, c=0.5, G=2, C=0).round(3)
    np.float64(2.193)
    """
    T = np.asarray(T, dtype=float)
    if wrong := T[~((T >= 1) & (T < math.inf))].tolist():
        raise ValueError(f"T counts steps and must be at least 1 and finite, got {wrong[0]}")
    _check(c=c)
    _check(or_zero=True, G=G, C=C, distance=distance)
    return distance / (c * np.sqrt(T)) + c * G**2 * (1 + C) * (1 + np.log(T)) / T


def constant(t_l: float, t_s: float, M: float) -> float:
    """C of Theorem 1: how far a step on theta can be from a gradient step on v, squared, in units of G^2.

        C = t_l t_s (1 / (t_l t_s) - 2 gmax(t_l) gmax(t_s) + t_l t_s / 16^2)

    It is at least (1 - t_l t_s g(t_l theta) g(t_s theta))^2 for every |theta| <= M, where g is the sigmoid's slope.
    Raises ValueError for a temperature that is not positive and finite, or an M that is negative or not finite.

    >>> constant(4, 4, M=0), round(constant(1e5, 1, M=1) / 1e7, 1)
    (0.0, 3.9)
    """
    least, product = gmax(t_l, M) * gmax(t_s, M), t_l * t_s
    return product * (1 / product - 2 * least + product / 16**2)


def gmax(t: float, M: float) -> float:
    """sigmoid(t M) (1 - sigmoid(t M)): the sigmoid's slope at the largest |theta|, where it is smallest (Theorem 1)."""
    _check(t=t)
    _check(or_zero=True, M=M)
    return float(expit(t * M) * expit(-t * M))


class Problem(NamedTuple):
    """Rows x (rows, inputs) with labels y (rows,), the d frozen weights, and the loss of masks on such rows.

    ``loss(v, x, y)`` is the mean loss (masks,) of each v (masks, d). The masks share the rows, or each has its own if x
    is (masks, rows, inputs) and y (masks, rows).
    """

    x: Tensor
    y: Tensor
    w0: Tensor
    loss: Callable[[Tensor, Tensor, Tensor], Tensor]

    def whole(self, v: Tensor) -> Tensor:
        """The mean loss over all rows, (masks,), of masks v (masks, d)."""
        return self.loss(v, self.x, self.y)


def logistic(d: int = 10, rows: int = 200, seed: int = 0) -> Problem:
    """Masked logistic regression, convex in v; every second weight of w0 played no part in making the labels.

        L(v) = mean_n [ log(1 + exp(z_n)) - y_n z_n ],   z = x (w0 * v),   P(y = 1) = sigmoid(x (w0 * (1, 0, 1, ...)))

    Inputs are -1 or 1, so that ||dL/dv|| is at most G = ||w0|| for any row and any v. Raises ValueError unless d is a
    whole number in 1 ... 14 and rows one that is at least 1.
    """
    _check_size(d)
    _check_whole(rows=rows)
    generator = torch.Generator().manual_seed(seed)
    w0 = torch.randn(d, dtype=torch.float64, generator=generator)
    w0 = w0.sign() * (0.3 + 0.5 * w0.abs())
    x = torch.randint(2, (rows, d), generator=generator).double() * 2 - 1
    used = (torch.arange(d) + 1) % 2
    y = torch.bernoulli((x @ (w0 * used)).sigmoid(), generator=generator)

    def loss(v: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return _cross_entropy((x @ (w0 * v).unsqueeze(-1)).squeeze(-1), y)

    return Problem(x, y, w0, loss)


def two_layers(hidden: int = 4, rows: int = 200, seed: int = 0) -> Problem:
    """A masked network of 2 inputs, ``hidden`` neurons and 1 output, not convex in v; d = 3 hidden.

        z = relu(x (W1 * v_1)^T) (w2 * v_2),   y = 1[z > 0] under a mask drawn at random

    Raises ValueError unless hidden and rows are whole numbers, at least 1, and d is at most 14.
    """
    _check_whole(hidden=hidden, rows=rows)
    _check_size(3 * hidden)
    generator = torch.Generator().manual_seed(seed)
    w0 = 2 * torch.randn(3 * hidden, dtype=torch.float64, generator=generator)
    w0[2 * hidden :] = w0[2 * hidden :].abs() * (1 - 2 * (torch.arange(hidden) % 2))  # both classes have neurons
    x = torch.randn(rows, 2, dtype=torch.float64, generator=generator)

    def output(v: Tensor, x: Tensor) -> Tensor:
        w1, w2 = (w0 * v).split([2 * hidden, hidden], dim=-1)
        neurons = torch.relu(x @ w1.unflatten(-1, (hidden, 2)).mT)  # (masks, rows, hidden)
        return (neurons @ w2.unsqueeze(-1)).squeeze(-1)

    teacher = torch.randint(2, (1, 3 * hidden), generator=generator).double()
    y = (output(teacher, x)[0] > 0).double()
    return Problem(x, y, w0, lambda v, x, y: _cross_entropy(output(v, x), y))


def every_mask(problem: Problem) -> tuple[Tensor, Tensor]:
    """All 2^d masks (2^d, d) and their losses (2^d,), the best first."""
    d = len(problem.w0)
    masks = (torch.arange(2**d)[:, None] >> torch.arange(d) & 1).double()
    losses = torch.cat([problem.whole(part) for part in masks.split(1024)])
    order = losses.argsort(stable=True)
    return masks[order], losses[order]


def relaxed_optimum(problem: Problem) -> tuple[Tensor, float]:
    """The v in [0, 1]^d with the lowest loss, (d,), and that loss L(theta*), found by scipy for a convex problem."""

    def value_and_slope(v: np.ndarray) -> tuple[float, np.ndarray]:
        mask = torch.tensor(v[None], requires_grad=True)
        (value := problem.whole(mask).sum()).backward()
        return value.item(), mask.grad[0].numpy()

    start, options = np.full(len(problem.w0), 0.5), {"ftol": 1e-15, "gtol": 1e-10}
    box = [(0, 1)] * len(start)
    found = minimize(value_and_slope, start, jac=True, bounds=box, method="L-BFGS-B", options=options)
    return torch.tensor(found.x), float(found.fun)


class Descent(NamedTuple):
    """Theta at each checkpoint (looks, runs, d), and M, the largest |theta| at any step."""

    thetas: Tensor
    M: float


def descend(
    problem: Problem, c: float, t_l: float, t_s: float, looks: Sequence[int], runs: int, batch: int = 4, seed: int = 0
) -> Descent:
    """The theorem's algorithm, ``runs`` copies at once: Eqs. 4 and 5 without penalty, alpha_i = c / sqrt(i).

        theta <- theta - c / sqrt(i) dL/dm t_s sigmoid'(t_s theta),   dL/dm at m = sigmoid(t_l theta)

    Each run draws ``batch`` rows per step and starts, like the paper's theta, from N(0.01, 0.001^2). ``looks`` are the
    numbers of steps after which theta is recorded; the last of them ends the runs. Raises ValueError for a value out of
    range.
    """
    _check(c=c, t_l=t_l, t_s=t_s)
    _check_whole(runs=runs, batch=batch)
    if not (len(looks) and all(map(_is_whole, looks)) and sorted({*looks}) == list(looks)):
        raise ValueError(f"looks are rising whole numbers of steps, one or more and each at least 1, got {list(looks)}")
    generator = torch.Generator().manual_seed(seed)
    theta = initial_theta({"": torch.empty(runs, len(problem.w0))}, "normal", generator)[""].double()
    noted, M = [], 0.0
    for step in range(1, max(looks) + 1):
        rows = torch.randint(len(problem.y), (runs, batch), generator=generator)
        v = relaxed_mask(theta, t_l).requires_grad_()
        (grad,) = torch.autograd.grad(problem.loss(v, problem.x[rows], problem.y[rows]).sum(), v)
        theta = theta - c / math.sqrt(step) * surrogate_gradient(grad, theta, t_s)
        M = max(M, float(theta.abs().max()))
        if step in looks:
            noted.append(theta)
    return Descent(torch.stack(noted), M)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the last axis of the two-class cross-entropy."""
    return functional.binary_cross_entropy_with_logits(logits, labels.expand_as(logits), reduction="none").mean(-1)


def _check(or_zero: bool = False, **values: float) -> None:
    for name, value in values.items():
        if not (0 < value < math.inf or (or_zero and value == 0)):
            raise ValueError(f"{name} must be finite and {'not negative' if or_zero else 'positive'}, got {value}")


def _is_whole(value: int) -> bool:
    """Whether a value is a whole number from 1 on, of Python or numpy."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= 1


def _check_whole(**values: int) -> None:
    for name, value in values.items():
        if not _is_whole(value):
            raise ValueError(f"{name} must be a whole number, at least 1, got {value!r}")


def _check_size(d: int) -> None:
    if not _is_whole(d) or d > MOST_WEIGHTS:
        raise ValueError(f"d, the number of weights, must be a whole number in 1 ... {MOST_WEIGHTS}, got {d!r}")
