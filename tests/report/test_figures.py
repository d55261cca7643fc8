"""Figures: the same bytes from the same data, one look a method, and the numbers that are meant."""

import itertools
import math
import xml.etree.ElementTree as ET

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.markers import MarkerStyle

from adaprune.report import figures
from adaprune.report.comparison import with_ways
from adaprune.report.names import source, way_of
from adaprune.runs import METHODS, Method, Run

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def count(kept: int, total: int) -> dict:
    return {"sparsity": 1 - kept / total, "kept": kept, "total": total}


def record(method: str = "adaprune") -> dict:
    """A record as far as the figures read it: two layers of ten weights, a quarter of each kind removed or more."""
    curve = [
        {"step": 2, "loss": 0.7},
        {"step": 4, "loss": 0.5},
        {"step": 4, "selection_loss": 0.6, "selection_accuracy": 0.75},
    ]
    if method == "adaprune":
        curve = [{**point, "sparsity": 0.1 * point["step"]} for point in curve]
    mask = {
        **count(12, 20),
        "per_layer": {"10": count(5, 10), "9": count(7, 10)},  # 10 comes after 9, not before
        "per_component": {"ffn_out": count(8, 10), "query": count(4, 10)},
    }
    return {
        "run": Run(method=method, sparsity=0.4).model_dump(),
        "metrics": {"validation": {"accuracy": 0.8}, "selection": {"accuracy": 0.75}, "primary": "accuracy"},
        "mask": mask if METHODS[method].mask else None,
        "cost": {"steps": 4},
        "curve": curve,
    }


