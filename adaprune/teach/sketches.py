"""The pictures of the lessons in notebooks/teach: small matrices, curves, paths, networks; see `figures`."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from scipy.special import expit

from adaprune.report import figures

INK, LINES, LINE_STYLES = figures.INK, figures.LINES, figures.LINE_STYLES
OURS, OTHER = figures.STYLES["adaprune"].colour, figures.STYLES["magnitude"].colour
LOOKS = ("adaprune", "magnitude", "gmp", "random")  # methods whose look is lent to four things that are not methods
COLOURS = [figures.STYLES[name].colour for name in LOOKS]
PALE = "#CFE3F1"  # background of what is kept
MANY = 40  # with more units in a row than this, they are drawn small


def draw_cells(ax: Axes, values: np.ndarray, mask: np.ndarray) -> Axes:
    """A small matrix with its numbers: kept cells filled, removed ones empty and grey."""
    ax.pcolormesh(np.asarray(mask, dtype=float), cmap=ListedColormap(["white", PALE]), vmin=0, vmax=1, ec=INK, lw=0.8)
    for (row, column), value in np.ndenumerate(np.asarray(values)):
        colour = "black" if mask[row][column] else "#909090"
        ax.text(column + 0.5, row + 0.5, f"{value:g}", ha="center", va="center", color=colour, fontsize=13)
    rows, columns = np.shape(values)
    ax.set_xticks(np.arange(columns) + 0.5, [f"input {c}" for c in range(columns)])
    ax.set_yticks(np.arange(rows) + 0.5, [f"output {r}" for r in range(rows)])
    ax.set(aspect="equal", ylim=(rows, 0))
    ax.tick_params(colors=INK, length=0)
    ax.spines[:].set_visible(False)
    return ax


def draw_dots(ax: Axes, rows: pd.DataFrame, xlabel: str, most: float, chance: float) -> Axes:
    """One dot per run, one row per way, and a dashed line at chance.

    ``rows``: ``way`` (the first at the top), ``method`` (for its look), ``value`` in 0 ... ``most``.
    """
    ways = list(dict.fromkeys(rows["way"]))
    for method, height, value in zip(rows["method"], rows["way"].map(ways.index), rows["value"], strict=True):
        colour, marker = figures.style_of(method)
        ax.plot([value], [height], marker, color=colour, ms=10, clip_on=False, **figures.rim_of(marker))
    ax.axvline(chance, color=INK, lw=1, ls="--")
    ax.set_yticks(range(len(ways)), ways)
    ax.set(xlabel=xlabel, xlim=(-0.02 * most, 1.02 * most), ylim=(len(ways) - 0.5, -0.5))
    return figures.dress(ax, grid="both")


def draw_sigmoids(ax: Axes, temperatures: Sequence[float], slope: bool = False) -> Axes:
    """sigmoid(t theta) against theta, darker as t grows; or its slope, on a log axis and without a legend."""
    theta = np.linspace(-1, 1, 801)
    for number, t in enumerate(temperatures):
        soft = expit(t * theta)
        shade = str(round(0.75 * (1 - (number + 1) / len(temperatures)), 2))
        ax.plot(theta, t * soft * expit(-t * theta) if slope else soft, color=shade, lw=1.8, label=f"t = {t:g}")
    ax.axvline(0, color=LINES, lw=0.8)
    ax.set(xlabel="theta", ylabel="slope of the mask" if slope else "mask")
    if slope:
        ax.set(yscale="log", ylim=(1e-4, 100))
    else:
        ax.legend(frameon=False, loc="upper left")
    return figures.dress(ax)


def draw_start(ax: Axes, t: float, theta: float, slope: bool = False) -> Axes:
    """sigmoid(t theta) around 0, or its slope on a log axis, with a dot for a weight at ``theta``."""
    along, name, lowest = np.linspace(-0.03, 0.03, 601), "slope" if slope else "mask", 1e-9
    curve, here = (t * expit(t * x) * expit(-t * x) if slope else expit(t * x) for x in (along, theta))
    ax.plot(along, curve, color=INK, lw=1.8)
    ax.plot([theta], [max(here, lowest)], "o", color=OURS, ms=9, clip_on=False)
    ax.set(xlabel="theta", ylabel=name, xticks=[-0.02, 0, 0.02], title=f"{name} at {theta:g}: {here:.2g}")
    ax.set(**({"yscale": "log", "ylim": (lowest, 1e5)} if slope else {"ylim": (-0.05, 1.05)}))
    return figures.dress(ax)


def draw_path(ax: Axes, thetas: Mapping[str, Sequence[float]], level: Sequence[float]) -> Axes:
    """Theta of some weights against steps, and the threshold; triangles mark removals and returns."""
    steps, level = np.arange(len(level)), np.asarray(level)
    for (name, path), colour in zip(thetas.items(), COLOURS, strict=False):
        kept = np.asarray(path) > level
        ax.plot(steps, path, color=colour, lw=1.8, label=name)
        for marker, turned, fill in (("v", kept[:-1] & ~kept[1:], "white"), ("^", ~kept[:-1] & kept[1:], colour)):
            at = np.flatnonzero(turned) + 1
            ax.plot(at, np.asarray(path)[at], marker, color=colour, mfc=fill, ms=8)
    ax.plot(steps, level, color=INK, lw=1.2, ls="--", label="threshold")
    ax.set(xlabel="step", ylabel="theta")
    ax.legend(frameon=False, loc="best")
    return figures.dress(ax)


def draw_reach(ax: Axes, rows: pd.DataFrame, needed: float) -> Axes:
    """How far each kind of step moves theta, one row per kind, one marker per task, and how far it must move; log axis.

    ``rows``: ``step`` (in order of appearance, the first at the top), ``task``, ``distance``.
    """
    kinds, tasks = list(dict.fromkeys(rows["step"])), list(dict.fromkeys(rows["task"]))
    for task, (colour, marker) in zip(tasks, (figures.STYLES[name] for name in LOOKS), strict=False):
        some = rows[rows["task"] == task]
        ax.plot(some["distance"], some["step"].map(kinds.index), marker, color=colour, ms=8, label=task)
    ax.axvline(needed, color=INK, lw=1.2, ls="--", label=f"needed: {needed:g}")
    ax.set_yticks(range(len(kinds)), kinds)
    ax.set(xscale="log", xlabel="how far all steps together can move theta", ylim=(len(kinds) - 0.5, -0.5))
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figures.dress(ax, grid="both")


def draw_gap(ax: Axes, steps: Sequence[int], gaps: np.ndarray, limit: np.ndarray) -> Axes:
    """Gap to the optimum against steps: mean of the runs (looks, runs), a band with 90 % of them, a bound; log axes."""
    low, high = np.quantile(gaps, [0.05, 0.95], axis=1)
    ax.fill_between(steps, low, high, color=OURS, alpha=0.2, lw=0, label="90 % of the runs")
    ax.plot(steps, gaps.mean(axis=1), color=OURS, marker="o", ms=5, label="measured, mean of the runs")
    ax.plot(steps, limit, color=INK, ls="--", label="bound of Theorem 1")
    ax.set(xscale="log", yscale="log", xlabel="T, steps", ylabel="loss above the optimum")
    ax.legend(frameon=False, loc="best")
    return figures.dress(ax, grid="both")


def draw_constants(ax: Axes, t_l: np.ndarray, curves: Mapping[float, np.ndarray], vacuous: float) -> Axes:
    """C of Theorem 1 against t_l, one line per t_s; above the dashed line the bound is vacuous. Log axes."""
    for number, (t_s, values) in enumerate(curves.items()):
        shade = str(round(0.65 * (1 - number / max(1, len(curves) - 1)), 2))
        ax.plot(
            t_l,
            values,
            color=shade,
            ls=LINE_STYLES[number % len(LINE_STYLES)],
            lw=1.6,
            label=f"t_s = {t_s:g}",
        )
    ax.axhline(vacuous, color=OTHER, lw=1.2, ls="--")
    ax.text(t_l[0], vacuous * 1.5, "vacuous", color=OTHER, va="bottom")
    ax.set(xscale="log", yscale="log", xlabel="t_l", ylabel="C")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figures.dress(ax, grid="both")


def draw_ranking(ax: Axes, losses: np.ndarray, found: np.ndarray) -> Axes:
    """The loss of every mask, the best first, and a dot where runs ended, larger for more runs."""
    ax.plot(np.arange(1, len(losses) + 1), losses, color=INK, lw=1.4, label=f"all {len(losses):,} masks")
    ends, counts = np.unique(np.round(found, 9), return_counts=True)
    places = np.searchsorted(losses, ends - 1e-6) + 1
    sizes = 30 + 250 * counts / counts.sum()
    ax.scatter(places, ends, sizes, color=OURS, edgecolors="white", zorder=3, label=f"where {len(found)} runs ended")
    ax.set(xscale="log", xlabel="rank of the mask", ylabel="loss")
    ax.legend(frameon=False, loc="upper left", markerscale=0.6)
    return figures.dress(ax)


def draw_room(ax: Axes, rows: pd.DataFrame, ways: Mapping[str, str]) -> Axes:
    """One line per task from the floor to fine-tuning, with a marker for each way.

    ``rows``: indexed by task, with ``floor``, ``tuned`` and a column per way; ``ways``: column -> method whose look it
    gets.
    """
    heights = np.arange(len(rows))
    ax.hlines(heights, rows["floor"], rows["tuned"], color=PALE, lw=9, zorder=0)
    for name, method in {"floor": "probe", "tuned": "finetune", **ways}.items():
        colour, marker = figures.STYLES[method]
        label = {"floor": "floor: nothing adapted", "tuned": "fine-tuned"}.get(name, name)
        size, above = (13, 4) if name == "floor" else (8, 3)  # the floor's marker is thin, so it is drawn in front
        ax.plot(rows[name], heights, marker, color=colour, ms=size, mew=2, label=label, zorder=above)
    ax.set_yticks(heights, rows.index)
    ax.set(xlabel="score on the dev split", xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5))
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figures.dress(ax, grid="both")


def draw_wires(
    ax: Axes, layers: Sequence[np.ndarray], through: Sequence[np.ndarray] | None = None, names: Sequence[str] = ()
) -> Axes:
    """A masked network with its inputs at the bottom and a line per kept connection.

    Args:
        layers: masks (outputs, inputs), the first at the bottom.
        through: the same masks without connections that are on no path (`topology.effective`). If given, those
            connections are drawn dotted, and units on no path hollow.
        names: names of the rows of units, from the bottom.
    """
    sizes = [layers[0].shape[1], *(len(layer) for layer in layers)]
    alive, paths = [np.ones(size, bool) for size in sizes], layers if through is None else through
    if through is not None:
        alive = [paths[0].any(axis=0), *(path.any(axis=1) for path in paths)]
        for above in range(1, len(paths)):  # inner units need a kept output too
            alive[above] = alive[above] & paths[above].any(axis=0)
    width = 0.5 if max(sizes) > MANY else 1.6
    for height, (layer, path) in enumerate(zip(layers, paths, strict=True)):
        for some, colour, style, thick in (
            (layer & path, INK, "-", width),
            (layer & ~path, OTHER, ":", width + 0.4),
        ):
            ends = [[(_place(i, sizes[height]), height), (_place(o, sizes[height + 1]), height + 1)]
                    for o, i in np.argwhere(some)]  # fmt: skip
            ax.add_collection(LineCollection(ends, colors=colour, lw=thick, ls=style, zorder=1))
    for height, (size, live) in enumerate(zip(sizes, alive, strict=True)):
        places, fill = [_place(unit, size) for unit in range(size)], np.where(live, OURS, "white")
        area, rim = (4, 0.3) if size > MANY else (30, 0.8) if size > 12 else (90, 1)
        ax.scatter(places, [height] * size, area, fill, edgecolors=INK, lw=rim, zorder=2)
    ax.set_yticks(range(len(sizes)), names or [""] * len(sizes))
    ax.set(xticks=[], xlim=(-0.03, 1.03), ylim=(-0.15, len(layers) + 0.15))
    ax.tick_params(colors=INK, length=0)
    ax.spines[:].set_visible(False)
    return ax


def _place(unit: int, of: int) -> float:
    return (unit + 0.5) / of
