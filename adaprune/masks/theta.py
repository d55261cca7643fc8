"""Where theta starts, and which of its entries are protected."""

from collections.abc import Mapping

import torch
from torch import Tensor

MEAN = 0.01  # mean of theta at the start, from the paper; learning rates of theta are relative to it
SPREAD = 0.001  # of a normal start. With the printed variance of 0.001, 38 % would start below 0
INITIAL = ("constant", "normal", "uniform", "magnitude", "relative")
SCORED = ("activation", "gradient")  # starts that need sentences: `theta_in_order` of scores from `oneshot`


def initial_theta(weights: Mapping[str, Tensor], kind: str, generator: torch.Generator) -> dict[str, Tensor]:
    """theta_0 for each weight, positive with mean 0.01 (paper, hyper-parameters).

    - ``constant``: 0.01 everywhere.
    - ``normal``: N(0.01, 0.001^2), the reading of the paper under which all theta start positive.
    - ``uniform``: U(0, 0.02).
    - ``magnitude``: 0.01 |w| / mean |w| over all weights, so that the first cut is magnitude pruning.
    - ``relative``: 0.01 |w| / mean |w| of its own matrix, so that the first cut takes about the same share of each
      matrix, and learning then changes the shares.

    Args:
        weights: name -> weight tensor.
        kind: one of ``INITIAL``.
        generator: randomness of ``normal`` and ``uniform``, on the CPU.

    Raises:
        ValueError: an unknown kind, or ``magnitude`` or ``relative`` with weights (of a matrix) that are all zero.
    """
    if kind == "relative":
        return {name: initial_theta({name: weight}, "magnitude", generator)[name] for name, weight in weights.items()}
    if kind == "magnitude":
        total = sum(float(weight.detach().abs().sum(dtype=torch.float64)) for weight in weights.values())
        if not total:
            raise ValueError(
                f"a start from magnitudes needs weights that are not all 0 in {', '.join(weights)}; "
                "use initial_theta='constant' or 'normal'"
            )
        mean = total / sum(weight.numel() for weight in weights.values())
        return {name: weight.detach().abs() * (MEAN / mean) for name, weight in weights.items()}
    if kind == "constant":
        return {name: torch.full_like(weight, MEAN) for name, weight in weights.items()}
    if kind not in INITIAL:
        raise ValueError(f"initial_theta must be one of {', '.join(INITIAL)}, got {kind!r}")
    thetas = {}
    for name, weight in weights.items():
        theta = torch.empty(weight.shape)
        if kind == "normal":
            theta.normal_(MEAN, SPREAD, generator=generator)
        else:
            theta.uniform_(0, 2 * MEAN, generator=generator)
        thetas[name] = theta.to(weight.device)
    return thetas


def theta_in_order(scores: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """theta_0 with the given ``values``, assigned in the order of ``scores`` over all matrices together.

        theta_i = the r-th largest of the values,   r = the rank of s_i,   equal scores by position

    So the first cut is that of the scores, while mean, spread and gaps are those of the values. With the values of the
    ``magnitude`` start, a learning rate keeps its meaning. (Scores divided by their mean would not work: most values of
    |w dL/dw| are near 0 and a few are huge.)
    """
    flat = torch.cat([value.flatten() for value in values.values()])
    order = torch.cat([scores[name].detach().flatten().to(flat.device) for name in values])
    dealt = torch.empty_like(flat)
    dealt[order.argsort(descending=True, stable=True)] = flat.sort(descending=True).values
    parts = dealt.split([value.numel() for value in values.values()])
    return {name: part.view(values[name].shape).clone() for name, part in zip(values, parts, strict=True)}


def protect(
    scores: Mapping[str, Tensor], seen: Mapping[str, Tensor], density: float, each: bool = False
) -> dict[str, Tensor]:
    """``scores`` with +inf for embedding rows that never occur in training, so that they are kept.

    Such rows get no gradient, so there is no evidence for removing them. If the kept share has no room for all of them,
    they compete like the rest, and ``scores`` is returned unchanged.

    Args:
        scores: name -> real scores.
        seen: name of an embedding table -> boolean with one entry per row: does it occur in training?
        density: fraction of all scores that will be kept.
        each: the fraction is kept in each tensor, so the rows must fit into their own table's share.
    """
    total = sum(scores[name].numel() for name in (seen if each else scores))
    unseen = sum(int((~rows).sum()) * scores[name].shape[1] for name, rows in seen.items())
    if unseen >= round(density * total):
        return dict(scores)
    tables = {name: scores[name].detach().cpu().masked_fill(~rows[:, None], torch.inf) for name, rows in seen.items()}
    return {**scores, **tables}
