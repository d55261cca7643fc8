"""How the kept connections are divided among the matrices if each matrix is cut separately."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from adaprune.masks.counting import component_of

ALLOCATIONS = ("equal", "scores")


def shares(thetas: Mapping[str, Tensor], density: float, kind: str) -> list[float]:
    """The density of each matrix such that all matrices together have ``density``.

    - ``equal``: the same for each (SMP-L, movement, edge-popup).
    - ``scores``: within a component (all query matrices, all key matrices ...) proportional to the mean score,

          v_l = L v s_l / sum s,   s_l = mean sigmoid(theta_l)        (SMP-S: Jiang et al. 2022)

      for matrices of equal size. Any excess over 1 goes to the component's other matrices, in the same proportion;
      so does what a matrix cannot keep because it was pruned for good (theta = -inf).

    Raises:
        ValueError: an unknown kind.
    """
    if kind == "equal":
        return [density] * len(thetas)
    if kind not in ALLOCATIONS:
        raise ValueError(f"allocation must be one of {', '.join(ALLOCATIONS)}, got {kind!r}")
    components: dict[str, list[str]] = {}
    for name in thetas:
        components.setdefault(component_of(name), []).append(name)
    found: dict[str, float] = {}
    for names in components.values():
        strengths = [float(thetas[name].detach().sigmoid().mean()) for name in names]
        sizes = [thetas[name].numel() for name in names]
        most = [_alive(thetas[name]) / thetas[name].numel() for name in names]
        found.update(zip(names, proportional(strengths, sizes, density, most), strict=True))
    return [found[name] for name in thetas]


def _alive(theta: Tensor) -> int:
    return int((theta.detach() > -math.inf).sum())


def proportional(
    strengths: Sequence[float], sizes: Sequence[int], density: float, most: Sequence[float]
) -> list[float]:
    """v_l = min(most_l, c s_l) with the c for which sum_l n_l v_l = density sum_l n_l.

    >>> proportional([6.0, 1.0, 1.0], [10, 10, 10], 0.5, most=[1.0, 1.0, 1.0])
    [1.0, 0.25, 0.25]
    """
    free, room = set(range(len(sizes))), density * sum(sizes)
    found = [*most]
    while free:
        scale = room / max(sum(sizes[i] * strengths[i] for i in free), 1e-300)
        full = {i for i in free if scale * strengths[i] > most[i]}
        if not full:
            return [scale * strengths[i] if i in free else most[i] for i in range(len(sizes))]
        room -= sum(sizes[i] * most[i] for i in full)
        free -= full
    return found


def counts(thetas: Mapping[str, Tensor], density: float, kind: str) -> dict[str, int]:
    """How many connections each matrix keeps: its share as a whole number, exactly round(density n) in total.

    Rounding up goes to the largest remainders.
    """
    sizes, alive = [theta.numel() for theta in thetas.values()], [_alive(theta) for theta in thetas.values()]
    rest = round(density * sum(sizes))
    most = alive if sum(alive) >= rest else sizes
    above = [share * size for share, size in zip(shares(thetas, density, kind), sizes, strict=True)]
    wanted = [part * rest / max(sum(above), 1e-300) for part in above]
    whole = [min(int(part), size) for part, size in zip(wanted, most, strict=True)]
    order = sorted(range(len(sizes)), key=lambda i: whole[i] - wanted[i])
    while rest > sum(whole):
        for i in [i for i in order if whole[i] < most[i]][: rest - sum(whole)]:
            whole[i] += 1
    return dict(zip(thetas, whole, strict=True))
