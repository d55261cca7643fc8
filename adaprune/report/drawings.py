"""Figures of masks (groups, degrees, blocks, heads, recovery), and of gain, size and speed; see `figures`."""

from collections.abc import Sequence
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from adaprune.report.dots import apart
from adaprune.report.figures import INK, LINE_STYLES, LINES, STYLES, dress, in_order, say, style_of
from adaprune.report.names import WRITTEN, written

GAIN = "share of fine-tuning's gain that is kept"
STRONGEST = 2  # edges into each block that a head graph shows
LEAST_GAIN = -0.25  # where the axis of the gain ends: what is worse would press the others together


def draw_groups(ax: Axes, rows: pd.DataFrame, group: str, value: str, order: list[Any]) -> Axes:
    """Means over runs with the standard deviation as a bar, side by side for each method that a group has (Fig. 3).

    Args:
        rows: a run's value for one group each: ``method`` and the columns named by ``group`` and ``value``.
        group, value: names of columns.
        order: the groups, left to right; others are left out.
    """
    methods = in_order(rows["method"])
    if not methods:
        return say(ax, "no run")
    present = {g: [method for method in methods if method in set(of["method"])] for g, of in rows.groupby(group)}
    for method in methods:
        some = rows[(rows["method"] == method) & rows[group].isin(order)].groupby(group)[value]
        mean, spread = some.mean(), some.std(ddof=1).fillna(0)
        aside = [present[g].index(method) - (len(present[g]) - 1) / 2 for g in mean.index]
        places = [order.index(g) + by * 0.7 / len(methods) for g, by in zip(mean.index, aside, strict=True)]
        colour, marker = style_of(method)
        look = {"color": colour, "marker": marker, "ms": 6, "ls": "", "capsize": 3, "label": method}
        ax.errorbar(places, mean, spread, **look)
    ax.set_xticks(range(len(order)), [str(g).replace("_", "\n") for g in order], fontsize=7)
    ax.set(xlabel=group, ylabel=value.replace("_", " "), xlim=(-0.6, len(order) - 0.4))
    return dress(ax)


def draw_degrees(ax: Axes, samples: dict[str, np.ndarray], most: int, density: float) -> Axes:
    """Share of units with a degree of at most x, one line per method, and the binomial of a random mask as a grey line.

    Args:
        samples: method -> degrees of units, (units,).
        most: the degree of a unit with nothing pruned.
        density: of the matrices that the degrees are from, for the random one.
    """
    for number, (method, found) in enumerate(samples.items()):
        x = np.sort(found)
        ax.step(x, np.arange(1, len(x) + 1) / len(x), where="post", lw=1.6, color=style_of(method).colour,
                ls=LINE_STYLES[number % len(LINE_STYLES)], label=method)  # fmt: skip
    if not samples:
        return say(ax, "no mask")
    random = np.sort(np.random.default_rng(0).binomial(most, density, 4000))
    ax.step(random, np.arange(1, 4001) / 4000, where="post", color=INK, lw=0.9, alpha=0.6, label="chance")
    ax.set(xlabel=f"degree, of {most} at most", ylabel="share of units with no more", ylim=(0, 1.02))
    return dress(ax, grid="both")


