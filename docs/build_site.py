"""Builds the static site: README as front page, all pages it links to, executed notebooks, all records, docstrings.

    python docs/build_site.py [OUT]        OUT: default runs/html; `make site` runs the small notebooks first

Every file keeps its place in the repository, so that links keep working; .md and .ipynb become .html. Files that a
page links to are included. Nothing is downloaded, neither here nor by the pages. notebooks.zip contains the pages of
all notebooks.
"""

from __future__ import annotations

import os
import pkgutil
import re
import shutil
import sys
import warnings
import zipfile
from html import unescape
from pathlib import Path
from urllib.parse import quote, unquote

import nbformat
import pdoc
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook
from results_page import page_of_records  # beside this file

import adaprune

ROOT = Path(__file__).resolve().parents[1]
NOT_RUN = (
    "*Shown without results: this notebook was not run when these pages were built. For figures from the project's "
    "own runs, see the table on [the first page]({readme}).*"
)
MATHS = re.compile(r"(```.*?```|`[^`]*`)|\$\$(.+?)\$\$|\$(?=\S)([^$]+?)(?<=\S)\$", re.DOTALL)
FROM_NET = re.compile(r"!\[([^\]]*)\]\(https?:[^)]*\)")  # README's badges: the site shows their texts instead
HEADING = re.compile(r'(<h\d [^>]*)id="[^"]*"([^>]*>)(.*?)<a class="anchor-link" href="[^"]*"')
COPIES = {"01_adapt": "runs/make_run_adaprune.ipynb"}  # copies that `make` writes under another name


def build(out: Path) -> list[Path]:
    """Writes the site into ``out``, which is emptied first; returns the sources of its pages and files."""
    shutil.rmtree(out, ignore_errors=True)
    exporter = html_exporter()
    ahead, done = [ROOT / "README.md", ROOT / "results", *sorted((ROOT / "notebooks").rglob("[0-9]*.ipynb"))], []
    while ahead:
        source = ahead.pop(0)
        if source in done:
            continue
        ahead += put(exporter, source, out)
        done.append(source)
    pack(out)
    pdoc.render.configure(docformat="google", template_directory=ROOT / "docs/site")
    warnings.filterwarnings("ignore", "Error parsing type annotation")  # of names for type checkers only
    warnings.filterwarnings("ignore", "The module specification")  # adapt is a module and a function
    inside = (module.name for module in pkgutil.walk_packages(adaprune.__path__, "adaprune."))
    public = (
        name for name in inside if name != "adaprune.runs.schema"
    )  # its classes derive from private ones, which have no page
    pdoc.pdoc("adaprune", *public, "!adaprune.runs.schema", output_directory=out / "api")
    return done


def html_exporter() -> HTMLExporter:
    """The exporter that makes the site's pages from notebooks."""
    return HTMLExporter(template_file=str(ROOT / "docs/site/page.html.j2"))


