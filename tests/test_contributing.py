"""CONTRIBUTING.md is exact: a copy of the suite that follows it to the letter has the method, the task, the figure."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tests import small_data

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf8")
COPIED = ("adaprune", "tests", "notebooks", "sweeps", "pyproject.toml", "ARCHITECTURE.md", "README.md", "docs")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def follow(diff: str, root: Path) -> None:
    """Does what the page says of a diff: lines with + go under the line before them, lines with - leave."""
    for part in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
        name, *lines = part.rstrip("\n").split("\n")
        text, place = (root / name).read_text(encoding="utf8").split("\n"), 0
        for line in lines:
            if line.startswith("+"):
                text.insert(place, line[1:])
                place += 1
                continue
            assert text.count(line[1:]) == 1, f"{name} has not one line {line[1:]!r}"
            place = text.index(line[1:]) + line.startswith(" ")
            if line.startswith("-"):
                del text[place]
        (root / name).write_text("\n".join(text), encoding="utf8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The suite with everything done that the page says."""
    root = tmp_path_factory.mktemp("copy")
    for name in COPIED:
        source = ROOT / name
        leave = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(source, root / name, ignore=leave) if source.is_dir() else shutil.copy(source, root / name)
    for block in blocks("python"):
        first, rest = block.split("\n", 1)
        if first == "# mine.py":  # needs no copy
            continue
        path = root / first.removeprefix("# ")
        if path.suffix == ".ipynb":
            notebook = nbformat.read(path, as_version=4)
            notebook.cells.append(nbformat.v4.new_code_cell(rest.rstrip("\n"), id=str(len(notebook.cells))))
            nbformat.write(notebook, path)
        else:
            before = path.read_text(encoding="utf8") + "\n\n" if path.exists() else ""
            path.write_text(before + rest, encoding="utf8")
    for diff in blocks("diff"):
        follow(diff, root)
    printf, _ = blocks("sh")[0].strip().split("\n")
    subprocess.run(printf, shell=True, check=True, cwd=root)
    return root


def test_the_page_is_one_screen_of_each():
    assert re.findall("^## (.*)", PAGE, re.MULTILINE) == ["Add a method", "Add a task", "Add a figure"]
    (mine, built_in, figure, _) = blocks("python")
    for method in (mine, built_in):
        body = method[method.index("def smallest") :].strip().splitlines()
        assert len(body) <= 12
    assert len(figure.splitlines()) <= 10


MINE = """
import json, sys
from adaprune import Method, Run, adapt
from adaprune.runs import METHODS
from mine import smallest

assert "smallest" not in METHODS
run = Run(task="ten", model=sys.argv[1], epochs=1, max_length=16, results_dir="out")
record = adapt(run, method=Method(smallest, line="the smallest weights stay, a control for magnitude"))
assert record["run"]["method"] == "smallest" and record["mask"]["sparsity"] == 0.5 and record["weights_intact"]
"""

USE = """
import pathlib, sys
import matplotlib.pyplot as plt
import pandas as pd
from adaprune import Run, adapt, table
from adaprune.report import drawings
from tests import test_api, test_readme
from tests.data import test_tasks
from tests.report import test_figures, test_sweeps
from tests.runs import test_method

test_figures.test_each_method_has_one_colour_and_one_marker_which_it_says_itself()
test_figures.test_colours_differ_in_greyscale()
test_sweeps.test_committed_tables_hold_what_they_promise()
test_method.test_every_method_of_the_suite_says_all_about_itself()
test_api.test_names_and_signatures_are_those_written_down()
test_readme.test_the_table_of_methods_is_what_they_say_of_themselves()
test_tasks.test_glue_has_the_nine_tasks_with_official_metrics()

rows = {"sentence1": [f"a film {n}" for n in range(40)], "sentence2": ["a movie", "a cat"] * 20, "label": [1, 0] * 20}
pathlib.Path("paws").mkdir()
for split in ("train", "validation"):
    pd.DataFrame(rows).to_parquet(f"paws/{split}.parquet")
run = Run(task="paws", method="smallest", model=sys.argv[1], data_dir=".", epochs=1, max_length=16, results_dir="out")
record = adapt(run)
assert set(record["metrics"]["validation"]) == {"accuracy", "f1"} and record["mask"]["sparsity"] == 0.5
ax = drawings.draw_cost(plt.subplots()[1], table("out"))
assert list(ax.lines[0].get_ydata()) == [record["metrics"]["validation"]["accuracy"]]
"""


def test_a_method_of_ones_own_needs_no_change(tmp_path, tiny_model_dir):
    """The page's first file beside the package as it is."""
    first, rest = blocks("python")[0].split("\n", 1)
    (tmp_path / first.removeprefix("# ")).write_text(rest, encoding="utf8")
    small_data.ten_sentences(tmp_path / "ten")
    done = run_python(MINE, tiny_model_dir, tmp_path, f"{ROOT}{os.pathsep}{tmp_path}")
    assert done.returncode == 0, done.stderr[-3000:]


def test_who_follows_it_has_a_method_a_task_and_a_figure(copy, tiny_model_dir, tmp_path):
    """One process with the copy's package: the tests that the page's changes touch, a run, its picture."""
    names = ["adaprune/methods", "adaprune/report/drawings.py", "adaprune/data/tasks.py"]
    for command in (["check", *names, "notebooks/00_start_here.ipynb"], ["format", "--check", *names]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    done = run_python(USE, tiny_model_dir, tmp_path, str(copy))
    assert done.returncode == 0, done.stderr[-3000:]


def run_python(code: str, model: Path, folder: Path, path: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": path, "MPLBACKEND": "agg"}
    command = [sys.executable, "-c", code, str(model)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