def draw_head_graph(ax: Axes, graph: nx.DiGraph, method: str, largest: float) -> Axes:
    """The graph of heads and FFN blocks, layers from bottom to top, always at the same places.

    Area of a node: its density, over the densest of all panels' (``largest``); hollow: nothing passes. Squares are FFN
    blocks. The two strongest edges into each block, the darker the more of the possible paths are left, over the
    strongest of this graph.
    """
    heads = max(head for _, head in graph.nodes(data="head")) + 1
    middle = (heads - 1) / 2  # an FFN block stands above its layer's heads, which it reads
    places = {n: (a["head"], a["layer"]) if a["kind"] == "head" else (middle, a["layer"] + 0.5)
              for n, a in graph.nodes(data=True)}  # fmt: skip
    strongest = max((weight for *_, weight in graph.edges(data="weight")), default=1)
    edges = []
    for node in graph:
        into = sorted(graph.in_edges(node, data="weight"), key=lambda edge: (-edge[2], edge[0]))
        edges += into[:STRONGEST]
    grey = [str(round(0.9 - 0.8 * weight / strongest, 3)) for *_, weight in edges]
    nx.draw_networkx_edges(graph, places, edges, ax=ax, edge_color=grey, arrows=False, width=1.2)
    for kind, shape in (("head", "o"), ("ffn", "s")):
        nodes = [n for n, found in graph.nodes(data="kind") if found == kind]
        sizes = [8 + 170 * graph.nodes[n]["density"] / largest for n in nodes]
        fill = [style_of(method).colour if graph.nodes[n]["alive"] else "white" for n in nodes]
        drawn = nx.draw_networkx_nodes(graph, places, nodes, sizes, fill, shape, ax=ax, edgecolors=INK, linewidths=0.8)
        drawn.set_zorder(3)
    layers = sorted({layer for _, layer in graph.nodes(data="layer")})
    ax.set_yticks([*layers, *(layer + 0.5 for layer in layers)], [*layers, *["FFN"] * len(layers)])
    ax.set_xticks(range(heads), range(heads))
    ax.tick_params(colors=INK, length=0, left=True, bottom=True, labelleft=True, labelbottom=True)
    ax.set(xlabel="attention head", ylabel="layer", xlim=(-0.7, heads - 0.3), ylim=(layers[0] - 0.3, layers[-1] + 0.8))
    ax.spines[:].set_visible(False)
    return ax


def draw_frontier(ax: Axes, points: pd.DataFrame) -> Axes:
    """The share of the gain kept against the bytes that ship per task (log), a point for each way; means over tasks.

    Bars: 95 % over dev rows. The line joins the ways that no other beats in both. These have their names, as have the
    masks of `adaprune` and methods with one point; others are in the legend. Hollow points have the paper's head.

    ``points``: of `gains.frontier`.
    """
    ours = (points["method"] == "adaprune") & ~points["way"].str.endswith(" head")
    told = points["first"] | (points.groupby("method")["way"].transform("size") == 1) | ours
    for method in in_order(points["method"]):
        some = points[points["method"] == method]
        colour, marker = style_of(method)
        for row in some.itertuples():
            spread = np.nan_to_num([[row.share - row.rows_low], [row.rows_high - row.share]])
            fill = "white" if "mlp head" in row.way else colour
            look = {"color": colour, "marker": marker, "mfc": fill, "ms": 7, "ls": "", "capsize": 2, "elinewidth": 0.8}
            named = row.Index == some.index[0] and not told[some.index].all()
            ax.errorbar([row.bytes], [row.share], spread, **look, label=method if named else None)
    first = points[points["first"]].sort_values("bytes")
    ax.step(first["bytes"], first["share"], where="post", color=INK, lw=0.8, ls="--", zorder=1)
    for row in points[told].itertuples():
        right = points[points["bytes"].between(row.bytes * 1.1, row.bytes * 4)]  # whose points a name would run into
        crowded = row.bytes > points["bytes"].min() and ((right["share"] - row.share).abs() < 0.4).any()
        left = row.bytes == points["bytes"].max() or crowded
        near = points.loc[points["bytes"].between(row.bytes * 1.1, row.bytes * 10), "share"] - row.share
        up = left or near.between(-0.4, 0).any()
        place = {"xytext": (-6 if left else 6, 3 if up else -10), "ha": "right" if left else "left"}
        place |= {"textcoords": "offset points", "fontsize": 7.5, "color": INK}
        ax.annotate(written(row.way.removesuffix(", mlp head")), (row.bytes, row.share), **place)
    ax.axhline(1, color=LINES, lw=0.8)
    ax.margins(y=0.1)
    ax.set(xscale="log", xlabel="bytes that ship per task", ylabel=f"{GAIN}\n(bars: 95 % over dev rows)")
    return dress(ax, grid="both")


