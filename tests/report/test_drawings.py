"""Pictures of masks: what is drawn is the data, and the same data have the same bytes."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from adaprune.report import dots, drawings, figures
from adaprune.topology import graphs
from tests.topology.test_structure import by_hand, random_mask

matplotlib.use("Agg")


@pytest.fixture
def ax():
    yield plt.figure(layout="constrained").add_subplot()
    plt.close("all")


def test_groups_are_means_with_the_standard_deviation(ax):
    rows = [("imp", "query", 0.1), ("imp", "key", 0.5), ("adaprune", "query", 0.2), ("adaprune", "query", 0.4)]
    drawings.draw_groups(ax, pd.DataFrame(rows, columns=["method", "component", "sparsity"]), "component", "sparsity",
                         ["query", "key"])  # fmt: skip
    ours, imp = ax.containers
    assert ours.get_label() == "adaprune" and ours[0].get_ydata() == pytest.approx([0.3])
    low, high = ours[1]
    assert [low.get_ydata()[0], high.get_ydata()[0]] == pytest.approx([0.3 - 0.02**0.5, 0.3 + 0.02**0.5])
    assert sorted(imp[0].get_ydata()) == [0.1, 0.5]
    assert ours[0].get_xdata()[0] < 0 < min(imp[0].get_xdata())  # side by side around the group's place
    assert imp[0].get_xdata()[0] == 1  # alone there


def frontier_points() -> pd.DataFrame:
    rows = [
        ("lora r = 1, mlp head", "lora", 1e5, 0.5, 0.4, 0.6, True),
        ("adaprune 0.5", "adaprune", 3e5, 0.7, np.nan, np.nan, True),
        ("lora r = 8", "lora", 2e6, 0.7, 0.6, 0.8, False),
    ]
    return pd.DataFrame(rows, columns=["way", "method", "bytes", "share", "rows_low", "rows_high", "first"])


def test_the_frontier_shows_each_way_where_it_is_and_names_the_first(ax):
    drawings.draw_frontier(ax, frontier_points())
    assert ax.texts[0].get_ha() == "left"  # on the left it would lie on the axis
    assert ax.get_xscale() == "log" and [text.get_text() for text in ax.texts] == [
        "LoRA, r = 1",
        "adaprune 0.5",
    ]
    points = [container[0] for container in ax.containers]
    assert {(point.get_xdata()[0], point.get_ydata()[0]) for point in points} == {(1e5, 0.5), (3e5, 0.7), (2e6, 0.7)}
    hollow = [point.get_xdata()[0] for point in points if point.get_markerfacecolor() == "white"]
    assert hollow == [1e5]
    assert ax.get_legend_handles_labels()[1] == ["lora"]  # whose points are not all named
    (low, high), _ = ax.containers[1][1], ax.containers[1]
    assert [low.get_ydata()[0], high.get_ydata()[0]] == pytest.approx([0.4, 0.6])
    steps = next(line for line in ax.lines if line.get_drawstyle() == "steps-post")
    assert steps.get_xydata().tolist() == [[1e5, 0.5], [3e5, 0.7]]


def gain_points() -> pd.DataFrame:
    rows = [
        ("adaprune + teacher", "adaprune", 0.9, 0.6, 0.5, 0.75),
        ("adaprune + teacher", "adaprune", 0.5, 0.95, 0.9, 1.0),
        ("smp", "smp", 0.5, 0.8, np.nan, np.nan),
    ]
    return pd.DataFrame(rows, columns=["way", "method", "sparsity", "share", "rows_low", "rows_high"])


def test_the_gain_is_drawn_against_what_is_kept(ax):
    points = gain_points()
    task = points[points["sparsity"] == 0.5].assign(share=0.99)  # its smp is not drawn
    drawings.draw_gain(ax, points, {"cola": task})
    drawn = {line.get_color(): line.get_xydata().round(9).tolist() for line in ax.lines if len(line.get_xdata())}
    ours, rival = (figures.style_of(name).colour for name in ("adaprune", "smp"))
    assert drawn[rival] == [[0.5, 0.8]] and [[0.5, 0.99]] in drawn.values()
    curves = [line.get_xydata().round(9).tolist() for line in ax.lines if line.get_color() == ours]
    assert [[0.1, 0.6], [0.5, 0.95]] in curves
    bars = ax.containers[0].lines[2][0].get_segments()
    assert sorted(round(float(y), 9) for bar in bars for _, y in bar) == [0.5, 0.75, 0.9, 1.0]
    words = [text.get_text() for text in ax.texts]
    assert words == ["CoLA", "SMP", "adaprune", "fine-tuning", "probe or majority class"]
    assert ax.get_xscale() == "log" and [tick.get_text() for tick in ax.get_xticklabels()] == ["10%", "50%"]


def test_names_of_tasks_that_end_together_do_not_collide(ax):
    points = gain_points()
    tasks = {name: points.assign(share=points["share"] + more) for name, more in (("cola", 0.001), ("qnli", 0.0))}
    drawings.draw_gain(ax, points, tasks)
    heights = {text.get_text(): text.xyann[1] for text in ax.texts if text.get_text() in ("CoLA", "QNLI")}
    ends = {text.get_text(): text.xy for text in ax.texts if text.get_text() in heights}
    assert ends["CoLA"] == pytest.approx((0.1, 0.601)) and ends["QNLI"] == pytest.approx((0.1, 0.6))  # joined to them
    assert heights["CoLA"] - heights["QNLI"] == pytest.approx(0.04)
    assert sum(heights.values()) / 2 == pytest.approx(0.6005)


def test_what_keeps_nothing_is_named_below_the_axis(ax):
    points = gain_points()
    worst = [
        ("magnitude 0.5", "magnitude", 0.5, -0.55, -0.9, -0.3),
        ("magnitude 0.5", "magnitude", 0.9, -0.8, -1, -0.6),
    ]
    drawings.draw_gain(ax, pd.concat([points, pd.DataFrame(worst, columns=points.columns)]), {})
    assert "below: magnitude mask, -0.80 and -0.55" in [text.get_text() for text in ax.texts]
    assert ax.get_ylim()[0] >= drawings.LEAST_GAIN
    colour = figures.style_of("magnitude").colour
    assert not [line for line in ax.lines if line.get_color() == colour]


def test_degrees_end_at_one_and_bring_chance_along(ax):
    drawings.draw_degrees(ax, {"imp": np.array([3, 0, 1])}, most=10, density=0.2)
    line, chance = ax.lines
    assert line.get_xdata().tolist() == [0, 1, 3] and line.get_ydata()[-1] == 1
    assert abs(np.mean(chance.get_xdata()) - 2) < 0.1


def test_blocks_are_means_over_pairs_with_the_excess_over_chance(ax):
    rows = [("gmp, imp", 0.9, 0.1), ("gmp, imp", 0.7, 0.1), ("imp, imp", 0.5, 0.25)]
    drawings.draw_blocks(ax, pd.DataFrame(rows, columns=["methods", "jaccard", "chance_by_matrix"]), ["imp", "gmp"])
    assert {text.get_position(): text.get_text() for text in ax.texts} == {(0, 1): "0.80\n+0.70", (0, 0): "0.50\n+0.25"}
    shades = ax.images[0].get_array()
    assert shades[1, 0] == pytest.approx(0.7) and np.ma.is_masked(shades[1, 1])  # no pair of two of GMP's
    assert [label.get_text() for label in ax.get_yticklabels()] == ["IMP", "GMP"]


def test_dots_stand_in_order_and_what_needs_no_mask_is_a_line(ax):
    rows = [("imp", 0.5, 0.6, np.nan, np.nan), ("adaprune", 0.5, 0.8, 0.7, 0.9), ("adaprune", 0.9, 0.4, 0.4, 0.4)]
    points = pd.DataFrame(rows, columns=["way", "sparsity", "mean", "low", "high"]).assign(method=lambda of: of["way"])
    dots.draw_dots(ax, points, ["adaprune", "imp"], {"probe": 0.3, "majority": 0.2})
    drawn = {(dot.get_xdata()[0], dot.get_ydata()[0]): dot.get_alpha() for dot, *_ in ax.containers}
    assert drawn == {(0.6, 0): 1, (0.8, 1): 1, (0.4, 1): 0.4}  # the best at the top, higher sparsities pale
    assert sorted(line.get_xdata()[0] for line in ax.lines if list(line.get_ydata()) == [0, 1]) == [0.2, 0.3]
    assert [text.get_text() for text in ax.texts] == ["majority class", "probe"]


def test_head_graph_has_a_node_a_block_and_the_same_bytes_again(tmp_path):
    graph, written = graphs.head_graph(random_mask(0.2), 2), []
    for folder in ("one", "two"):
        fig, panel = plt.subplots()
        drawings.draw_head_graph(panel, graph, "adaprune", largest=1.0)
        assert sum(len(found.get_offsets()) for found in panel.collections if len(found.get_offsets()) > 1) == len(
            graph
        )
        written.append([path.read_bytes() for path in figures.save(fig, "x", tmp_path / folder, None)])
        plt.close(fig)
    assert written[0] == written[1]


def test_a_block_that_lets_nothing_pass_is_hollow(ax):
    drawings.draw_head_graph(ax, graphs.head_graph(by_hand(), 2), "imp", largest=1.0)
    fills = np.concatenate([c.get_facecolors() for c in ax.collections if len(c.get_facecolors())])
    assert (fills == 1).all(axis=1).sum() == 1


def test_differences(ax):
    """Sparsities are not mixed; the mean, its pairs as a number, hollow over filled for a single one."""
    rows = [("x", 0.5, -0.1), ("x", 0.5, -0.3), ("x", 0.2, 0.4), ("y", 0.5, 0.2)]
    rows = pd.DataFrame(rows, columns=["ablation", "sparsity", "difference"]).assign(task="t")
    dots.draw_differences(ax, rows)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["x", "x, 0.2", "y"]
    assert "sparsity 0.5 where none is named" in ax.get_xlabel()
    means, heights = ax.containers[0][0].get_data()
    assert dict(zip(heights, means, strict=True)) == pytest.approx({0: -0.2, 1: 0.4, 2: 0.2})
    assert {text.xy[1]: (text.xy[0], text.get_text()) for text in ax.texts} == {
        0: (-0.1, "2"),
        1: (0.4, "1"),
        2: (0.2, "1"),
    }
    (hollow,) = (line for line in ax.lines if line.get_markerfacecolor() == "white")
    assert sorted(hollow.get_ydata()) == [1, 2] and hollow.get_zorder() > ax.containers[0][0].get_zorder()


def test_recovery_is_the_mean_over_seeds_with_the_least_and_the_most(ax):
    runs = [(task, at, share) for task in ("cola", "rte") for at in (0.5, 0.9) for share in (at / 10, at / 5)]
    drawings.draw_recovery(ax, pd.DataFrame(runs, columns=["task", "sparsity", "share"]))
    assert [bars.get_label() for bars in ax.containers] == ["cola", "rte"]
    assert ax.containers[0][0].get_ydata() == pytest.approx([0.075, 0.135])
    low, high = ax.containers[0][1]
    assert low.get_ydata() == pytest.approx([0.05, 0.09]) and high.get_ydata() == pytest.approx([0.1, 0.18])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0.5", "0.9"]


def test_speed_has_a_line_a_way_and_a_vertical_line_for_what_has_no_mask(ax):
    rows = [("compact", 0.5, 0.9, 1.1), ("compact", 0.9, 0.6, 3.0), ("units", 0.5, 0.4, 2.0)]
    points = pd.DataFrame(rows, columns=["way", "sparsity", "share", "faster"])
    points = points.assign(rows_low=points["share"] - 0.1, rows_high=[1.0, np.nan, 0.6])
    points.loc[len(points)] = {"way": "int8", "sparsity": 0.0, "faster": 5.0}
    drawings.draw_speed(ax, points)
    compact, units = ax.containers
    assert compact.get_label() == "compact" and compact[0].get_xdata().tolist() == [1.1, 3.0]
    assert compact[0].get_ydata().tolist() == [0.9, 0.6] and units[0].get_xdata().tolist() == [2.0]
    low, high = compact[1]
    assert low.get_ydata().tolist() == pytest.approx([0.8, 0.5])
    assert high.get_ydata().tolist() == pytest.approx([1.0, 0.6])  # no interval without rows
    assert {text.get_text() for text in ax.texts} == {"0.5", "0.9", "int8"}
    assert 5.0 in [line.get_xdata()[0] for line in ax.lines if len(set(line.get_xdata())) == 1]
