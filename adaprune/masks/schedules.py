"""Learning-rate schedules, and three ways to bring a mask to its sparsity.

All controls move one number, the threshold that theta is compared with. Subtracting a penalty gamma from every theta
(Eq. 7) and adding gamma to the threshold give the same masks, but the second does not touch every weight.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence

import torch
from torch import Tensor

from adaprune.masks.layers import NEVER

CONTROLS = ("penalty", "feedback", "cubic")
TIES = 0.01  # share of equal theta that a threshold may prune beyond the target
_SAMPLE = 2**20  # thetas sampled to set a threshold: the sparsity is then off by about 0.0005


def slanted_triangular(step: int, total: int, cut: float = 0.1, ratio: float = 32.0) -> float:
    """Factor of the learning rate at ``step`` (0-based): a short linear rise, then a long linear decay.

        eta = (1 + p (ratio - 1)) / ratio,   p = t / (cut T) while rising, 1 - (t - cut T) / (T - cut T) after

    (Howard and Ruder 2018, as used by Peters et al. 2019, which the paper follows.)

    >>> slanted_triangular(0, 100), slanted_triangular(10, 100), slanted_triangular(100, 100)
    (0.03125, 1.0, 0.03125)
    """
    peak = max(1, int(total * cut))
    share = step / peak if step < peak else max(0.0, 1 - (step - peak) / max(1, total - peak))
    return (1 + share * (ratio - 1)) / ratio


def warmup_linear(step: int, total: int, warmup: float = 0.1) -> float:
    """Factor of the learning rate at ``step`` (0-based): linear rise over ``warmup * total``, then linear decay to 0.

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


