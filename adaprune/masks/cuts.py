"""Turns scores into masks by an exact cut: over all matrices together, in each, or of whole heads and FFN neurons."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from adaprune.masks.counting import component_of, layer_of

_MADE_BY = {
    "attention_output": ("query", "key", "value"),
    "ffn_out": ("ffn_in",),
}  # readers of units, their maker


def keep_top(scores: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
    """The masks that keep the highest-scoring share of all connections.

        m_i = 1  for the k largest s_i,   k = round(density * n),   n = number of scores in all tensors

    Args:
        scores: name -> real scores of any shape; +inf is kept before everything else.
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
    """The masks that keep the ``counts[name]`` highest scores of each tensor, ties by position.

    Raises:
        ValueError: a score that is not a real number, or a count that the tensor cannot keep.
    """
    _check(scores)
    for name, score in scores.items():
        if not 0 <= counts[name] <= score.numel():
            raise ValueError(f"{name}: cannot keep {counts[name]} of {score.numel()} connections")
    return {name: _top(s.detach().flatten().cpu(), counts[name]).view(s.shape) for name, s in scores.items()}


def sum_over_units(values: Mapping[str, Tensor], heads: int) -> dict[str, Tensor]:
    """The sum of the weights' values over each attention head and FFN neuron, by the matrix that reads the unit.

        head h:    sum over its rows of the query, key and value matrix, and its columns of the attention output
        neuron j:  sum over row j of the first FFN matrix and column j of the second

    Args:
        values: weight name -> tensor of its shape, for all linear layers of an encoder.
        heads: attention heads in a layer.

    Returns:
        The name of each attention output -> (heads,), and of each second FFN matrix -> (neurons,).

    Raises:
        ValueError: a matrix belongs to no such unit; it is named.
    """
    found = {}
    for reader, makers in _units_of(values).items():
        summed = values[reader].sum(0) + sum(values[maker].sum(1) for maker in makers)
        count = heads if component_of(reader) == "attention_output" else summed.numel()
        found[reader] = summed.view(count, -1).sum(1)
    return found


def keep_units(scores: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
    """The units with the highest scores: exactly round(density n) of the n heads, and the same of the FFN neurons."""
    kinds = {part: {name: s for name, s in scores.items() if component_of(name) == part} for part in _MADE_BY}
    kept = {part: keep_top(some, density) for part, some in kinds.items() if some}
    return {name: kept[component_of(name)][name] for name in scores}


def masks_of_units(kept: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks of single weights that remove all rows and columns of the units that are not ``kept``."""
    masks = {}
    for reader, makers in _units_of(weights).items():
        columns = kept[reader].cpu().repeat_interleave(weights[reader].shape[1] // kept[reader].numel())
        masks[reader] = columns.expand(weights[reader].shape).clone()
        masks |= {maker: columns[:, None].expand(weights[maker].shape).clone() for maker in makers}
    return {name: masks[name] for name in weights}


def _units_of(names: Iterable[str]) -> dict[str, list[str]]:
    """The matrices that read units -> the matrices whose outputs these units are."""
    places = {(layer_of(name), component_of(name)): name for name in names}
    parts = {layer: {part for at, part in places if at == layer} for layer, _ in places}
    for (layer, part), name in places.items():
        if parts[layer] != {*_MADE_BY, *(maker for makers in _MADE_BY.values() for maker in makers)}:
            raise ValueError(
                f"{name} ({part}) is in a layer that has no query, key, value and output, or no two FFN matrices: it "
                "has no heads and neurons to remove whole, use pattern='weights'"
            )
    return {
        name: [places[layer, maker] for maker in _MADE_BY[part]]
        for (layer, part), name in places.items()
        if part in _MADE_BY
    }


def _check(scores: Mapping[str, Tensor]) -> None:
    for name, score in scores.items():
        if score.dtype == torch.bool or score.is_complex():
            raise ValueError(f"{name}: scores must be real numbers, got {score.dtype}")
        if torch.isnan(score).any():
            raise ValueError(f"{name}: a score is not a number")


def _top(flat: Tensor, k: int) -> Tensor:
    """Boolean vector that is True for exactly the k largest entries of ``flat``, ties by position; linear time."""
    if k == 0:
        return torch.zeros(flat.numel(), dtype=torch.bool)
    kth = flat.kthvalue(flat.numel() - k + 1).values
    kept = flat > kth
    ties = (flat == kth).nonzero().squeeze(-1)
    kept[ties[: k - int(kept.sum())]] = True
    return kept
