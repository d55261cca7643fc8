"""Pictures that set many things side by side: methods as dots in order, masks as blocks of methods; see `figures`."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from adaprune.methods import METHODS
from adaprune.report.figures import INK, LINES, dress, style_of
from adaprune.report.names import written


def draw_dots(ax: Axes, points: pd.DataFrame, order: Sequence[str], levels: Mapping[str, float]) -> Axes:
    """The score of many ways, a line each; bars are 95 % intervals over seeds; the least sparsity full, others pale.

    What needs no mask (probe, commonest class, fine-tuning ...) is a vertical line with its name. Hollow: weights were
    trained.

    Args:
        ax: the panel.
        points: of `comparison.curves`, of one task and setting.
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
    for method, score in levels.items():
        ax.axvline(score, color=INK, lw=0.9, ls="--", zorder=1)
        place = {"xytext": (0, 2), "textcoords": "offset points", "rotation": 25, "rotation_mode": "anchor"}
        ax.annotate(written(method), (score, 1), xycoords=ax.get_xaxis_transform(), **place, color=INK, fontsize=8)
    ax.set_yticks([*heights.values()], [written(way) for way in heights])
    ax.set_ylim(-0.6, len(order) - 0.4)
    return dress(ax, grid="both")


def draw_blocks(ax: Axes, pairs: pd.DataFrame, methods: Sequence[str]) -> Axes:
    """How much the masks of two methods share: the mean Jaccard over all pairs of their masks, and below it the excess.

    The excess over masks as sparse in every matrix and otherwise random gives the shade. On the diagonal: pairs of one
    method, of other seeds or tasks.

    ``pairs``: of one sparsity; ``methods`` ("a, b" in the order of the alphabet), ``jaccard``, ``chance_by_matrix``.
    """
    means = pairs.groupby("methods")[["jaccard", "chance_by_matrix"]].mean()
    grid = np.full((len(methods), len(methods)), np.nan)
    for row, one in enumerate(methods):
        for column, other in enumerate(methods[: row + 1]):
            both = ", ".join(sorted([one, other]))
            if both in means.index:
                shared, chance = means.loc[both]
                grid[row, column] = shared - chance
                colour = "white" if shared - chance > 0.55 else "black"
                text = f"{shared:.2f}\n{shared - chance:+.2f}"
                ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    ax.imshow(grid, cmap="Greys", vmin=0, vmax=1)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(range(len(methods)), [written(method) for method in methods])
    ax.tick_params(colors=INK, length=0)
    ax.spines[:].set_color(LINES)
    return ax
