"""Every picture of the suite: ``draw_*(ax, data) -> ax`` draws one panel, `save` writes a figure, same data same bytes.

A method has one colour and one marker wherever it is drawn. The colours are Okabe and Ito's, which colour-blind
readers can tell apart, and more for more methods; no two are equally light, so that they also differ in grey; the
markers say it once more, hollow where weights were trained. Several ways of one method in one `draw_curves` share its
colour and differ in marker and dashes.
"""

import hashlib
import math
import textwrap
from collections.abc import Collection, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import MaxNLocator

from adaprune.data import expanded
from adaprune.masks import COMPONENTS
from adaprune.methods import METHODS
from adaprune.report.names import Source, written


class Style(NamedTuple):
    """How a method is drawn."""

    colour: str
    marker: str | tuple[int, int, int]


STYLES = {method.name: Style(method.colour, method.marker) for method in METHODS.values()}
INK, LINES = "#404040", "#D0D0D0"
LINE_STYLES = ("-", (0, (5, 1.5)), "-.", ":")  # of the same method under other settings
OTHER_MARKERS = ("D", "v", "s", "p", "^")  # of the same method's further ways
MANY_TICKS = 8  # from here on side by side they run into each other
LEAST_SPAN = 0.1  # of a score's axis
CLOSE = 0.1  # of an axis: too little room for a name between two lines
OTHER = Style("#808080", "o")  # a method that this process does not know
FORMATS = ("svg", "png")
# Bytes must depend on the data alone: no date, no version, no random ids.
_METADATA = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
_LETTERS = 23  # of the small line below a figure, on an inch


def style_of(method: str) -> Style:
    """How a method is drawn: as it says itself, grey where nobody knows it."""
    known = METHODS.get(method)
    return OTHER if known is None else Style(known.colour, known.marker)


def in_order(ways: Iterable[str]) -> list[str]:
    """Each method, or way that begins with one, once and in the methods' order; what nobody knows comes last."""
    order = {method: place for place, method in enumerate(STYLES)}
    return sorted(set(ways), key=lambda way: (order.get(way.split()[0], len(order)), way))


def draw_learning(ax: Axes, record: dict[str, Any]) -> Axes:
    """Training loss along the steps, and the loss on the selection split with the main metric's value beside it."""
    style, metric = style_of(record["run"]["method"]), record["metrics"]["primary"]
    training = _points(record, "loss")
    held_out = _points(record, "selection_loss", f"selection_{metric}")
    ax.plot(training["step"], training["loss"], color=style.colour, lw=1.5, label="training")
    label = f"selection (with {metric.replace('_', ' ')})"
    ax.plot(
        held_out["step"], held_out["selection_loss"], style.marker, color=style.colour, mfc="white", ms=7, label=label
    )
    for step, loss, score in held_out.itertuples(index=False):
        _number(ax, score, step, loss)
    ax.set(xlabel="step", ylabel="loss")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.margins(x=0.06, y=0.15)
    ax.legend(frameon=False, loc="best")
    return dress(ax)


def draw_sparsity(ax: Axes, record: dict[str, Any]) -> Axes:
    """Sparsity in scope along the steps, below the line of what was asked; a sentence where there is no mask."""
    run, mask = record["run"], record["mask"]
    if mask is None:
        return say(ax, f"{run['method']} has no mask:\nall weights are kept")
    style, points = style_of(run["method"]), _points(record, "sparsity")
    steps = record["cost"]["steps"]
    ax.axhline(run["sparsity"], color=INK, lw=1, ls="--", label=f"asked: {run['sparsity']:g}")
    if points.empty:  # the mask was fixed before the first step
        ax.plot([0, steps], [mask["sparsity"]] * 2, color=style.colour, lw=2, label="fixed before training")
    else:
        ax.plot(points["step"], points["sparsity"], color=style.colour, lw=2, label="while learning")
    ax.plot([steps], [mask["sparsity"]], style.marker, color=style.colour, ms=8, clip_on=False, label="final mask")
    ax.set(xlabel="step", ylabel="sparsity", ylim=(0, 1))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False, loc="best")
    return dress(ax)


def draw_layers(ax: Axes, record: dict[str, Any]) -> Axes:
    """Sparsity of each Transformer layer, beside the line of the whole scope; a sentence where there is no mask."""
    layers = [] if record["mask"] is None else sorted(record["mask"]["per_layer"], key=int)
    return _draw_groups(ax, record, "per_layer", layers, "layer")


def draw_components(ax: Axes, record: dict[str, Any]) -> Axes:
    """Sparsity of each component (query, key, ...) over all layers; a sentence where there is no mask."""
    found = () if record["mask"] is None else record["mask"]["per_component"]
    return _draw_groups(ax, record, "per_component", [name for name in COMPONENTS if name in found], "component")


