"""How scores become a mask: the exact cut, over all matrices together or in each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def keep_top(scores: Mapping[str, Tensor], density: float, minimum_kept: int = 0) -> dict[str, Tensor]:
    """The masks that keep the highest-scoring share of all connections together.

        m_i = 1  for the k largest s_i,   k = round(density * n),   n = number of scores in all tensors

    Args:
        scores: name -> real scores of any shape; +inf is always kept first.
        density: fraction kept, in [0, 1].
        minimum_kept: every tensor keeps at least this many (or all it has), against layer collapse.

    Returns:
        name -> boolean mask of the same shape. Exactly k entries are True; equal scores are kept in order of
        position.

    Raises:
        ValueError: no scores, density outside [0, 1], a score that is not a real number, or minima below 0 or
            in all above k.

    >>> keep_top({"w": torch.tensor([0.1, 0.9, 0.5, 0.2])}, density=0.5)
    {'w': tensor([False,  True,  True, False])}
    """
    if not 0 <= density <= 1:
        raise ValueError(f"density must lie in [0, 1], got {density}")
    if not scores:
        raise ValueError("scores must hold at least one tensor, got none: there is nothing to keep")
    for name, score in scores.items():
        if score.dtype == torch.bool or score.is_complex():
            raise ValueError(f"{name}: scores must be real numbers, got {score.dtype}")
        if torch.isnan(score).any():
            raise ValueError(f"{name}: a score is not a number")
    sizes = [score.numel() for score in scores.values()]
    flat = torch.cat([score.detach().flatten().cpu() for score in scores.values()])
    k = round(density * flat.numel())
    minima = check_minimum(scores, density, minimum_kept)
    if minimum_kept:
        kept = torch.cat([_top(part, least) for part, least in zip(flat.split(sizes), minima, strict=True)])
        rest = (~kept).nonzero().squeeze(-1)  # the minima are in, whatever they score; the others compete
        kept[rest] = _top(flat[rest], k - sum(minima))
    else:
        kept = _top(flat, k)
    masks = zip(scores.items(), kept.split(sizes), strict=True)
    return {name: part.view(score.shape).clone() for (name, score), part in masks}


def keep_each(scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
    """The masks that keep in each tensor its own ``counts[name]`` highest scores, ties by position."""
    return {name: _top(s.detach().flatten().cpu(), counts[name]).view(s.shape) for name, s in scores.items()}


def check_minimum(scores: Mapping[str, Tensor], density: float, minimum_kept: int) -> list[int]:
    """How many each tensor must keep; ValueError where that is below 0, or more in all than ``density`` allows."""
    if minimum_kept < 0:
        raise ValueError(f"minimum_kept must not be negative, got {minimum_kept}")
    sizes = [score.numel() for score in scores.values()]
    minima = [min(minimum_kept, size) for size in sizes]
    if sum(minima) > round(density * sum(sizes)):
        raise ValueError(
            f"a minimum of {minimum_kept} kept in each of {len(sizes)} matrices needs {sum(minima)} connections, "
            f"a density of {density:g} keeps {round(density * sum(sizes))}: lower minimum_kept or the sparsity"
        )
    return minima


def _top(flat: Tensor, k: int) -> Tensor:
    """Boolean vector with exactly the k largest entries of ``flat`` True, ties by position; linear time."""
    if k == 0:
        return torch.zeros(flat.numel(), dtype=torch.bool)
    kth = flat.kthvalue(flat.numel() - k + 1).values
    kept = flat > kth
    ties = (flat == kth).nonzero().squeeze(-1)
    kept[ties[: k - int(kept.sum())]] = True
    return kept
