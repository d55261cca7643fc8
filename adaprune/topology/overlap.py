"""How much masks of one base agree: Jaccard against chance, Fleiss' kappa, Cochran's Q, connections that come back.

Masks are as in `adaprune.topology`: dicts of boolean tensors, or mask files, which must then have the same base. In
the terms of these statistics, weights are the subjects, masks the raters, "kept" and "removed" the categories.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import chi2
from torch import Tensor

from adaprune.data import expanded
from adaprune.masks import COMPONENTS, component_of
from adaprune.topology.structure import arrays
from adaprune.training import read_tensors


class Overlap(NamedTuple):
    """Agreement of two masks; ``chance`` is for equally sparse random masks, ``chance_by_matrix`` for shuffled ones."""

    jaccard: float
    chance: float
    chance_by_matrix: float
    both: int
    either: int


def alike(masks: Sequence[Mapping[str, Tensor]], extreme: bool = False) -> list[dict[str, np.ndarray]]:
    """The masks' arrays by name, after checking that they can be compared.

    Raises:
        ValueError: fewer than two masks, or different weights in scope, shapes or bases; names the weight.
    """
    found = [arrays(mask, extreme) for mask in masks]
    if len(found) < 2:
        raise ValueError(f"a comparison needs two masks or more, got {len(found)}")
    bases = [mask.card["base"] for mask in masks if hasattr(mask, "card")]
    for number, other in enumerate(found[1:], 1):
        if lone := sorted(found[0].keys() ^ other.keys()):
            raise ValueError(
                f"masks 0 and {number} have different scopes: {lone[0]} is in one alone ({len(lone)} such weights)"
            )
        for name, array in found[0].items():
            if array.shape != other[name].shape:
                raise ValueError(f"masks 0 and {number} have different bases: {name} has other shapes")
    for base in bases[1:]:
        if differing := [name for name in bases[0] if base.get(name) != bases[0][name]]:
            raise ValueError(f"the masks were made for different bases: {differing[0]} differs")
    return found


def jaccard(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Overlap:
    """Overlap of two masks, and the overlap expected by chance.

    J = |a and b| / |a or b|;   chance: |a and b| is expected to be |a| |b| / n, over all weights together
    or matrix by matrix, that is, given how many connections each mask keeps in each matrix
    """
    a, b = alike([one, other])
    both = sum(int((a[name] & b[name]).sum()) for name in a)
    sizes = np.array([(a[name].sum(), b[name].sum(), a[name].size) for name in a], dtype=float)
    in_a, in_b, total = sizes.sum(axis=0)
    kept = in_a + in_b

    def ratio(shared: float) -> float:
        return float(shared / (kept - shared))

    by_matrix = (sizes[:, 0] * sizes[:, 1] / sizes[:, 2]).sum()
    return Overlap(ratio(both), ratio(in_a * in_b / total), ratio(by_matrix), both, int(kept - both))


def kept_by(masks: Sequence[Mapping[str, Tensor]]) -> dict[str, np.ndarray]:
    """The number of masks that keep each weight, by name: (outputs, inputs) whole numbers."""
    found = alike(masks)
    return {name: np.sum([mask[name] for mask in found], axis=0, dtype=np.int32) for name in found[0]}


def fleiss_kappa(masks: Sequence[Mapping[str, Tensor]]) -> float:
    """Agreement of masks beyond chance: 1 for equal masks, 0 for random ones, negative below chance (Fleiss 1971).

    kappa = (P - P_e) / (1 - P_e),   P = mean_i [c_i (c_i - 1) + (r - c_i)(r - c_i - 1)] / (r (r - 1)),
    P_e = p^2 + (1 - p)^2,   c_i: how many of the r masks keep weight i,   p: mean density
    """
    raters, histogram = len(masks), _histogram(masks)
    c, share = np.arange(raters + 1), histogram / histogram.sum()
    agreed = (share * (c * (c - 1) + (raters - c) * (raters - c - 1))).sum() / (raters * (raters - 1))
    p = (share * c).sum() / raters
    by_chance = p**2 + (1 - p) ** 2
    return float((agreed - by_chance) / (1 - by_chance))


def cochran_q(masks: Sequence[Mapping[str, Tensor]]) -> tuple[float, float]:
    """Cochran's Q and its p-value: do some masks keep more of the same weights than others? (Cochran 1950).

        Q = (k - 1) (k sum_j G_j^2 - N^2) / (k N - sum_i c_i^2),   N = sum_j G_j,   chi^2 with k - 1 degrees of freedom

    G_j is the number of weights that mask j keeps. Masks of equal sparsity have Q = 0 over all weights, so use it on
    parts of them (`by_component`). Q is 0 and p is 1 if the masks agree on every weight.
    """
    k, histogram = len(masks), _histogram(masks)
    c = np.arange(k + 1)
    kept = np.array([sum(float(array.sum()) for array in mask.values()) for mask in alike(masks)])
    spread = float((histogram * c * (k - c)).sum())
    if not spread:
        return 0.0, 1.0
    q = (k - 1) * (k * float((kept**2).sum()) - float(kept.sum()) ** 2) / spread
    return q, float(chi2.sf(q, k - 1))


def by_component(masks: Sequence[Mapping[str, Tensor]]) -> pd.DataFrame:
    """Fleiss' kappa, Cochran's Q and its p-value over all weights (``all``) and within each component.

    NaN for a component of which a mask keeps all or nothing.
    """
    found = alike(masks)
    plain = [getattr(mask, "masks", mask) for mask in masks]
    rows = {"all": (fleiss_kappa(masks), *cochran_q(masks))}
    for component in COMPONENTS:
        names = [name for name in found[0] if component_of(name) == component]
        densities = [np.mean([array[name].mean() for name in names]) for array in found if names]
        if names:
            parts = [{name: mask[name] for name in names} for mask in plain]
            tested = all(0 < density < 1 for density in densities)
            rows[component] = (fleiss_kappa(parts), *cochran_q(parts)) if tested else (math.nan,) * 3
    return pd.DataFrame.from_dict(rows, orient="index", columns=["kappa", "q", "p"])


def recovery(history: Mapping[int, Mapping[str, Tensor]]) -> pd.DataFrame:
    """Removed and recovered connections between masks of one run, with a row for each step after the first.

    Columns: ``step``, ``kept``; ``removed`` and ``returned`` since the previous step; ``recovered``, kept now but
    removed at some earlier step; ``share``, recovered / kept. Changes that are undone between two snapshots are not
    seen.

    Args:
        history: step -> mask.
    """
    steps = sorted(history)
    masks = alike([history[step] for step in steps], extreme=True)  # the first snapshots may have everything
    gone = {name: ~array for name, array in masks[0].items()}  # removed at some step so far
    rows = []
    for step, before, now in zip(steps[1:], masks, masks[1:], strict=False):
        sums = np.array([
            (now[n].sum(), (before[n] & ~now[n]).sum(), (now[n] & ~before[n]).sum(), (now[n] & gone[n]).sum())
            for n in now
        ]).sum(axis=0)  # fmt: skip
        gone = {name: gone[name] | ~now[name] for name in now}
        rows.append((step, *map(int, sums), float(sums[3] / sums[0])))
    return pd.DataFrame(rows, columns=["step", "kept", "removed", "returned", "recovered", "share"])


def history(folder: str | Path) -> dict[int, dict[str, Tensor]]:
    """The snapshots of a run in ``<results_dir>/masks/<run name>``, by step.

    Raises:
        ValueError: there are no snapshots, or one is damaged; names the file.
    """
    found = {}
    for file in (file for file in expanded(folder).glob("*.safetensors") if file.stem.isdecimal()):
        found[int(file.stem)], _ = read_tensors(file, "delete it and the run's record, then adapt again")
    if not found:
        raise ValueError(f"{folder} holds no snapshots: adapt the run again with keep='snapshots'")
    return dict(sorted(found.items()))


def _histogram(masks: Sequence[Mapping[str, Tensor]]) -> np.ndarray:
    """How many weights are kept by 0, 1, ... all masks."""
    counts = kept_by(masks)
    return sum(np.bincount(array.ravel(), minlength=len(masks) + 1) for array in counts.values())