def draw_gain(ax: Axes, shares: pd.DataFrame, tasks: dict[str, pd.DataFrame]) -> Axes:
    """The share of fine-tuning's gain kept against the share of weights kept (log): ours, its tasks, rivals pale.

    Bars: 95 % over dev rows. 1 is fine-tuning, 0 the floor, the better of probe and majority class. The thin lines are
    single tasks, of ours. A method with one way has no settings in its name. The axis ends at -0.25; ways that keep
    less than that everywhere are named at its foot, with their shares.

    Args:
        ax: the panel.
        shares: of `gains.shares` by way, method and sparsity, over all tasks.
        tasks: the same for each task alone, by its name; the rows of `adaprune` are drawn.
    """

    def line(points: pd.DataFrame, label: str, height: float, left: bool = False, **look: Any) -> None:
        """With its name at the right end, or at the left, at the ``height`` that is free for it."""
        points = points.sort_values("sparsity", ascending=left)
        ax.plot(1 - points["sparsity"], points["share"], **look)
        end, share = 1 - points["sparsity"].iloc[-1], points["share"].iloc[-1]
        place = {"ha": "right" if left else "left", "va": "center", "fontsize": 8, "color": look["color"]}
        place["arrowprops"] = {"arrowstyle": "-", "color": look["color"], "lw": 0.5, "shrinkA": 0, "shrinkB": 2}
        ax.annotate(label, (end, share), (end * (0.87 if left else 1.15), height), **place)

    ours = {task: points[points["method"] == "adaprune"].sort_values("sparsity") for task, points in tasks.items()}
    ends = sorted((points["share"].iloc[-1], task) for task, points in ours.items() if len(points))
    off = shares.groupby("way")["share"].transform("max") < LEAST_GAIN
    below, shares = shares[off], shares[~off]
    least = shares.sort_values("sparsity").groupby("way").head(1).sort_values("share")
    shown = [0, 1, *(share for share, _ in ends), *shares["share"]]
    gap = 0.04 * (max(shown) - min(shown))
    for (_, task), height in zip(ends, apart([share for share, _ in ends], gap), strict=True):
        line(ours[task], WRITTEN.get(task, task), height, left=True, color="#6FA8CC", lw=0.9)
    for (way, method), height in zip(least[["way", "method"]].values, apart(least["share"], gap), strict=True):
        points, (colour, marker) = shares[shares["way"] == way], style_of(method)
        label = written(way if (least["method"] == method).sum() > 1 else method)
        if method != "adaprune":
            line(points, label, height, color=colour, marker=marker, ms=4, lw=1, alpha=0.6)
            continue
        line(points, label, height, color=colour, marker=marker, ms=6, lw=2.2, zorder=3)
        spread = np.stack([points["share"] - points["rows_low"], points["rows_high"] - points["share"]])
        ax.errorbar(1 - points["sparsity"], points["share"], np.nan_to_num(spread), color=colour, ls="", capsize=3)
    kept = sorted(set(1 - shares["sparsity"]))
    for level, name in ((1, "fine-tuning"), (0, "probe or majority class")):
        ax.axhline(level, color=INK, lw=0.8, ls=":", zorder=1)
        ax.text(0.995, level, name, transform=ax.get_yaxis_transform(), ha="right", va="bottom", fontsize=8, color=INK)
    ax.set(
        xscale="log", xlabel="share of the maskable weights that is kept", ylabel=f"{GAIN}\n(bars: 95 % over dev rows)"
    )
    ax.set_xticks(kept, [f"{share:.0%}" for share in kept])
    ax.minorticks_off()
    for number, ((way, method), points) in enumerate(below.sort_values("sparsity").groupby(["way", "method"])):
        name = written(way if below[below["method"] == method]["way"].nunique() > 1 else method)
        told = " and ".join(f"{row.share:.2f}" for row in points[::-1].itertuples())
        place = {"ha": "right", "va": "top", "fontsize": 8, "color": style_of(method).colour}
        ax.text(0.995, -0.03 - 0.07 * number, f"below: {name}, {told}", transform=ax.get_yaxis_transform(), **place)
    ax.set_ylim(bottom=max(min(ax.get_ylim()[0], -0.07 - 0.07 * below["way"].nunique()), LEAST_GAIN))
    ax.set_xlim(kept[0] * 0.6, kept[-1] * 2.8)  # room for the names
    return dress(ax)


