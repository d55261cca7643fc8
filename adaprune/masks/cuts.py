"""How scores become a mask: the exact cut, over all matrices together or in each."""

from collections.abc import Mapping

import torch
from torch import Tensor


def keep_top(scores: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
    """The masks that keep the highest-scoring share of all connections together.

        m_i = 1  for the k largest s_i,   k = round(density * n),   n = number of scores in all tensors

    Args:
        scores: name -> real scores of any shape; +inf is always kept first.
        density: fraction kept, in [0, 1].

    Returns:
        name -> boolean mask of the same shape. Exactly k entries are True; equal scores are kept in order of
        position.

    Raises:
        ValueError: no scores, density outside [0, 1], or a score that is not a real number.

    >>> keep_top({"w": torch.tensor([0.1, 0.9, 0.5, 0.2])}, density=0.5)
    {'w': tensor([False,  True,  True, False])}
    """
    if not 0 <= density <= 1:
        raise ValueError(f"density must lie in [0, 1], got {density}")
    if not scores:
        raise ValueError("scores must hold at least one tensor, got none: there is nothing to keep")
    _check(scores)
    flat = torch.cat([score.detach().flatten().cpu() for score in scores.values()])
    kept = _top(flat, round(density * flat.numel()))
    parts = kept.split([score.numel() for score in scores.values()])
    return {name: part.view(score.shape).clone() for (name, score), part in zip(scores.items(), parts, strict=True)}


def keep_each(scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
    """The masks that keep in each tensor its own ``counts[name]`` highest scores, ties by position.

    Raises:
        ValueError: a score that is not a real number, or a count that the tensor cannot keep.
    """
    _check(scores)
    for name, score in scores.items():
        if not 0 <= counts[name] <= score.numel():
            raise ValueError(f"{name}: cannot keep {counts[name]} of {score.numel()} connections")
    return {name: _top(s.detach().flatten().cpu(), counts[name]).view(s.shape) for name, s in scores.items()}


def _check(scores: Mapping[str, Tensor]) -> None:
    for name, score in scores.items():
        if score.dtype == torch.bool or score.is_complex():
            raise ValueError(f"{name}: scores must be real numbers, got {score.dtype}")
        if torch.isnan(score).any():
            raise ValueError(f"{name}: a score is not a number")


def _top(flat: Tensor, k: int) -> Tensor:
    """Boolean vector with exactly the k largest entries of ``flat`` True, ties by position; linear time."""
    if k == 0:
        return torch.zeros(flat.numel(), dtype=torch.bool)
    kth = flat.kthvalue(flat.numel() - k + 1).values
    kept = flat > kth
    ties = (flat == kth).nonzero().squeeze(-1)
    kept[ties[: k - int(kept.sum())]] = True
    return kept
