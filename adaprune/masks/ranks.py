"""Theta as it is stored next to a mask: its order in 2 bytes per weight, enough to cut it at any other sparsity."""

from collections.abc import Mapping

import torch
from torch import Tensor

LEVELS = 2**15  # levels for the kept weights, and as many for the removed ones


def ranks(thetas: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The order of theta over all matrices together, as int16 in each matrix's shape.

        rank_i = floor(2^15 r_i / n),   r_i = how many of the n kept theta lie below;   removed ones likewise, - 2^15

    Kept weights have a rank of 0 or more and removed ones less, so the run's own mask is restored bit for bit. About
    n / 2^15 neighbours share a level (162 of MiniLM's 10.6 million at a sparsity of 0.5), and a cut takes the first of
    them by position. So a cut is exact in number and misplaces at most those. Equal theta rank as in `keep_top`.
    """
    flat = torch.cat([theta.flatten() for theta in thetas.values()])
    kept = torch.cat([masks[name].flatten() for name in thetas])
    found = torch.empty(flat.numel(), dtype=torch.int16)
    for part, lowest in ((kept, 0), (~kept, -LEVELS)):
        count = int(part.sum())
        below = torch.empty(count, dtype=torch.int64)
        below[flat[part].argsort(descending=True, stable=True)] = torch.arange(count).flip(0)
        found[part] = (lowest + below * LEVELS // max(1, count)).short()
    parts = found.split([theta.numel() for theta in thetas.values()])
    return {name: part.view(thetas[name].shape) for name, part in zip(thetas, parts, strict=True)}
