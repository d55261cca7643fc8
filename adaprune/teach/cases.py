"""Exercises of lessons 1 to 4: an independent implementation of each, its inputs, and common mistakes."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from adaprune.masks import cubic_sparsity, keep_top, surrogate_gradient
from adaprune.teach.judging import Exercise, numbers_in, show
from adaprune.teach.theory import bound
from adaprune.topology import connected_components, jaccard

# Lesson 1


def keep_largest(scores: Tensor, k: int) -> Tensor:
    """True for the k highest scores; ties go to the first."""
    return keep_top({"": scores}, k / scores.numel())[""]


def flips(mask: Tensor, base: Tensor) -> list[int]:
    """How many connections of ``base`` the mask removes, and how many it brings back."""
    changed = mask != base
    return [int((changed & base).sum()), int((changed & mask).sum())]


def judge_score(found: Tensor, weight: Tensor, norms: Tensor) -> str:
    """Accepts any finite scores, one per weight, that are not all equal."""
    if not isinstance(found, Tensor) or found.shape != weight.shape:
        shape = tuple(found.shape) if isinstance(found, Tensor) else f"a value of type {type(found).__name__}"
        return f"my_score has to return a tensor of the weight's shape, {tuple(weight.shape)}; yours returned {shape}."
    if not torch.isfinite(found.float()).all():
        return f"Some scores are not finite: {show(found)}. Do you divide by 0, or take the logarithm of 0?"
    same = found.unique().numel() == 1
    return "All scores are equal, so a mask made from them keeps whatever comes first." if same else ""


TIES = torch.tensor([3.0, 1.0, 3.0, 3.0])
SIX = torch.tensor([[0.5, -2.0, 1.0], [3.0, 0.1, -0.3]])
ON, OFF = torch.tensor([True, True, False, False, True]), torch.tensor([True, False, True, False, False])

# Lesson 2


def straight_through(theta: Tensor, grad_mask: Tensor, rate: float, gamma: float, t_s: float) -> Tensor:
    """One step of Algorithm 1 (Eqs. 4, 5 and 7)."""
    return theta - rate * surrogate_gradient(grad_mask, theta, t_s) - gamma


def _slope(theta: Tensor, t: float) -> Tensor:
    soft = torch.sigmoid(t * theta)
    return soft * (1 - soft)


def comebacks(kept: Tensor) -> list[int]:
    """How often each weight (a column) is kept right after a step without it."""
    return [sum(now and not was for was, now in itertools.pairwise(column)) for column in kept.T.tolist()]


def _cubic(clamp: bool, power: int = 3, rest: bool = True) -> Callable[..., float]:
    def schedule(step: int, begin: int, end: int, final: float) -> float:
        share = (step - begin) / (end - begin)
        share = min(1.0, max(0.0, share)) if clamp else share
        return final * (1 - (1 - share) ** power) if rest else final * share**power

    return schedule


THETA, GRAD = torch.tensor([math.log(3), 0.0, -0.02]), torch.tensor([6.0, -4.0, 1.0])
STEPS = (THETA, GRAD, 0.1, 0.0, 1.0), (THETA, GRAD, 0.1, 0.01, 1.0), (THETA, GRAD, 0.5, 0.002, 2.0)
KEPT = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 1, 0], [1, 0, 1], [1, 1, 1]], dtype=torch.bool)

# Lesson 3


def quadratic(*best: float) -> Callable[[Tensor], float]:
    """A loss of one mask, lowest at ``best``, named for messages."""

    def loss(mask: Tensor) -> float:
        return float((torch.as_tensor(mask, dtype=torch.float64) - torch.tensor(best)).square().sum())

    return loss


def trap(mask: Tensor) -> float:
    """Keeping everything is good and keeping nothing is best, but removing any one connection makes the loss worse."""
    kept = int(torch.as_tensor(mask).sum())
    return {0: 0.0, len(mask): 0.5}.get(kept, 1.0 + kept)


def judge_best(found: Tensor, loss: Callable[[Tensor], float], d: int) -> str:
    """Accepts any mask that no other mask beats."""
    entries = numbers_in(found)
    if entries.shape != (d,) or not set(entries.double().tolist()) <= {0.0, 1.0}:
        return f"best_mask has to return {d} numbers, each 0 or 1; yours returned {show(found)}."
    others = [torch.tensor(mask, dtype=torch.float64) for mask in itertools.product((0, 1), repeat=d)]
    best = min(others, key=loss)
    if loss(entries.double()) <= loss(best) + 1e-12:
        return ""
    return (
        f"For {loss.__name__} with d={d} you found {show(found)} with loss {show(loss(entries.double()))}, but "
        f"{show(best)} has {show(loss(best))}. Try all {2**d} masks, including those that keep everything or nothing."
    )


def bumps(loss: Callable[[Tensor], Tensor], one: Tensor, other: Tensor) -> int:
    """The number of pairs whose midpoint has a loss above the mean of the two ends."""
    ends = np.stack([loss(one).numpy(), loss(other).numpy()]).mean(0)
    return int((loss(one.lerp(other, 0.5)).numpy() > ends + 1e-9).sum())


def bowl(v: Tensor) -> Tensor:
    """Convex."""
    return v.square().sum(-1)


def hill(v: Tensor) -> Tensor:
    """Concave."""
    return 3 - v.square().sum(-1)


def waves(v: Tensor) -> Tensor:
    """Neither."""
    return (6 * v).sin().sum(-1)


PAIRS = tuple(torch.rand(2, 20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))


def judge_rate(found: float, T: int, G: float, C: float) -> str:
    """Accepts any c whose bound is within 0.1 % of the lowest."""
    given = numbers_in(found)
    c = float(given) if given.ndim == 0 else math.nan
    if not 0 < c < math.inf:
        return f"best_rate has to return a positive number; yours returned {show(found)}."
    lowest = min(float(bound(T, rate, G, C)) for rate in np.geomspace(1e-6, 1e6, 24001))
    reached = float(bound(T, c, G, C))
    if reached <= lowest * 1.001:
        return ""
    return (
        f"With T={T}, G={G:g}, C={C:g} your c = {c:.4g} gives a bound of {reached:.4g}; the lowest is {lowest:.4g}, "
        f"at a {'smaller' if float(bound(T, c * 0.99, G, C)) < reached else 'larger'} c."
    )


# Lesson 4


def jaccard_and_chance(one: Tensor, other: Tensor) -> list[float]:
    """The overlap of two masks of one matrix, and that of random masks that keep as many connections."""
    found = jaccard({"w": one}, {"w": other})
    return [found.jaccard, found.chance]


def working(into: Tensor, out: Tensor) -> int:
    """The number of lines on a path from an input to an output, found by walking every path."""
    lines = set()
    for o, n, i in itertools.product(range(len(out)), range(len(into)), range(into.shape[1])):
        if out[o][n] and into[n][i]:
            lines |= {("in", n, i), ("out", o, n)}
    return len(lines)


def parts(square: Tensor) -> int:
    """The number of groups of inputs and outputs that no line connects, including single units."""
    return connected_components(square.numpy())[0]


A = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
B = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)
INTO, OUT = torch.tensor([[1, 1], [0, 0]], dtype=torch.bool), torch.tensor([[1, 1], [0, 1]], dtype=torch.bool)
WIDE = torch.tensor([[1, 1, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=torch.bool)
LAST = torch.tensor([[1, 0, 0, 1], [1, 1, 0, 0]], dtype=torch.bool)
RING = (torch.arange(6)[None] - torch.arange(6)[:, None]) % 6 < 2
HUBS = torch.arange(6)[:, None].expand(6, 6) % 3 == 1

MASKS = {
    "keep_largest": Exercise(
        keep_largest,
        ((torch.tensor([0.2, 0.9, 0.5]), 1), (SIX, 3), (TIES, 2), (-TIES, 2), (TIES, 0), (TIES, 4)),
        {
            "You keep too many of equal scores: all that tie with the threshold pass it. Sort, then count.":
                lambda s, k: s >= (s.flatten().sort(descending=True).values[k - 1] if k else math.inf),
            "You keep too few of equal scores: none that ties with the threshold passes it. Sort, then count.":
                lambda s, k: s > (s.flatten().sort(descending=True).values[k] if k < s.numel() else -math.inf),
            "You rank by absolute value, but scores may be negative, and -1 is higher than -3.":
                lambda s, k: keep_largest(s.abs(), k),
            "You keep the lowest scores. Sort in descending order.": lambda s, k: keep_largest(-s, k),
            "Your mask marks what is removed. True has to mean kept.": lambda s, k: ~keep_largest(s, k),
        },
    ),
    "flips": Exercise(
        flips,
        ((ON, OFF), (OFF, ON), (ON, ON), (SIX > 0, SIX.abs() > 0.9)),
        {
            "Your two numbers are in the wrong order. First count what the mask removes, then what it brings back.":
                lambda m, b: flips(m, b)[::-1],
            "You count where the masks agree. A flip is where they differ.":
                lambda m, b: [int((m & b).sum()), int((~m & ~b).sum())],
        },
    ),
    "my_score": Exercise(
        lambda weight, norms: weight,
        ((SIX, torch.tensor([1.0, 2.0, 0.5])), (-SIX, torch.tensor([0.0, 1.0, 1.0]))),
        judge=judge_score,
    ),
    "straight_through": Exercise(
        straight_through,
        STEPS,
        {
            "You use dL/dm itself. Multiply it by the slope, t_s sigmoid(t_s theta) (1 - sigmoid(t_s theta)).":
                lambda th, g, a, y, t: th - a * g - y,
            "The slope lacks its factor t_s: the derivative of sigmoid(t theta) starts with a t.":
                lambda th, g, a, y, t: th - a * g * _slope(th, t) - y,
            "You add the gradient step. To go downhill, subtract it.":
                lambda th, g, a, y, t: th + a * g * t * _slope(th, t) - y,
            "The penalty is missing: Eq. 7 subtracts gamma from every theta.":
                lambda th, g, a, y, t: th - a * g * t * _slope(th, t),
            "You multiply gamma by the rate. Eq. 7 subtracts it as it is.":
                lambda th, g, a, y, t: th - a * (g * t * _slope(th, t) + y),
        },
    ),
    "cubic_schedule": Exercise(
        lambda step, begin, end, final: cubic_sparsity(step, begin, end, final),
        ((5, 0, 10, 0.8), (0, 0, 10, 0.8), (30, 10, 50, 0.9), (3, 10, 50, 0.9), (80, 10, 50, 0.9)),
        {
            "Before begin the sparsity is 0, and after end it is final: keep the share of steps done between 0 and 1.":
                _cubic(clamp=False),
            "Your sparsity rises in a straight line. The cubic schedule removes much at first and little at the end.":
                _cubic(clamp=True, power=1),
            "You cube the share of steps that are done, so it starts slowly. Cube the share that remain.":
                _cubic(clamp=True, rest=False),
        },
    ),
    "comebacks": Exercise(
        comebacks,
        ((KEPT,), (~KEPT,), (KEPT[:1],), (KEPT[:, :1],)),
        {
            "You count both directions. Only a False followed by a True is a return.":
                lambda kept: (kept[1:] != kept[:-1]).sum(0),
            "You count removals. A return is a False followed by a True.": lambda kept: (kept[:-1] & ~kept[1:]).sum(0),
            "You count the steps in which a weight is kept. Count how often it comes back.": lambda kept: kept.sum(0),
        },
    ),
    "best_mask": Exercise(
        lambda loss, d: torch.zeros(d),
        ((quadratic(1, 0, 1), 3), (quadratic(0, 0, 0, 0), 4), (quadratic(1, 1), 2), (trap, 4)),
        judge=judge_best,
    ),
    "bumps": Exercise(
        bumps,
        ((bowl, *PAIRS), (hill, *PAIRS), (waves, *PAIRS)),
        {
            "You count midpoints below the mean of the two ends. A bump lies above it.":
                lambda loss, one, other: int((loss((one + other) / 2) < (loss(one) + loss(other)) / 2 - 1e-9).sum()),
            "You compare with the sum of the two losses. Compare with their mean.":
                lambda loss, one, other: int((loss((one + other) / 2) > loss(one) + loss(other)).sum()),
        },
    ),
    "best_rate": Exercise(
        lambda T, G, C: 1.0,
        ((10_000, 2.7, 2.0), (100, 1.0, 0.0), (3000, 0.5, 20.0)),
        judge=judge_rate,
    ),
    "jaccard_and_chance": Exercise(
        jaccard_and_chance,
        ((A, B), (A, A), (A, ~A), (INTO, OUT)),
        {
            "You divide by all connections. Jaccard divides by those that at least one mask keeps.":
                lambda a, b: [float((a & b).float().mean()), jaccard_and_chance(a, b)[1]],
            "Your second number is p q, the chance that both keep a connection. Divide it by the chance that one does.":
                lambda a, b: [jaccard_and_chance(a, b)[0], float(a.float().mean() * b.float().mean())],
        },
    ),
    "working": Exercise(
        working,
        ((INTO, OUT), (WIDE, LAST), (~INTO, OUT), (WIDE.new_zeros(2, 3), WIDE.new_ones(2, 2))),
        {
            "You count all kept lines. Some lead to a neuron without a line out, or come from one without a line in.":
                lambda into, out: int(into.sum() + out.sum()),
            "You count paths. A line on two paths is still one line.":
                lambda into, out: int((into.sum(1) * out.sum(0)).sum()),
        },
    ),
    "parts": Exercise(
        parts,
        ((torch.eye(4, dtype=torch.bool),), (A,), (A.new_zeros(2, 3),), (RING,), (HUBS,)),
        {
            "You leave out units without lines. Each is a part of its own.":
                lambda m: parts(m) - int((~m.any(0)).sum() + (~m.any(1)).sum()),
        },
    ),
}  # fmt: skip
