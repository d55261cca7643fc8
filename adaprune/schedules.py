"""Learning-rate schedules, and the three ways in which a mask is brought to its sparsity.

All controls move one number, the threshold that theta is compared with. Subtracting a penalty gamma from every
theta (Eq. 7) and adding gamma to the threshold give the same masks, and the second touches no weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

CONTROLS = ("penalty", "feedback", "cubic")
_SAMPLE = 2**20  # thetas looked at when a threshold is set: sparsity is then off by about 0.0005


def slanted_triangular(step: int, total: int, cut: float = 0.1, ratio: float = 32.0) -> float:
    """Factor of the learning rate at ``step`` (0-based): a short linear rise, then a long linear fall.

        eta = (1 + p (ratio - 1)) / ratio,   p = t / (cut T) while rising, 1 - (t - cut T) / (T - cut T) after

    (Howard and Ruder 2018, as used by Peters et al. 2019, which the paper follows.)

    >>> slanted_triangular(0, 100), slanted_triangular(10, 100), slanted_triangular(100, 100)
    (0.03125, 1.0, 0.03125)
    """
    peak = max(1, int(total * cut))
    share = step / peak if step < peak else max(0.0, 1 - (step - peak) / max(1, total - peak))
    return (1 + share * (ratio - 1)) / ratio


def warmup_linear(step: int, total: int, warmup: float = 0.1) -> float:
    """Factor of the learning rate at ``step`` (0-based): linear rise over ``warmup * total``, linear fall to 0.

    >>> warmup_linear(0, 100), warmup_linear(10, 100), warmup_linear(100, 100)
    (0.0, 1.0, 0.0)
    """
    rise = max(1, int(total * warmup))
    return step / rise if step < rise else max(0.0, (total - step) / max(1, total - rise))


def cubic_sparsity(step: int, start: int, end: int, final: float, initial: float = 0.0) -> float:
    """Scheduled sparsity s_t after ``step`` updates (Zhu and Gupta 2018, Eq. 1).

        s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (t_1 - t_0))^3,   clamped to s_i before t_0 and to s_f after t_1

    >>> [round(cubic_sparsity(step, start=0, end=10, final=0.8), 6) for step in (0, 5, 10)]
    [0.0, 0.7, 0.8]
    """
    share = min(1.0, max(0.0, (step - start) / max(1, end - start)))
    return final + (initial - final) * (1 - share) ** 3


def quantile_threshold(thetas: Iterable[Tensor], sparsity: float, sample: int = _SAMPLE) -> float:
    """The value that a share ``sparsity`` of all theta does not exceed; from an even sample where there are many."""
    thetas = [theta.detach().flatten() for theta in thetas]
    stride = max(1, sum(theta.numel() for theta in thetas) // sample)
    drawn = torch.cat([theta[::stride] for theta in thetas])
    below = round(sparsity * drawn.numel())
    if below == 0:
        return float(drawn.min()) - 1e-12 - abs(float(drawn.min())) * 1e-6
    return float(drawn.kthvalue(below).values)


def sparsity_of(thetas: Iterable[Tensor], threshold: float) -> float:
    """Fraction of all theta at or below ``threshold``: the sparsity of the mask 1[theta > threshold]."""
    thetas = list(thetas)
    kept = sum(int(torch.count_nonzero(theta.detach() > threshold)) for theta in thetas)
    return 1 - kept / sum(theta.numel() for theta in thetas)


class SparsityControl:
    """Moves the shared threshold after each optimiser step until the mask has its sparsity.

    - ``penalty`` (Algorithm 1): the optimiser adds a fixed gamma a step; training stops as soon as the sparsity
      exceeds the target.
    - ``feedback``: gamma is set anew at every step to (quantile of theta at the target - threshold) / (steps left),
      never below 0, so that the target is met at step ``end``.
    - ``cubic``: the threshold is the quantile of theta at the scheduled sparsity (``cubic_sparsity``).

    Whatever is left at the end, a sampling error or a penalty that fell short, the exact cut removes.

    Args:
        kind: one of ``CONTROLS``.
        target: sparsity to reach, in [0, 1).
        end: step by which ``feedback`` and ``cubic`` reach it.
        interval: steps between two looks at theta (``cubic``).
        recovery: False keeps the threshold from ever falling.

    Raises:
        ValueError: an unknown kind, or no step to reach the target in.
    """

    def __init__(self, kind: str, target: float, end: int, interval: int = 5, recovery: bool = True):
        if kind not in CONTROLS:
            raise ValueError(f"control must be one of {', '.join(CONTROLS)}, got {kind!r}")
        if end < 1 and target > 0 and kind != "penalty":
            raise ValueError(f"a sparsity of {target} cannot be reached in {end} steps: train for longer")
        self.kind, self.target, self.end = kind, target, end
        self.interval = min(interval, max(1, end // 20))
        self.recovery = recovery

    def update(self, step: int, thetas: Iterable[Tensor], threshold: Tensor) -> bool:
        """Moves ``threshold`` in place after ``step`` (1-based) updates; True where training should stop."""
        thetas = list(thetas)
        if self.kind == "penalty":
            return self.target > 0 and sparsity_of(thetas, float(threshold)) > self.target
        if self.kind == "feedback":
            self._feedback(step, thetas, threshold)
        elif step % self.interval == 0 or step == self.end:
            wanted = cubic_sparsity(step, 0, self.end, self.target)
            value = quantile_threshold(thetas, wanted)
            threshold.fill_(value if self.recovery else max(value, float(threshold)))
        return False

    def _feedback(self, step: int, thetas: list[Tensor], threshold: Tensor) -> None:
        """One step of gamma = (quantile - threshold) / (steps left); no state, so a resumed run agrees."""
        distance = quantile_threshold(thetas, self.target) - float(threshold)
        if step <= self.end:
            threshold.add_(max(0.0, distance) / (self.end - step + 1))
        else:
            threshold.fill_(max(float(threshold), float(threshold) + distance))

    def check(self, thetas: Iterable[Tensor], steps: int, penalty: float, rate: float) -> None:
        """Refuses a ``penalty`` control that cannot arrive, before any step is taken.

        To reach the target, the threshold has to rise (penalty, gamma a step) or theta to fall (at most about
        ``rate`` a step with an Adam-type step) by the distance to theta's quantile at the target:

            steps * (gamma + rate) >= quantile(theta_0, target)

        Args:
            thetas: theta at the start.
            steps: number of steps there will be.
            penalty: gamma.
            rate: alpha of an Adam-type step, 0 for SGD, whose steps have no such bound and are tiny.

        Raises:
            ValueError: it cannot; says what would make it possible.
        """
        if self.kind != "penalty" or self.target == 0:
            return
        distance = quantile_threshold(thetas, self.target)
        reach = steps * (penalty + rate)
        if reach < distance:
            needed = math.ceil(distance / (penalty + rate)) if penalty + rate > 0 else math.inf
            raise ValueError(
                f"control='penalty' cannot reach a sparsity of {self.target}: theta has to travel {distance:.2g}, "
                f"{steps} steps of at most {penalty + rate:.2g} (gamma {penalty:.2g}) give {reach:.2g}. "
                f"It needs {needed} steps, or gamma >= {max(0.0, distance / steps - rate):.2g}, or control='feedback'"
            )
