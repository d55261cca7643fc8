"""Dot plots: the scores of many ways, and the differences that ablations make; see `figures`."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from adaprune.methods import METHODS
from adaprune.report.figures import INK, STYLES, dress, style_of
from adaprune.report.names import written


def draw_dots(ax: Axes, points: pd.DataFrame, order: Sequence[str], levels: Mapping[str, float]) -> Axes:
    """The score of many ways, one per line, with 95 % intervals over seeds; higher sparsities are pale.

    Ways that need no mask (probe, majority class, fine-tuning) are vertical lines with their names. Hollow markers: the
    weights were trained.

    Args:
        ax: the panel.
        points: from `comparison.curves`, for one task and setting.
        order: the ways, from the top.
        levels: method -> mean score, for the vertical lines.
    """
    heights, least = {way: len(order) - 1 - place for place, way in enumerate(order)}, points["sparsity"].min()
    for row in points[points["way"].isin(order)].itertuples():
        colour, marker = style_of(row.method)
        known = METHODS.get(row.method)
        fill = colour if known is None or known.weights_intact else "white"
        spread = np.nan_to_num([[row.mean - row.low], [row.high - row.mean]])
        first = row.sparsity == least
        look = {"color": colour, "marker": marker, "mfc": fill, "ms": 6 if first else 5, "alpha": 1 if first else 0.4}
        ax.errorbar([row.mean], [heights[row.way]], xerr=spread, ls="", capsize=2, elinewidth=1, **look)
    for score in levels.values():
        ax.axvline(score, color=INK, lw=0.9, ls="--", zorder=1)
    named, above = sorted(levels.items(), key=lambda level: level[1]), ax.get_xaxis_transform()
    low, high = ax.get_xlim()
    for (method, score), x in zip(named, apart([score for _, score in named], 0.08 * (high - low)), strict=True):
        ax.plot([score, x], [1, 1.03], color=INK, lw=0.6, transform=above, clip_on=False)
        place = {"rotation": 40, "rotation_mode": "anchor", "transform": above}
        ax.text(x, 1.035, written(method), **place, color=INK, fontsize=8)
    ax.set_xlim(low, high)
    ax.set_yticks([*heights.values()], [written(way) for way in heights])
    ax.set_ylim(-0.6, len(order) - 0.4)
    return dress(ax, grid="both")


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places, moved as little as needed for a gap between neighbours: where they crowd, around their mean.

    >>> apart([0.0, 5.0, 5.0, 9.0], 2.0)
    [0.0, 4.0, 6.0, 9.0]
    """
    crowds: list[list[float]] = []

    def start(crowd: list[float]) -> float:
        return sum(crowd) / len(crowd) - gap * (len(crowd) - 1) / 2

    for place in places:
        crowds.append([place])
        while len(crowds) > 1 and start(crowds[-1]) < start(crowds[-2]) + gap * len(crowds[-2]):
            last = crowds.pop()
            crowds[-1] += last
    return [start(crowd) + gap * number for crowd in crowds for number in range(len(crowd))]


def draw_differences(ax: Axes, rows: pd.DataFrame) -> Axes:
    """Difference in score, one line per ablation and sparsity, one marker per task: mean and number of pairs.

    Bars go from the smallest difference to the largest; a single pair has no bar and a hollow marker. A line names its
    sparsity only if it is not the most common one.

    ``rows``: ``ablation`` (drawn in order of appearance, the first at the top), ``sparsity``, ``task``, ``difference``.
    """
    usual, tasks = rows["sparsity"].mode()[0], sorted(set(rows["task"]))
    names = list(dict.fromkeys(rows["ablation"]))
    lines = set(zip(rows["ablation"], rows["sparsity"], strict=True))
    lines = sorted(lines, key=lambda line: (names.index(line[0]), line[1] != usual, line[1]))
    for number, task in enumerate(tasks):
        some = rows[rows["task"] == task].groupby(["ablation", "sparsity"])["difference"]
        some = some.agg(["mean", "min", "max", "size"])
        heights = np.array([lines.index(key) + (number - (len(tasks) - 1) / 2) * 0.25 for key in some.index])
        spread, single = [some["mean"] - some["min"], some["max"] - some["mean"]], (some["size"] == 1).to_numpy()
        colour, marker = list(STYLES.values())[number]
        ax.errorbar(some["mean"], heights, xerr=spread, color=colour, marker=marker, ms=6, ls="", capsize=2,
                    label=written(task))  # fmt: skip
        over = {"mfc": "white", "zorder": 3}  # over the filled one
        ax.plot(some["mean"][single], heights[single], marker, color=colour, ms=6, **over)
        for most, height, pairs in zip(some["max"], heights, some["size"], strict=True):
            place = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
            ax.annotate(str(pairs), (most, height), **place, color=INK, fontsize=7)
    ax.axvline(0, color=INK, lw=1, ls="--")
    ax.set_yticks(range(len(lines)), [name if at == usual else f"{name}, {at:g}" for name, at in lines])
    where = f"dev split, sparsity {usual:g} where none is named, number of pairs"
    ax.set(xlabel=f"difference in the main metric\n({where})", ylim=(len(lines) - 0.5, -0.5))
    return dress(ax, grid="both")