def runs() -> pd.DataFrame:
    rows = [
        ("features", math.nan, 0, 0.70),
        ("adaprune", 0.5, 0, 0.80),
        ("adaprune", 0.5, 1, 0.84),
        ("magnitude", 0.5, 0, 0.6),
    ]
    frame = pd.DataFrame(rows, columns=["method", "sparsity", "seed", "score"])
    return frame.assign(way=frame["method"], primary="accuracy")


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def lightness(colour: str) -> float:
    """CIE L* of a colour, 0 to 100: how light it is in greyscale."""
    channels = np.array(to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return 116 * np.cbrt(y) - 16 if y > 0.008856 else 903.3 * y


def test_each_method_has_one_colour_and_one_marker_which_it_says_itself():
    assert set(figures.STYLES) >= set(METHODS)
    assert all(figures.style_of(name) == (method.colour, method.marker) for name, method in METHODS.items())
    for position in (0, 1):
        assert len({style[position] for style in figures.STYLES.values()}) == len(figures.STYLES)


def test_a_method_that_nobody_knows_is_grey_a_disc_and_last():
    assert "of_another_process" not in METHODS
    assert figures.style_of("of_another_process") == figures.OTHER == ("#808080", "o")
    assert figures.OTHER not in figures.STYLES.values()
    asked = ["zeta", "features", "of_another_process", "imp", "adaprune", "features"]
    assert figures.in_order(asked) == ["adaprune", "features", "imp", "of_another_process", "zeta"]


def test_a_method_of_ones_own_has_the_look_that_it_asks_for(monkeypatch):
    def mine(job):
        return job

    monkeypatch.setitem(METHODS, "mine", Method(mine, line="mine", mask=False, colour="#123456", marker="*"))
    assert figures.style_of("mine") == ("#123456", "*")
    assert way_of({"method": "mine", "sparsity": 0.5, "recipe": "tuned", "scope": "encoder", "head": ""}) == "mine"


def test_records_of_a_method_that_nobody_knows_are_drawn_beside_the_others():
    fig, (left, right) = plt.subplots(1, 2)
    names = ["of_another_process", *runs()["method"][1:]]
    unknown = runs().assign(method=names, way=names, sparsity=0.5)
    figures.draw_comparison(left, unknown)
    assert [label.get_text() for label in left.get_yticklabels()] == [
        "magnitude mask 0.5",
        "of_another_process 0.5",
        "adaprune 0.5",
    ]
    (grey,) = [line for line in left.lines if line.get_color() == figures.OTHER.colour]
    assert grey.get_xydata().tolist() == [[0.7, 1]]
    rows = points().assign(method=["of_another_process", *points()["method"][1:]])
    figures.draw_curves(right, rows.assign(way=rows["method"]), [0.5, 0.9], set(rows["method"]))
    figures.share_legend(fig)
    shown = [text.get_text() for text in fig.legends[0].get_texts()]
    assert shown == ["adaprune", "movement, weights trained", "of_another_process"]
    for draw in (figures.draw_learning, figures.draw_sparsity, figures.draw_layers, figures.draw_components):
        known = record()
        assert draw(left, {**known, "run": {**known["run"], "method": "of_another_process"}}) is left
    fig.canvas.draw()


def test_lightness_of_known_colours():
    assert lightness("black") == 0
    assert lightness("white") == pytest.approx(100, abs=0.01)
    assert lightness("red") == pytest.approx(53.24, abs=0.05)


def test_colours_differ_in_greyscale():
    """The paper's methods and magnitude by 6 of L*; all cannot (24 * 6 > 100), so for all it is 2."""
    few = ("adaprune", "finetune", "features", "random", "magnitude", "gmp", "imp")
    for (first, one), (second, other) in itertools.combinations(figures.STYLES.items(), 2):
        apart = 6 if first in few and second in few else 2
        assert abs(lightness(one.colour) - lightness(other.colour)) > apart, (first, second)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("draw", ["draw_learning", "draw_sparsity", "draw_layers", "draw_components"])
def test_every_panel_is_drawn_for_every_method(draw, method):
    fig, ax = plt.subplots()
    assert getattr(figures, draw)(ax, record(method)) is ax
    fig.canvas.draw()
    says_why = any("has no mask" in text for text in texts(ax))
    assert says_why == (not METHODS[method].mask and draw != "draw_learning")


def test_learning_shows_losses_and_writes_the_selection_score():
    ax = figures.draw_learning(plt.subplots()[1], record())
    training, selection = ax.lines
    assert training.get_xydata().tolist() == [[2, 0.7], [4, 0.5]]
    assert selection.get_xydata().tolist() == [[4, 0.6]]
    assert texts(ax) == ["0.750"]


def test_learning_of_a_run_without_a_look_at_the_selection_split():
    without = record() | {"curve": [{"step": 1, "loss": 0.7}]}
    assert texts(figures.draw_learning(plt.subplots()[1], without)) == []


def test_sparsity_shows_what_was_asked_the_way_there_and_the_end():
    ax = figures.draw_sparsity(plt.subplots()[1], record())
    asked, way, end = ax.lines
    assert list(asked.get_ydata()) == [0.4, 0.4]
    assert way.get_xydata()[:2] == pytest.approx(np.array([[2, 0.2], [4, 0.4]]))
    assert end.get_xydata() == pytest.approx(np.array([[4, 0.4]]))


def test_layers_are_in_order_of_number_from_the_top():
    ax = figures.draw_layers(plt.subplots()[1], record())
    assert [label.get_text() for label in ax.get_yticklabels()] == ["9", "10"]
    assert ax.yaxis_inverted()
    assert list(ax.lines[-1].get_xdata()) == pytest.approx([0.3, 0.5])


def test_components_are_in_the_order_of_the_layer():
    ax = figures.draw_components(plt.subplots()[1], record())
    assert [label.get_text() for label in ax.get_yticklabels()] == ["query", "ffn out"]
    assert list(ax.lines[-1].get_xdata()) == pytest.approx([0.6, 0.2])


def test_comparison_puts_the_best_mean_on_top_and_seeds_on_one_line():
    ax = figures.draw_comparison(plt.subplots()[1], runs())
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "magnitude mask 0.5",
        "feature extraction",
        "adaprune 0.5",
    ]
    dots = sorted(tuple(line.get_xydata()[0]) for line in ax.lines)
    assert dots == [(0.6, 0), (0.7, 1), (0.8, 2), (0.84, 2)]
    assert sorted(texts(ax)) == ["0.600", "0.700", "0.820"]
    assert ax.get_xlabel() == "accuracy on the dev split"


