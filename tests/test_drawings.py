"""Pictures of masks: what is drawn is the data, and the same data have the same bytes."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from adaprune import drawings, figures, graphs
from tests.test_topology import by_hand, random_mask

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


def test_degrees_end_at_one_and_bring_chance_along(ax):
    drawings.draw_degrees(ax, {"imp": np.array([3, 0, 1])}, most=10, density=0.2)
    line, chance = ax.lines
    assert line.get_xdata().tolist() == [0, 1, 3] and line.get_ydata()[-1] == 1
    assert abs(np.mean(chance.get_xdata()) - 2) < 0.1


def test_matrix_shows_every_number(ax):
    table = pd.DataFrame([[np.nan, 0.25], [0.75, np.nan]], index=["a", "b"], columns=["a", "b"])
    drawings.draw_matrix(ax, table, "overlap")
    assert sorted(text.get_text() for text in ax.texts) == ["0.25", "0.75"]


def test_head_graph_has_a_node_a_block_and_the_same_bytes_again(tmp_path):
    graph, written = graphs.head_graph(random_mask(0.2), 2), []
    for folder in ("one", "two"):
        fig, panel = plt.subplots()
        drawings.draw_head_graph(panel, graph, "adaprune", largest=1.0)
        assert sum(len(found.get_offsets()) for found in panel.collections if len(found.get_offsets()) > 1) == len(
            graph
        )
        written.append([path.read_bytes() for path in figures.save(fig, "x", tmp_path / folder)])
        plt.close(fig)
    assert written[0] == written[1]


def test_a_block_that_lets_nothing_pass_is_hollow(ax):
    drawings.draw_head_graph(ax, graphs.head_graph(by_hand(), 2), "imp", largest=1.0)
    fills = np.concatenate([c.get_facecolors() for c in ax.collections if len(c.get_facecolors())])
    assert (fills == 1).all(axis=1).sum() == 1


def test_differences_and_recovery(ax):
    rows = pd.DataFrame({"ablation": ["x", "x", "y"], "task": ["t", "t", "t"], "difference": [-0.1, -0.3, 0.2]})
    drawings.draw_differences(ax, rows)
    assert sorted(ax.containers[0][0].get_xdata()) == pytest.approx([-0.2, 0.2])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["x", "y"]
    other = plt.figure().add_subplot()
    drawings.draw_recovery(other, {"run": pd.DataFrame({"step": [1, 2], "share": [0.0, 0.5]})})
    assert other.lines[0].get_ydata().tolist() == [0, 0.5]