def put(exporter: HTMLExporter, source: Path, out: Path) -> list[Path]:
    """Writes the page of one source into the site ``out``, or copies the file; returns what it links to."""
    target = out / place(source).relative_to(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not is_page(source):
        shutil.copyfile(source, target)
        return []
    html, linked = with_links(render(exporter, source), source)
    target.write_text(html if source.suffix == ".ipynb" else with_anchors(html), encoding="utf8")
    return linked


def pack(out: Path) -> Path:
    """Packs the pages of all notebooks into notebooks.zip, to pass on; each page is self-contained."""
    path = out / "notebooks.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for one in sorted((out / "notebooks").rglob("*.html")):
            file.write(one, one.relative_to(out))
    return path


def is_page(source: Path) -> bool:
    """Whether a source becomes a page of the site; any other file is copied unchanged."""
    return source.is_dir() or source.suffix in (".md", ".ipynb")


def place(source: Path) -> Path:
    """The path of a source's page, or of the copied file."""
    if source.is_dir():
        return source / "index.html"
    if source.name == "README.md":
        return source.with_name("index.html")
    return source.with_suffix(".html") if is_page(source) else source


def render(exporter: HTMLExporter, source: Path) -> str:
    """The page of a notebook, a text or a folder; its links are still those of the source."""
    if source.suffix == ".ipynb":
        notebook = with_maths(executed(source))
    elif source == ROOT / "results":
        notebook = page(page_of_records(ROOT))
    elif source.is_dir():
        names = sorted(path.name for path in source.iterdir() if path.name[0] not in "._")
        notebook = page("\n".join([f"# {source.relative_to(ROOT)}", "", *(f"- [{name}]({name})" for name in names)]))
    else:
        notebook = page(FROM_NET.sub(r"\1", source.read_text(encoding="utf8")))
    up = os.path.relpath(ROOT, source if source.is_dir() else source.parent)
    heading = notebook.cells[0].source.lstrip("# ").splitlines()[0]
    return exporter.from_notebook_node(notebook, {"metadata": {"name": heading}, "up": up})[0]


def with_anchors(html: str) -> str:
    """The page, its headings named as GitHub names those of Markdown files, which is how our links name them."""

    def named(found: re.Match) -> str:
        before, after, text = found.groups()
        words = unescape(re.sub(r"<[^>]*>", "", text)).strip().lower()
        name = re.sub(r"[^\w -]", "", words).replace(" ", "-")
        return f'{before}id="{name}"{after}{text}<a class="anchor-link" href="#{name}"'

    return HEADING.sub(named, html)


def page(text: str) -> NotebookNode:
    """A notebook with a single text cell, so that all pages look alike."""
    return new_notebook(cells=[new_markdown_cell(text)])


def executed(source: Path) -> NotebookNode:
    """The newest copy of a notebook in runs/ with exactly the same cells; without one, the notebook and a note."""
    notebook = nbformat.read(source, as_version=4)
    inside = source.relative_to(ROOT / "notebooks")
    names = [f"runs/site/{inside}", f"runs/{inside.name}", COPIES.get(source.stem, "")]
    copies = [path for path in (ROOT / name for name in names if name) if path.is_file()]
    for path in sorted(copies, key=lambda path: -path.stat().st_mtime):
        copy = nbformat.read(path, as_version=4)
        own = [cell.source for cell in copy.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
        if own == [cell.source for cell in notebook.cells]:
            return copy
    readme = os.path.relpath(ROOT / "README.md", source.parent)
    notebook.cells.insert(1, new_markdown_cell(NOT_RUN.format(readme=readme)))
    return notebook


def with_maths(notebook: NotebookNode) -> NotebookNode:
    """The notebook, its formulas turned from LaTeX into MathML, which browsers draw without any script.

    A formula on a line of its own is in an element that scrolls where the screen is narrower.
    """

    def drawn(found: re.Match) -> str:
        code, block, inline = found.groups()
        if block:
            return f'<span class="formula">{convert(block.strip(), display="block")}</span>'
        return code or convert(inline.strip(), display="inline")

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = MATHS.sub(drawn, cell.source)
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                output.data["text/markdown"] = MATHS.sub(drawn, output.data["text/markdown"])
    return notebook


def with_links(html: str, source: Path) -> tuple[str, list[Path]]:
    """The page with links to pages instead of sources, and what it links to in the repository."""
    folder, linked = (source if source.is_dir() else source.parent), []

    def follow(found: re.Match) -> str:
        attribute, name, anchor = found.groups()
        named = Path(os.path.normpath(folder / unquote(name)))
        readme = named / "README.md"
        named = readme if readme.is_file() else named
        if not named.is_relative_to(ROOT) or not named.exists():
            return found[0]  # a page of the site itself, or a broken link, which check_site.py reports
        linked.append(named)
        there = os.path.relpath(place(named), folder)
        return f'{attribute}="{quote(Path(there).as_posix())}{anchor or ""}"'

    return re.sub(r'\b(href|src)="([^"#:]+)(#[^"]*)?"', follow, html), linked


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/html").resolve()
    pages = [source for source in build(folder) if is_page(source)]
    print(f"{len(pages)} pages and the API's docstrings: {folder / 'index.html'}")
