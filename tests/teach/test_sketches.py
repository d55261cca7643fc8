"""Pictures of the walkthroughs: what is drawn is the data."""

import math
import re

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgba

from adaprune.report import figures
from adaprune.teach import sketches, slider

matplotlib.use("Agg")


@pytest.fixture
def ax():
    yield plt.figure(layout="constrained").add_subplot()
    plt.close("all")


def test_cells_show_every_number_and_fade_the_removed(ax):
    sketches.draw_cells(ax, np.array([[0.5, -2], [3, 1]]), np.array([[False, True], [True, True]]))
    assert [text.get_text() for text in ax.texts] == ["0.5", "-2", "3", "1"]
    assert [text.get_color() == "black" for text in ax.texts] == [False, True, True, True]
    assert ax.collections[0].get_array().ravel().tolist() == [0, 1, 1, 1]


def test_dots_are_the_runs_in_the_order_given(ax):
    rows = pd.DataFrame({"way": ["b", "a", "b"], "method": ["random", "imp", "random"], "value": [20, 90, 30]})
    sketches.draw_dots(ax, rows, "good", most=96, chance=48)
    places = [(*line.get_xdata(), *line.get_ydata()) for line in ax.lines[:3]]
    assert places == [(20, 0), (90, 1), (30, 0)] and list(ax.lines[3].get_xdata()) == [48, 48]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "a"]


def test_sigmoids_and_slopes(ax):
    sketches.draw_sigmoids(ax, [1, 100])
    assert np.interp(0, *ax.lines[0].get_data()) == pytest.approx(0.5)
    other = plt.figure().add_subplot()
    sketches.draw_sigmoids(other, [1, 100], slope=True)
    assert [line.get_ydata().max() for line in other.lines[:2]] == pytest.approx([0.25, 25])
    assert len(ax.get_legend().get_texts()) == 2 and other.get_legend() is None


def test_a_path_marks_where_it_crosses(ax):
    sketches.draw_path(ax, {"one": [3, 1, 1, 4], "two": [5, 5, 5, 5]}, [0, 2, 2, 2])
    triangles = {
        line.get_marker(): line.get_xdata().tolist()
        for line in ax.lines
        if line.get_marker() in "v^" and len(line.get_xdata())
    }
    assert triangles == {"v": [1], "^": [3]}


def test_reach_has_a_marker_a_task(ax):
    rows = pd.DataFrame(
        [("slow", "t", 1e-9), ("slow", "u", 1e-8), ("fast", "t", 1.0)], columns=["step", "task", "distance"]
    )
    sketches.draw_reach(ax, rows, needed=0.01)
    assert ax.lines[0].get_xdata().tolist() == [1e-9, 1.0] and ax.lines[0].get_ydata().tolist() == [0, 1]
    assert ax.get_xscale() == "log"


def test_gap_constants_and_ranking(ax):
    sketches.draw_gap(ax, [1, 10], np.array([[0.2, 0.4], [0.1, 0.1]]), np.array([5, 1]))
    assert ax.lines[0].get_ydata() == pytest.approx([0.3, 0.1])
    one, other = (plt.figure().add_subplot() for _ in range(2))
    sketches.draw_constants(one, np.array([1.0, 10]), {0.1: np.array([1, 2]), 1.0: np.array([3, 4])}, vacuous=20)
    assert [line.get_ydata()[-1] for line in one.lines] == [2, 4, 20]
    sketches.draw_ranking(other, np.array([0.1, 0.2, 0.2, 0.7]), np.array([0.1, 0.1, 0.7]))
    (dots,) = (found for found in other.collections if isinstance(found, PathCollection))
    assert dots.get_offsets().tolist() == [[1, 0.1], [4, 0.7]]
    assert dots.get_sizes()[0] > dots.get_sizes()[1]


def test_a_start_is_on_its_curve(ax):
    sketches.draw_start(ax, t=100, theta=0.01)
    assert ax.lines[1].get_ydata() == pytest.approx([1 / (1 + math.exp(-1))])
    other = plt.figure().add_subplot()
    sketches.draw_start(other, t=1e5, theta=0.01, slope=True)  # e^-1000 is 0: it is drawn at the lower edge
    assert other.lines[1].get_ydata() == [1e-9] and other.get_title() == "slope at 0.01: 0"


def test_room_goes_from_the_floor_to_fine_tuning(ax):
    rows = pd.DataFrame({"floor": [0.2, 0.5], "tuned": [0.6, 0.9], "mask": [0.5, 0.8]}, index=["a", "b"])
    sketches.draw_room(ax, rows, {"mask": "adaprune"})
    (bands,) = (found for found in ax.collections if isinstance(found, LineCollection))
    assert [segment.tolist() for segment in bands.get_segments()] == [[[0.2, 0], [0.6, 0]], [[0.5, 1], [0.9, 1]]]
    assert [line.get_xdata().tolist() for line in ax.lines] == [[0.2, 0.5], [0.6, 0.9], [0.5, 0.8]]


def test_a_slider_holds_every_picture_and_shows_one():
    pictures = {name: plt.figure() for name in ("t = 1", "t < 2", "t = 3")}
    html = slider(pictures, start=1).data
    assert re.findall(r'alt="(.*?)" style="display: (\w+)"', html) == [
        ("t = 1", "none"), ("t &lt; 2", "block"), ("t = 3", "none")]  # fmt: skip
    assert 'max="2" value="1"' in html and "<b>t &lt; 2</b>" in html and not plt.get_fignums()
    for start in (3, -1):
        with pytest.raises(ValueError, match=r"one of the 3 pictures, 0 \.\.\. 2, got"):
            slider(pictures, start=start)


INTO, OUT = np.array([[1, 1], [0, 0]], bool), np.array([[1, 1], [0, 1]], bool)


def drawn(ax):
    lines = [len(found.get_segments()) for found in ax.collections if isinstance(found, LineCollection)]
    hollow = sum(
        (found.get_facecolors() == to_rgba("white")).all(axis=1).sum()
        for found in ax.collections
        if isinstance(found, PathCollection)
    )
    return lines, hollow


def test_wires_are_the_kept_connections(ax):
    sketches.draw_wires(ax, [INTO, OUT], names=("x", "n", "y"))
    assert drawn(ax) == ([2, 0, 3, 0], 0)  # solid and dotted of each matrix
    assert sum(len(found.get_offsets()) for found in ax.collections if isinstance(found, PathCollection)) == 6


def test_wires_on_no_path_are_dotted_and_their_units_hollow(ax):
    path = np.array([[1, 0], [0, 0]], bool)
    sketches.draw_wires(ax, [INTO, OUT], [INTO, path])
    assert drawn(ax) == ([2, 0, 1, 2], 2)  # neuron 1 and output 1


def test_the_same_wires_have_the_same_bytes(tmp_path):
    written = []
    for name in ("one", "two"):
        fig, panel = plt.subplots()
        sketches.draw_wires(panel, [INTO, OUT])
        written.append([path.read_bytes() for path in figures.save(fig, "x", tmp_path / name, None)])
        plt.close(fig)
    assert written[0] == written[1]