@pytest.mark.parametrize("method", ["probe", "majority", "bitfit", "adaprune", "lora"])
def test_comparison_shows_markers_that_are_lines_too(method):
    """A white rim would hide them, for they are nothing else."""
    ax = figures.draw_comparison(plt.subplots()[1], runs().assign(method=method, way=method))
    filled = MarkerStyle(figures.style_of(method).marker).is_filled()
    assert {line.get_markeredgecolor() for line in ax.lines} == {"white" if filled else figures.style_of(method).colour}


def test_comparison_gives_runs_of_other_settings_a_line_of_their_own():
    named = [Run(method="smp", seed=seed, allocation=allocation) for seed in (0, 1) for allocation in ("", "equal")]
    rows = pd.DataFrame([{**run.model_dump(), "mask_sparsity": 0.5, "primary": "accuracy"} for run in named])
    ax = figures.draw_comparison(plt.subplots()[1], with_ways(rows.assign(score=[0.7, 0.2, 0.8, 0.3])))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["SMP 0.5 allocation equal", "SMP 0.5"]
    assert sorted(texts(ax)) == ["0.250", "0.750"]


def test_comparison_does_not_blow_up_a_small_difference():
    close = runs().assign(score=[0.80, 0.801, 0.802, 0.80])
    low, high = figures.draw_comparison(plt.subplots()[1], close).get_xlim()
    assert (low, high) == pytest.approx((0.751, 0.851))
    low, high = figures.draw_comparison(plt.subplots()[1], runs()).get_xlim()
    assert (low, high) == pytest.approx((0.576, 0.864))  # 0.6 to 0.84 and a tenth on either side


def points() -> pd.DataFrame:
    rows = [
        ("adaprune", "adaprune", 0.9, 0.7, 0.6, 0.75),
        ("adaprune", "adaprune", 0.5, 0.8, 0.8, 0.8),
        ("adaprune recipe paper", "adaprune", 0.5, 0.6, np.nan, np.nan),
        ("movement_finetune", "movement_finetune", 0.5, 0.65, np.nan, np.nan),
        ("finetune", "finetune", np.nan, 0.9, 0.88, 0.91),
    ]
    return pd.DataFrame(rows, columns=["way", "method", "sparsity", "mean", "low", "high"])


def test_curves_stand_at_even_places_and_methods_without_mask_are_level():
    fig, ax = plt.subplots()
    figures.draw_curves(ax, points(), [0.99, 0.5, 0.9], set(points()["way"]))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0.5", "0.9", "0.99"]
    lines = {line.get_label(): line for line in ax.lines}
    level = ax.lines[[list(line.get_ydata()) for line in ax.lines].index([0.9, 0.9])]
    assert level.get_xdata().tolist() == [-0.3, 2.3] and level.get_marker() == "None"  # no marker at the axis' end
    assert [text.get_text() for text in ax.texts] == ["fine-tuning"] and "finetune" not in lines
    curves = {bars.get_label(): bars for bars in ax.containers}
    assert curves["adaprune"].lines[0].get_xydata().tolist() == [[0, 0.8], [1, 0.7]]
    (ends,) = curves["adaprune"].lines[2]
    assert ends.get_segments()[1].tolist() == pytest.approx(np.array([[1, 0.6], [1, 0.75]]))
    first, second = (curves[way].lines[0] for way in ("adaprune", "adaprune recipe paper"))
    assert first.get_color() == second.get_color() and first.get_linestyle() != second.get_linestyle()
    assert first.get_marker() == "o" != second.get_marker()
    figures.share_legend(fig)
    shown = [text.get_text() for text in fig.legends[0].get_texts()]
    assert shown == ["adaprune", "adaprune, recipe paper", "movement, weights trained"]
    assert fig.legends[0].handlelength >= 4  # shorter ones cut dash-dot to a dash