def draw_comparison(ax: Axes, rows: pd.DataFrame) -> Axes:
    """One dot per run, on one line for each way and sparsity, the best at the top, with the mean of the line's dots.

    Args:
        ax: a panel of one task and one model, or the dots do not compare.
        rows: of `comparison.with_ways`, one or more.
    """
    rows = rows.assign(way=[_at(*named) for named in zip(rows["way"], rows["sparsity"], strict=True)])
    best_last = rows.groupby("way")["score"].mean().sort_values(kind="stable").index
    heights = {way: height for height, way in enumerate(best_last)}
    for method, score, way in zip(rows["method"], rows["score"], rows["way"], strict=True):
        colour, marker = style_of(method)
        ax.plot([score], [heights[way]], marker, color=colour, ms=9, **rim_of(marker))
    for way, score in rows.groupby("way")["score"].mean().items():
        _number(ax, score, score, heights[way])
    ax.set_yticks(range(len(best_last)), [*map(written, best_last)])
    ax.set(xlabel=f"{written(rows['primary'].iloc[0])} on the dev split", ylim=(-0.6, len(best_last) - 0.3))
    middle, half = rows["score"].agg(["min", "max"]).mean(), (rows["score"].max() - rows["score"].min()) * 0.6
    half = max(half, LEAST_SPAN / 2)  # a wide axis, so that a small difference looks small
    ax.set_xlim(middle - half, middle + half)
    return dress(ax, grid="both")


def rim_of(marker: str | tuple[int, int, int]) -> dict[str, Any]:
    """The edge of a dot: white, so that dots on each other stay apart, but not for a marker that is all edge."""
    return {"mec": "white", "mew": 0.7} if MarkerStyle(marker).is_filled() else {"mew": 2.0}


def _at(way: str, sparsity: float) -> str:
    """A way with its sparsity, which follows the method's name; NaN for a method without a mask."""
    name, blank, settings = way.partition(" ")
    return way if math.isnan(sparsity) else f"{name} {sparsity:g}{blank}{settings}"


def draw_curves(ax: Axes, points: pd.DataFrame, sparsities: list[float], ways: Collection[str]) -> Axes:
    """Fig. 2 of the paper: score against sparsity, one line per way of adapting; a level line where there is no mask.

    Level lines have their names on them, the others in the legend of `share_legend`.

    Args:
        ax: the panel; one task, model and number of training rows.
        points: of `adaprune.report.comparison.curves`: way, method, sparsity (missing without mask), mean, low, high.
        sparsities: the places on the axis, evenly spaced, so that panels side by side have the same.
        ways: all that the figure shows, so that each has one look in all its panels; begin with the method.
    """
    places = {sparsity: place for place, sparsity in enumerate(sorted(sparsities))}
    end, constants = max(len(places) - 1, 1), []
    for (method, way), line in points.sort_values("sparsity").groupby(["method", "way"]):
        known = METHODS.get(method)
        (colour, marker), intact = style_of(method), known is None or known.weights_intact
        number = sorted(other for other in ways if other.split()[0] == method).index(way)
        markers = [marker, *(other for other in OTHER_MARKERS if other != marker)]
        look = {"color": colour, "marker": markers[number % len(markers)], "mfc": colour if intact else "white"}
        look |= {"ms": 7, "label": way}
        dashes = LINE_STYLES[number % len(LINE_STYLES)]
        if line["sparsity"].notna().all() if known is None else known.mask:  # the paper gives all methods a sparsity
            spread = [line["mean"] - line["low"], line["high"] - line["mean"]]
            ax.errorbar(line["sparsity"].map(places), line["mean"], spread, ls=dashes, lw=1.5, capsize=3, **look)
        else:
            level = line.iloc[0]
            ax.fill_between([0, end], level["low"], level["high"], color=colour, alpha=0.15, lw=0)
            broken = LINE_STYLES[1 + number % (len(LINE_STYLES) - 1)]
            ax.plot([-0.3, end + 0.3], [level["mean"]] * 2, ls=broken, lw=1.2, color=colour)
            constants.append((level["mean"], way))
    low, high = ax.get_ylim()
    for (mean, way), (above, _) in pairwise([*sorted(constants), (math.inf, "")]):
        over = above - mean >= CLOSE * (high - low)  # a name stands below its line if another is just above
        place = {"xytext": (0, 2 if over else -2), "textcoords": "offset points", "va": "bottom" if over else "top"}
        ax.annotate(written(way), (end + 0.28, mean), ha="right", fontsize=8, color=INK, **place)
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len(places) >= MANY_TICKS else {}
    ax.set_xticks(range(len(places)), [f"{sparsity:g}" for sparsity in places], **turned)
    ax.set(xlabel="sparsity", xlim=(-0.3, end + 0.3))
    return dress(ax)


