"""The static site: pages with links between them as in the repository, and the check that fails on a wrong one."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest import mock
from urllib.parse import unquote

import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[1]
EACH_RUN = ("seed", "score", "minutes")  # what runs of one setting differ in


def load(name: str):
    """A module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with mock.patch.object(sys, "path", [str(ROOT / "docs"), *sys.path]):  # as where one of them runs as a script
        spec.loader.exec_module(module)
    return module


check_site = load("check_site")


@pytest.fixture
def site(tmp_path):
    def write(body: str) -> tuple[int, list[str]]:
        (tmp_path / "a.html").write_text(body, encoding="utf8")
        (tmp_path / "b.html").write_text('<h2 id="here">b</h2>', encoding="utf8")
        return check_site.check(tmp_path)

    check_site.tags.cache_clear()
    check_site.anchors.cache_clear()
    return write


@pytest.mark.parametrize(
    "tag",
    ['<a href="b.html#here">', '<a href="#">', '<a href="b.html?q#here">', '<img src="data:image/png;base64,AA==">',
     '<a href="https://example.org/missing">', '<a href="b%2Ehtml">'],
)  # fmt: skip
def test_good_links(site, tag):
    assert site(tag) == (1, [])


@pytest.mark.parametrize(
    ("tag", "told"),
    [
        ('<a href="c.html">', "a.html links to c.html, which is not there"),
        ('<a href="b.html#there">', "a.html links to b.html#there, which has no such place"),
        ('<a href="#there">', "a.html links to #there, which has no such place"),
        ('<img src="c.svg">', "a.html links to c.svg, which is not there"),
        ('<script src="https://example.org/x.js"></script>', "a.html loads https://example.org/x.js from the net"),
        ('<link href="//example.org/x.css">', "a.html loads //example.org/x.css from the net"),
    ],
)
def test_wrong_links(site, tag, told):
    assert site(tag) == (1, [told])


def test_pages_follow_links(monkeypatch, tmp_path):
    for needed in ("pdoc", "nbconvert"):
        pytest.importorskip(needed, reason="needs the extra adaprune[site]")
    build_site = load("build_site")
    monkeypatch.setattr(build_site, "ROOT", tmp_path)
    for name in (
        "docs/a.md",
        "sweeps/x.tsv",
        "sweeps/README.md",
        "LICENSE",
        "README.md",
        "data/d.csv",
        "docs/b+c.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    html = "".join(
        f'<a href="{name}">'
        for name in (
            "a.md#b",
            "../README.md",
            "../sweeps",
            "../LICENSE",
            "../data",
            "b%2Bc.json",
            "none.md",
            "https://a.b/c.md",
            "#a",
        )
    )
    found, linked = build_site.with_links(html, tmp_path / "docs/a.md")
    expected = ["a.html#b", "../index.html", "../sweeps/index.html", "../LICENSE", "../data/index.html", "b%2Bc.json"]
    expected += ["none.md", "https://a.b/c.md", "#a"]
    assert found == "".join(f'<a href="{name}">' for name in expected)
    names = ["docs/a.md", "README.md", "sweeps/README.md", "LICENSE", "data", "docs/b+c.json"]
    assert linked == [tmp_path / name for name in names]


