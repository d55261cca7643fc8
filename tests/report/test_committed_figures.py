"""No committed figure is stale: each is made by a notebook on committed records, and again it is the same."""

import hashlib
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import pytest
from PIL import Image

from adaprune import topology
from adaprune.report import figures
from adaprune.runs import read_record

matplotlib.use("Agg")
ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "figures" / "README.md").read_text(encoding="utf8")
ROWS = [
    [cell.strip() for cell in line.strip("|\n").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| figures")
]
PICTURES = sorted((ROOT / "figures").rglob("*.svg"))
DUBLIN = "{http://purl.org/dc/elements/1.1/}"
IDS = re.compile(r"(?<=[#\"])[a-z]{1,2}[0-9a-f]{10}")  # hashes of the coordinates
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


def said(path: Path) -> dict[str, str]:
    """The metadata of an SVG: Title, Description, Source."""
    found = ET.parse(path).iter()
    return {of.tag.removeprefix(DUBLIN).capitalize(): of.text for of in found if of.tag.startswith(DUBLIN) and of.text}


def parameters(text: str) -> dict:
    """The parameters of a row; a list where there is a comma, or where the notebook has one."""
    given = dict(word.split("=") for word in text.split())
    for name in {"tasks", "sparsities", "methods"} & given.keys():
        given[name] = [float(w) if name == "sparsities" else w for w in given[name].split(",")]
    return given


def execute(notebook: str, **given) -> None:
    """The notebook's code in this process: a kernel would take longer to start than it to draw."""
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf8"))["cells"]
    shell = SimpleNamespace(InteractiveTB=SimpleNamespace(set_mode=lambda mode: None))
    space = {"__name__": "__main__", "get_ipython": lambda: shell, "display": lambda *shown: None}
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        exec(compile("".join(cell["source"]), notebook, "exec"), space)
        if "parameters" in cell["metadata"].get("tags", []):
            assert given.keys() <= space.keys()
            space.update(given)


def alike(one: str, other: str) -> bool:
    """The same drawing: all but numbers the same, and those to a tenth of a point, for processors round otherwise."""
    one, other = (IDS.sub("", text) for text in (one, other))
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (one, other)]
    return NUMBER.sub("", one) == NUMBER.sub("", other) and numbers[0] == pytest.approx(numbers[1], abs=0.1)


def test_every_file_is_of_one_row():
    named = [f"{folder}/{name}" for folder, _, _, names in ROWS for name in names.split()]
    there = {path.relative_to(ROOT).with_suffix("").as_posix() for path in (ROOT / "figures").rglob("*.*")}
    assert len(named) == len(set(named)) and set(named) == there - {"figures/README"}
    for path in PICTURES:
        assert path.with_suffix(".png").is_file()


def test_made_again_they_are_the_same(tmp_path, monkeypatch):
    """Only SVG is drawn; its PNG says which SVG it is the same drawing as."""
    for name in ("results", "benchmarks", "adaprune"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "FORMATS", ("svg",))
    report, known = topology.report, {}

    def once(mask, *rest, **more):  # two rows measure the zoo's masks
        key = tuple((name, int(kept.sum())) for name, kept in getattr(mask, "masks", mask).items())
        return known[key] if key in known else known.setdefault(key, report(mask, *rest, **more))

    monkeypatch.setattr(topology, "report", once)
    listed = {f"{folder}/{name}" for folder, _, _, names in ROWS for name in names.split()}
    for folder, notebook, given, names in ROWS:
        if notebook == "06_recipe_study":
            continue  # tests/test_study.py makes it
        execute(notebook, **parameters(given), figures_dir=folder)
        plt.close("all")
        for name in names.split():
            suffix = "md" if name == "claims" or name.startswith("table_") else "svg"
            fresh, committed = (root / folder / f"{name}.{suffix}" for root in (tmp_path, ROOT))
            texts = [path.read_text(encoding="utf8") for path in (fresh, committed)]
            assert texts[0] == texts[1] if suffix == "md" else alike(*texts), f"{committed}: {notebook} draws another"
    drawn = (path for path in (tmp_path / "figures").rglob("*") if path.suffix in (".svg", ".md"))
    drawn = {path.relative_to(tmp_path).with_suffix("").as_posix() for path in drawn}
    of_the_zoo = {f"figures/topology_long/{name}" for name in ("extra_degrees", "extra_head_graphs")}  # as in topology
    assert drawn - of_the_zoo <= listed  # none is left out


def test_a_changed_number_or_word_is_another_drawing():
    path = PICTURES[0].read_text(encoding="utf8")
    assert alike(path, path)
    moved = re.sub(r"L (\d+)\.", lambda found: f"L {int(found[1]) + 1}.", path, count=1)
    assert moved != path and not alike(path, moved)
    assert not alike(path, path.replace("runs", "walks", 1))


def test_each_png_is_the_same_drawing_as_its_svg():
    for path in PICTURES:
        text = Image.open(path.with_suffix(".png")).text
        assert text["Source"] == hashlib.sha256(path.read_bytes()).hexdigest(), path
        assert text["Description"] == said(path)["Description"]


def test_all_lead_back_to_their_records():
    """What is said of runs, seeds and commits is what their records say."""
    of_records = [path for path in PICTURES if "adaprune/zoo" not in said(path)["Description"]]
    assert len(of_records) > 5
    for path in of_records:
        told = said(path)
        files = told["Source"].split("\n")
        timed = [file for file in files if file.startswith("benchmarks/")]  # whose records are of another kind
        files = [file for file in files if file not in timed]
        records = [read_record(ROOT / file) for file in files]
        line, *named_too = told["Description"].split("; and ")
        assert named_too == timed and all((ROOT / file).is_file() for file in timed)
        notebook = re.match(r"Made by notebooks/(\w+)\.ipynb from ", line)[1]
        (row,) = (row for row in ROWS if path.parent == ROOT / row[0] and path.stem in row[3].split())
        assert row[1] == notebook
        assert f": {len(files)} runs, " in line and len(set(files)) == len(files)
        seeds = sorted({record["run"]["seed"] for record in records})
        spans = [", ".join(map(str, seeds)), f"{seeds[0]} to {seeds[-1]}"]
        assert re.search(r"seeds? ([^;]+);", line)[1] in spans
        commits = {record["environment"]["git_commit"][:7] for record in records}
        named = re.search(r"commit of the records (.*)$", line)[1]
        assert commits >= {commit[:7] for commit in re.split(r", | and ", named) if "more" not in commit}


def test_what_is_drawn_of_the_zoo_names_its_masks():
    for path in (path for path in PICTURES if "adaprune/zoo" in said(path)["Description"]):
        masks = [ROOT / name for name in said(path)["Source"].split("\n")]
        assert masks and all(mask.is_file() for mask in masks)


def test_every_figure_of_a_notebook_says_what_it_is_made_from():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        code = "".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])
        saved = re.findall(r"figures\.save\(fig, .*?, figures_dir, (\S+)", code, re.S)
        assert len(saved) == code.count("figures.save(") and "None" not in saved, path.name