def share_legend(fig: Figure) -> None:
    """One legend for all panels of a figure, below them: each way once, in the methods' order."""
    pairs = [pair for ax in fig.axes for pair in zip(*ax.get_legend_handles_labels(), strict=True)]
    found = {label: handle for handle, label in pairs}
    labels = in_order(found)
    inches = max(1.6, 0.75 + 0.07 * max((len(written(label)) for label in labels), default=0))
    look = {"loc": "outside lower center", "ncols": max(1, int(fig.get_figwidth() / inches)), "frameon": False}
    look |= {"handlelength": 4, "fontsize": 8.5, "columnspacing": 1}  # so long, dashes can be told
    fig.legend([found[label] for label in labels], [*map(written, labels)], **look)


def save(fig: Figure, name: str, folder: str | Path, made_from: Source | None) -> list[Path]:
    """Writes ``<folder>/<name>.svg`` and ``.png`` and returns their paths; equal figures give equal bytes.

    Both say in small type, and in their metadata, what they were made from; the SVG lists the records, the PNG has the
    sha256 of the SVG that it is the same drawing as.

    Args:
        fig: the figure, which grows by the line.
        name: a plain file name without suffix.
        folder: made if it is not there.
        made_from: of `names.source`; None for a sketch that shows no record.

    Raises:
        ValueError: a name with a slash or a suffix.
        OSError: the folder cannot be written.
    """
    if not name or Path(name).name != name or "." in name:
        raise ValueError(f"name must be a plain file name without suffix, got {name!r}")
    folder = expanded(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [Path(folder, f"{name}.{suffix}") for suffix in FORMATS]
    metadata = {suffix: dict(said) for suffix, said in _METADATA.items()}
    if made_from:
        _write_below(fig, made_from.line)
        metadata["svg"] |= {"Title": name, "Description": made_from.line, "Source": "\n".join(made_from.records)}
        metadata["png"] |= {"Title": name, "Description": made_from.line}
    with plt.rc_context({"svg.hashsalt": name}):
        for path in paths:
            fig.savefig(path, metadata=metadata[path.suffix[1:]], dpi=150, facecolor="white")
            metadata["png"]["Source"] = hashlib.sha256(paths[0].read_bytes()).hexdigest()
    return paths


def _write_below(fig: Figure, line: str) -> None:
    """Makes the figure higher and writes the line in small type at its lower edge."""
    width, height = fig.get_size_inches()
    small = textwrap.fill(line, int(_LETTERS * width))
    below = 0.04 + 0.09 * len(small.splitlines())  # inches
    fig.draw_without_rendering()  # its layout is found for what it shows
    fig.set_layout_engine("none")
    fig.set_size_inches(width, height + below)
    share = below / (height + below)
    for ax in fig.axes:
        left, low, wide, high = ax.get_position(original=True).bounds
        ax.set_position([left, share + low * (1 - share), wide, high * (1 - share)])
    for legend in fig.legends:
        legend.set_bbox_to_anchor((0, share, 1, 1 - share), fig.transFigure)
    fig.text(0.05 / width, 0.03 / height, small, va="bottom", fontsize=5.5, color="#606060")


def _points(record: dict[str, Any], *columns: str) -> pd.DataFrame:
    """The points of a record's curve that have all the columns, with their step first."""
    names = ["step", *columns]
    rows = [[point[name] for name in names] for point in record["curve"] if all(name in point for name in names)]
    return pd.DataFrame(rows, columns=names)


def _draw_groups(ax: Axes, record: dict[str, Any], key: str, groups: list[str], label: str) -> Axes:
    if not groups:
        return say(ax, f"{record['run']['method']} has no mask:\nnothing to show by {label}")
    style, mask = style_of(record["run"]["method"]), record["mask"]
    values = [mask[key][group]["sparsity"] for group in groups]
    ax.axvline(mask["sparsity"], color=INK, lw=1, ls="--", label=f"whole scope: {mask['sparsity']:.3g}")
    ax.hlines(range(len(groups)), mask["sparsity"], values, color=style.colour, lw=2, alpha=0.5)
    ax.plot(values, range(len(groups)), style.marker, color=style.colour, ms=8)
    ax.set_yticks(range(len(groups)), [group.replace("_", " ") for group in groups])
    ax.set(xlabel="sparsity", ylabel=label, xlim=(0, 1), ylim=(len(groups) - 0.4, -0.6))  # the first at the top
    ax.legend(frameon=False, loc="best")
    return dress(ax, grid="x")


def _number(ax: Axes, value: float, x: float, y: float) -> None:
    """Writes a score just above a point."""
    behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
    place = {"xytext": (0, 9), "textcoords": "offset points", "ha": "center"}
    ax.annotate(f"{value:.3f}", (x, y), **place, color=INK, fontsize=9, bbox=behind)


def say(ax: Axes, sentence: str) -> Axes:
    """A panel with nothing to draw says why."""
    ax.text(0.5, 0.5, sentence, ha="center", va="center", color=INK, transform=ax.transAxes)
    ax.set_axis_off()
    return ax


def dress(ax: Axes, grid: str = "y") -> Axes:
    """The look all panels share: two spines, light lines behind the data."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis=grid, color=LINES, lw=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(colors=INK, length=0)
    return ax