def quantile_threshold(thetas: Iterable[Tensor], sparsity: float, sample: int = _SAMPLE, ties: float = TIES) -> float:
    """The value that a share ``sparsity`` of all theta does not exceed; if there are many, from an even sample.

    If more than a share ``ties`` of all theta equal this value, as after a constant start, the next lower value is
    returned: then too few are pruned, rather than far too many. -inf if nothing is to be pruned.
    """
    thetas = [theta.detach().flatten() for theta in thetas]
    stride = max(1, sum(theta.numel() for theta in thetas) // sample)
    while math.gcd(stride, 2 * 3 * 5 * 7) > 1:  # a common factor with a matrix's width would skip columns
        stride += 1
    drawn = torch.cat([theta[::stride] for theta in thetas])
    below = round(sparsity * drawn.numel())
    value = float(drawn.kthvalue(below).values) if below else -math.inf
    if int((drawn <= value).sum()) > below + ties * drawn.numel():
        lower = drawn[drawn < value]
        value = float(lower.max()) if lower.numel() else -math.inf
    return value


class SparsityControl:
    """Moves the shared threshold after each optimiser step until the mask has its sparsity.

    - ``penalty`` (Algorithm 1): the optimiser adds a fixed gamma per step; training stops as soon as the sparsity
      exceeds the target.
    - ``feedback``: at every step gamma is set to (quantile of theta at the target - threshold) / (steps left), never
      below 0, so that the target is reached at step ``end`` and held after it.
    - ``cubic``: the threshold is the quantile of theta at the scheduled sparsity (``cubic_sparsity``).

    If the sparsity is still off at the end, by sampling error or too small a penalty, the exact cut corrects it.

    Without recovery, a connection is pruned for good if its theta does not exceed the threshold when that moves: its
    theta becomes -inf. Between two moves the mask stays the same. So the same schedule is followed, and once the target
    is reached the mask is final. The threshold then stays where it is, as the centre of the surrogate's slope.

    Args:
        kind: one of ``CONTROLS``.
        target: sparsity to reach, in [0, 1).
        end: step by which ``feedback`` and ``cubic`` reach it.
        interval: steps between two updates of the threshold (``cubic``).
        recovery: False makes pruning final; tell the masked layers too (see `masks.attach`).
        initial: the scheduled sparsity before the first step (``cubic``); if it is the target, it holds from the start.
        allocate: if each matrix has its own threshold (``cubic`` only): the overall density -> that of each matrix.

    Raises:
        ValueError: an unknown kind, one that cannot follow ``allocate``, or no steps in which to reach the target.
    """

    def __init__(
        self,
        kind: str,
        target: float,
        end: int,
        interval: int = 5,
        recovery: bool = True,
        initial: float = 0.0,
        allocate: Callable[[float], list[float]] | None = None,
    ):
        if allocate and kind != "cubic":
            raise ValueError(f"thresholds per matrix need control 'cubic' (recipe='tuned'), this is {kind!r}")
        if kind not in CONTROLS:
            raise ValueError(f"control must be one of {', '.join(CONTROLS)}, got {kind!r}")
        if end < 1 and target > 0 and kind != "penalty":
            raise ValueError(f"a sparsity of {target} cannot be reached in {end} steps: train for longer")
        self.kind, self.target, self.end = kind, target, end
        self.interval = min(interval, max(1, end // 20))
        self.recovery, self.initial, self.allocate = recovery, initial, allocate

    @torch.no_grad()
    def update(self, step: int, thetas: Iterable[Tensor], threshold: Tensor) -> bool:
        """Moves ``threshold`` (and theta, without recovery) after ``step`` (1-based) updates; True = stop training."""
        thetas = list(thetas)
        if self.target == 0:
            threshold.fill_(-math.inf)  # nothing is to be pruned, whatever theta or a penalty does
            return False
        if self.kind == "penalty":  # the optimiser has moved it
            if not self.recovery:
                self._prune(thetas, threshold)
            return self.sparsity(thetas, threshold) > self.target
        found = self._each(step, thetas) if self.allocate else self._threshold(step, thetas, float(threshold))
        if found is None:
            return False
        moved = torch.tensor(found, dtype=torch.float64)
        if not self.recovery:
            self._prune(thetas, moved)
            moved = torch.where(moved.isinf(), threshold, moved)  # nothing is left to prune, so the slope stays
        threshold.copy_(moved)
        return False

    @staticmethod
    def _prune(thetas: list[Tensor], levels: Tensor) -> None:
        """Prunes for good what does not exceed the level, which is one for all of ``thetas`` or one for each."""
        for theta, value in zip(thetas, levels.expand(len(thetas)).tolist(), strict=True):
            theta.masked_fill_(theta <= value, -math.inf)

    def _threshold(self, step: int, thetas: list[Tensor], now: float) -> float | None:
        """The threshold after ``step``, from theta alone (so that a resumed run agrees); None = unchanged."""
        if self.kind == "cubic":
            return self._quantile(thetas, self._scheduled(step)) if self._looks(step) else None
        return self._fed_back(step, thetas, now)

    def _fed_back(self, step: int, thetas: list[Tensor], now: float) -> float | None:
        """The threshold plus one gamma, (quantile at the target - threshold) / (steps left); None = unchanged."""
        goal, left = self._quantile(thetas, self.target), max(1, self.end - step + 1)
        if self.recovery:
            if goal <= now:
                return None
        elif math.isinf(goal):  # the target is reached
            return None
        else:  # pruned theta are -inf, the others may have moved up since: start at the lowest that is left
            now = min(float(alive.min()) for theta in thetas if (alive := theta[theta > -math.inf]).numel())
        return goal if left == 1 else now + (goal - now) / left

    def _each(self, step: int, thetas: list[Tensor]) -> list[float] | None:
        """The threshold of each matrix after ``step`` under ``allocate``; None = unchanged."""
        if not self._looks(step):
            return None
        shares = self.allocate(1 - self._scheduled(step))
        sample = max(1, _SAMPLE // len(thetas))
        return [self._quantile([theta], 1 - share, sample) for theta, share in zip(thetas, shares, strict=True)]

    def _quantile(self, thetas: list[Tensor], sparsity: float, sample: int = _SAMPLE) -> float:
        """The threshold for a sparsity; without recovery from all theta and never above, as nothing could return."""
        if self.recovery:
            return quantile_threshold(thetas, sparsity, sample)
        return quantile_threshold(thetas, sparsity, sum(theta.numel() for theta in thetas), ties=0.0)

    def _looks(self, step: int) -> bool:
        return step % self.interval == 0 or step == self.end

    def _scheduled(self, step: int) -> float:
        return cubic_sparsity(step, 0, self.end, self.target, self.initial)

    def sparsity(self, thetas: Iterable[Tensor], threshold: Tensor) -> float:
        """The current sparsity of the mask: the share of all theta at or below their threshold."""
        kept = self.kept(thetas, threshold)
        return 1 - sum(int(torch.count_nonzero(mask)) for mask in kept) / sum(mask.numel() for mask in kept)

    def kept(self, thetas: Iterable[Tensor], threshold: Tensor) -> list[Tensor]:
        """The current mask, a boolean tensor for each of ``thetas``."""
        thetas = list(thetas)
        levels = threshold.expand(len(thetas)).tolist() if self.recovery else [NEVER] * len(thetas)
        return [theta.detach() > level for theta, level in zip(thetas, levels, strict=True)]

    def check(self, thetas: Iterable[Tensor], steps: int, penalty: float, rate: float) -> None:
        """Refuses a ``penalty`` control that cannot reach the target, before any step is taken.

        To reach the target, the threshold has to rise (by the penalty gamma per step), or theta has to fall (by at most
        about ``rate`` per Adam-type step), by the distance to theta's quantile at the target:

            steps * (gamma + rate) >= quantile(theta_0, target)

        Args:
            thetas: theta at the start.
            steps: number of steps there will be.
            penalty: gamma.
            rate: alpha of an Adam-type step; 0 for SGD, whose steps have no such bound and are tiny.

        Raises:
            ValueError: the target cannot be reached; the message says what would make it possible.
        """
        if self.kind != "penalty" or self.target == 0:
            return
        distance = quantile_threshold(thetas, self.target, ties=1.0)
        reach = steps * (penalty + rate)
        if reach < distance:
            needed = math.ceil(distance / (penalty + rate)) if penalty + rate > 0 else math.inf
            raise ValueError(
                f"penalty={penalty:.2g} cannot reach a sparsity of {self.target}: theta has to travel {distance:.2g}, "
                f"but {steps} steps of at most {penalty + rate:.2g} (gamma and the rate) give {reach:.2g}. It needs "
                f"{needed} steps, or a penalty of {1.01 * (distance / steps - rate):.3g}, or none: it then adapts"
            )


class ControlOfUnits:
    """One `SparsityControl` per kind of unit, heads and FFN neurons, each with its own threshold (see `attach`).

    Args:
        control: the control that each kind follows.
        kinds: the kind of each theta; thresholds are in the order in which the kinds first appear.
        sizes: the number of weights in a unit of each theta.
        counts: the number of units of each theta.
    """

    def __init__(
        self, control: SparsityControl, kinds: Sequence[Hashable], sizes: Sequence[int], counts: Sequence[int]
    ):
        self.control, self.sizes, self.counts = control, sizes, counts
        self.groups = [[i for i, kind in enumerate(kinds) if kind == of] for of in dict.fromkeys(kinds)]

    def update(self, step: int, thetas: Iterable[Tensor], threshold: Tensor) -> bool:
        """Moves each kind's threshold; True once all of them want to stop."""
        thetas = list(thetas)
        moves = [self.control.update(step, part, level) for part, level in self._kinds(thetas, threshold)]
        return all(moves)

    @property
    def target(self) -> float:
        """The share of the weights that is removed with round(sparsity n) units of each kind."""
        removed = 0
        for group in self.groups:
            units = sum(self.counts[i] for i in group)
            removed += self.sizes[group[0]] * (units - round((1 - self.control.target) * units))
        return removed / sum(size * count for size, count in zip(self.sizes, self.counts, strict=True))

    def sparsity(self, thetas: Iterable[Tensor], threshold: Tensor) -> float:
        """The share of the weights in the units that are currently removed."""
        thetas, removed, total = list(thetas), 0.0, 0
        for (part, level), group in zip(self._kinds(thetas, threshold), self.groups, strict=True):
            weights = self.sizes[group[0]] * sum(theta.numel() for theta in part)
            removed, total = removed + weights * self.control.sparsity(part, level), total + weights
        return removed / total

    def check(self, thetas: Iterable[Tensor], steps: int, penalty: float, rate: float) -> None:
        """Refuses, for each kind, what `SparsityControl.check` refuses."""
        thetas = list(thetas)
        for group in self.groups:
            self.control.check([thetas[i] for i in group], steps, penalty, rate)

    def _kinds(self, thetas: Sequence[Tensor], threshold: Tensor) -> list[tuple[list[Tensor], Tensor]]:
        return [([thetas[i] for i in group], threshold[place]) for place, group in enumerate(self.groups)]