def test_pictures_from_the_net_become_their_words(monkeypatch, tmp_path):
    for needed in ("pdoc", "nbconvert", "latex2mathml"):
        pytest.importorskip(needed, reason="needs the extra adaprune[site]")
    build_site = load("build_site")
    monkeypatch.setattr(build_site, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text("# a\n\n[![paper](https://example.org/x.svg)](b.md) ![own](figures/c.svg)")
    exporter = mock.Mock(from_notebook_node=lambda notebook, resources: (notebook.cells[0].source, resources))
    assert build_site.render(exporter, tmp_path / "README.md").endswith("[paper](b.md) ![own](figures/c.svg)")


def test_headings_of_texts_are_named_as_github_names_them(tmp_path):
    for needed in ("pdoc", "nbconvert", "latex2mathml"):
        pytest.importorskip(needed, reason="needs the extra adaprune[site]")
    build_site = load("build_site")
    (tmp_path / "a.md").write_text("# One\n\n## What it's for: `code` at |w| < 1\n")
    with mock.patch.object(build_site, "ROOT", tmp_path):
        html = build_site.render(build_site.HTMLExporter(template_name="basic"), tmp_path / "a.md")
    html = build_site.with_anchors(html)
    headings = BeautifulSoup(html, "html.parser").find_all(["h1", "h2"])
    assert [of["id"] for of in headings] == ["one", "what-its-for-code-at-w--1"]
    assert [of.find(class_="anchor-link")["href"] for of in headings] == ["#one", "#what-its-for-code-at-w--1"]


def test_a_formula_on_its_own_line_can_scroll_and_code_is_left_alone():
    for needed in ("pdoc", "nbconvert", "latex2mathml"):
        pytest.importorskip(needed, reason="needs the extra adaprune[site]")
    build_site = load("build_site")
    notebook = build_site.page("With $a_1$:\n\n$$ a + b $$\n\n`$c$`")
    text, block, code = build_site.with_maths(notebook).cells[0].source.split("\n\n")
    assert text.startswith("With <math") and 'display="inline"' in text
    assert re.fullmatch(r'<span class="formula"><math .*display="block".*</math></span>', block) and code == "`$c$`"
    style = (ROOT / "docs" / "site" / "page.html.j2").read_text()
    assert re.search(r"\.formula \{[^}]*overflow: auto hidden", style)


def test_the_command_fails_on_a_broken_link(site, tmp_path):
    site('<a href="c.html">')
    command = [sys.executable, ROOT / "docs" / "check_site.py", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.endswith("1 links, 1 wrong\n"), done.stderr


def test_notebooks_are_packed_as_pages(monkeypatch, tmp_path):
    for needed in ("pdoc", "nbconvert"):
        pytest.importorskip(needed, reason="needs the extra adaprune[site]")
    for name in ("index.html", "notebooks/b.html", "notebooks/teach/1.html", "notebooks/c.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    with zipfile.ZipFile(load("build_site").pack(tmp_path)) as packed:
        assert packed.namelist() == ["notebooks/b.html", "notebooks/teach/1.html"]
        assert packed.read("notebooks/b.html") == b"notebooks/b.html"


def test_formulas_become_mathml_and_code_and_prices_stay():
    for needed in ("pdoc", "nbconvert", "latex2mathml"):
        pytest.importorskip(needed, reason="needs the extra adaprune[site]")
    build_site = load("build_site")
    texts = ["so $x^2$ is", "$$ a_i $$", "`$HOME` and `$x`", "costs 3 $ or 4 $"]
    drawn = [cell.source for cell in build_site.with_maths(build_site.new_notebook(
        cells=[build_site.new_markdown_cell(text) for text in texts])).cells]  # fmt: skip
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in drawn[0] and 'display="inline"' in drawn[0]
    assert "<msub><mi>a</mi><mi>i</mi></msub>" in drawn[1] and 'display="block"' in drawn[1]
    assert drawn[2:] == texts[2:]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """The rows of a results page over the runs of STS-B of three folders, one of base size, and the zoo's cards."""
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(ROOT / "adaprune/zoo", root / "adaprune/zoo", ignore=shutil.ignore_patterns("*.safetensors"))
    for name, some in {"ablations": "stsb", "recipe": "stsb", "zoo": "stsb", "gain_base": "sst2"}.items():
        (root / "results" / name).mkdir(parents=True)
        for path in (ROOT / "results" / name).glob(f"task~{some}*.json"):
            shutil.copy(path, root / "results" / name)
    page = BeautifulSoup(load("results_page").page_of_records(root), "html.parser")
    rows = page.select("#records tbody tr")
    assert len(rows) == len(list(root.glob("results/*/*.json"))) > 20
    return rows


def test_each_record_has_a_row_with_its_own_numbers(records):
    for row in records:
        record = json.loads((ROOT / "results" / unquote(row.find("a", string="record")["href"])).read_text())
        found = {cell["class"][0]: cell.text for cell in row.select("td[class]")}
        metrics = record["metrics"]
        assert found["score"] == f"{metrics['validation'][metrics['primary']]:.3f}"
        assert found["seed"] == str(record["run"]["seed"])
        assert found["sparsity"] == (f"{record['mask']['sparsity']:.4g}" if record["mask"] else "")
        assert ("taught" in found["settings"]) == bool(record["run"]["teacher"])


def test_the_zoos_masks_stand_at_their_runs_alone(records):
    masks = [row for row in records if row.find("a", string="mask")]
    found = {Path(row.find("a", string="mask")["href"]).stem: row.select_one(".folder").text for row in masks}
    assert found == {"stsb": "zoo", "stsb-0.9": "zoo", "sst2-all-mpnet-base-v2": "gain_base"} and len(masks) == 3
    assert {row.select_one(".seed").text for row in masks} == {"0"}


def test_seeds_of_a_setting_are_counted_though_each_has_a_teacher_of_its_own(records):
    found = [{cell["class"][0]: cell.text for cell in row.select("td[class]")} for row in records]
    taught = [row for row in found if row["folder"] == "recipe" and "taught" in row["settings"]]
    for row in taught:
        alike = {
            other["seed"]
            for other in taught
            if {**other, **dict.fromkeys(EACH_RUN)} == {**row, **dict.fromkeys(EACH_RUN)}
        }
        assert row["seeds"] == str(len(alike))
    assert "3" in {row["seeds"] for row in taught}