def test_a_method_without_mask_is_level_even_where_it_is_given_a_sparsity():
    rows = pd.DataFrame({"way": "features", "method": "features", "sparsity": [0.2, 0.5], "mean": [0.3, 0.3]})
    ax = figures.draw_curves(plt.subplots()[1], rows.assign(low=np.nan, high=np.nan), [0.2, 0.5, 0.9], ["features"])
    (line,) = ax.lines
    assert line.get_xydata().tolist() == [[-0.3, 0.3], [2.3, 0.3]] and not ax.containers


def test_the_name_of_a_level_line_is_above_it_unless_another_is_just_above():
    ways = {"probe": 0.1, "features": 0.85, "finetune": 0.88, "majority": 0.1}
    rows = pd.DataFrame({"way": list(ways), "method": list(ways), "sparsity": np.nan, "mean": list(ways.values())})
    ax = figures.draw_curves(plt.subplots()[1], rows.assign(low=np.nan, high=np.nan), [0.5], list(ways))
    placed = {text.get_text(): text.get_verticalalignment() for text in ax.texts}
    assert placed == {"majority class": "top", "probe": "bottom", "feature extraction": "top", "fine-tuning": "bottom"}


def test_two_level_lines_of_a_method_look_unlike_and_many_sparsities_do_not_overlap():
    fig, ax = plt.subplots(figsize=(4.5, 4.2))
    ways = ["finetune", "finetune epochs 2"]
    rows = pd.DataFrame({"way": ways, "method": "finetune", "sparsity": np.nan, "mean": 0.8, "low": 0.8, "high": 0.8})
    figures.draw_curves(ax, rows, [0.2, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99, 0.999, 0.9999], ways)
    one, other = ax.lines
    assert one._dash_pattern != other._dash_pattern
    assert [text.get_text() for text in ax.texts] == ["fine-tuning", "fine-tuning, epochs 2"]
    assert {label.get_rotation() for label in ax.get_xticklabels()} == {45}


def test_a_way_has_one_line_style_in_all_panels_of_a_figure():
    fig, axes = plt.subplots(1, 2)
    ways = [f"adaprune epochs {n}" for n in range(40)]
    for ax, shown in zip(axes, (ways[:2], ways[1:]), strict=True):
        rows = pd.DataFrame({"way": shown, "method": "adaprune", "sparsity": 0.5, "mean": 0.8, "low": 0.8, "high": 0.8})
        figures.draw_curves(ax, rows, [0.5], ways)
    left, right = ({bars.get_label(): bars.lines[0].get_linestyle() for bars in ax.containers} for ax in axes)
    assert left[ways[1]] == right[ways[1]] != left[ways[0]]
    assert len(right) == 39


def test_a_way_is_named_by_what_matters():
    row = {"method": "random", "sparsity": 0.9, "recipe": "paper", "scope": "encoder+embeddings", "head": ""}
    assert way_of({**row, "pattern": "weights"}) == "random 0.9 +embeddings paper"
    assert way_of({**row, "pattern": "units", "head": "mlp"}) == "random units 0.9 +embeddings paper, mlp head"
    assert way_of({**row, "method": "lora", "rank": 2}) == "lora r = 2 paper"


def test_same_data_same_bytes(tmp_path):
    written = []
    for folder in ("first", "second"):
        fig, (left, right) = plt.subplots(1, 2)
        figures.draw_sparsity(left, record())
        figures.draw_comparison(right, runs())
        paths = figures.save(
            fig, "extra_test", tmp_path / folder, source("x", "results", pd.DataFrame({"record": ["a"]}))
        )
        assert [path.name for path in paths] == ["extra_test.svg", "extra_test.png"]
        written.append([path.read_bytes() for path in paths])
    assert written[0] == written[1]
    assert ET.fromstring(written[0][0]).tag.endswith("svg")
    assert written[0][1].startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a.svg"])
def test_save_refuses_a_name_that_is_a_path(tmp_path, name):
    with pytest.raises(ValueError, match="plain file name"):
        figures.save(plt.figure(), name, tmp_path, None)
    assert not list(tmp_path.iterdir())