def draw_speed(ax: Axes, points: pd.DataFrame) -> Axes:
    """The share of the gain kept against speed relative to the dense model (log), one line per way of computing.

    Each point is a sparsity, written beside the fastest way of those with this share. Bars: 95 % over dev rows. Ways
    without masks, as quantised models, are vertical lines: how fast, not how good.

    ``points``: of `gains.speeds`.
    """
    looks, lines = list(STYLES.values()), len(LINE_STYLES)
    masked = points[points["share"].notna()]
    for number, (way, some) in enumerate(masked.groupby("way")):
        spread = np.nan_to_num([some["share"] - some["rows_low"], some["rows_high"] - some["share"]])
        look = {"color": looks[number].colour, "marker": "os^Dvp"[number % 6], "ls": LINE_STYLES[number % lines]}
        ax.errorbar(some["faster"], some["share"], spread, **look, ms=6, capsize=2, elinewidth=0.8, label=way)
    for row in masked.sort_values("faster").groupby(["sparsity", "share"]).tail(1).itertuples():
        place = {"xytext": (7, 2), "textcoords": "offset points", "fontsize": 8, "color": INK}
        ax.annotate(f"{row.sparsity:g}", (row.faster, row.share), **place)
    for row in points[points["share"].isna()].itertuples():
        ax.axvline(row.faster, color=INK, lw=0.8, ls=":")
        place = {"rotation": 90, "va": "bottom", "ha": "right", "fontsize": 8, "color": INK}  # below the lines
        ax.text(row.faster, 0.03, row.way, transform=ax.get_xaxis_transform(), **place)
    ax.axvline(1, color=INK, lw=0.8, ls="--")
    ax.set(xscale="log", xlabel="times as fast as dense float32", ylabel=f"{GAIN}\n(bars: 95 % over dev rows)")
    ax.set_xticks(ticks := [1, 1.5, 2, 3, 4, 6, 8, 12], [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set(xlim=(0.92 * points["faster"].min(), 1.2 * points["faster"].max()), ylim=(0, 1.05))
    return dress(ax)


def draw_recovery(ax: Axes, rows: pd.DataFrame) -> Axes:
    """Share of the kept connections of finished masks that had been pruned before, against sparsity, one line per task.

    Markers are means over seeds, bars go from the lowest seed to the highest.

    ``rows``: one for each run: ``task``, ``sparsity``, ``share`` at its last snapshot.
    """
    tasks, sparsities = (sorted(set(rows[name])) for name in ("task", "sparsity"))
    for number, task in enumerate(tasks):
        of = rows[rows["task"] == task].groupby("sparsity")["share"].agg(["mean", "min", "max"])
        places = [sparsities.index(at) + (number - (len(tasks) - 1) / 2) * 0.12 for at in of.index]
        colour, marker = list(STYLES.values())[number]
        spread = [of["mean"] - of["min"], of["max"] - of["mean"]]
        look = {"color": colour, "marker": marker, "ms": 6, "lw": 1, "ls": LINE_STYLES[number % len(LINE_STYLES)]}
        ax.errorbar(places, of["mean"], spread, **look, capsize=2, label=task)
    ax.set_xticks(range(len(sparsities)), [f"{at:g}" for at in sparsities])
    ax.set(xlabel="sparsity", ylabel="share of the kept connections\nthat had been pruned", ylim=(0, None))
    ax.set_xlim(-0.5, len(sparsities) - 0.5)
    return dress(ax)


def draw_blocks(ax: Axes, pairs: pd.DataFrame, methods: Sequence[str]) -> Axes:
    """What the masks of two methods share: the mean Jaccard index over all pairs of masks, and its excess over chance.

    Chance: masks with the same sparsity in every matrix, otherwise random. The excess gives the shade. On the diagonal
    are pairs of one method with different seeds or tasks.

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
