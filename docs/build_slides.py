"""Makes the slides of the class from cells of the lessons: `make slides`, which runs the lessons first.

    python docs/build_slides.py [OUT] [REVEAL]

OUT: default runs/slides.html. REVEAL: a folder with reveal.js 4 (`npm pack reveal.js@4`), for a room without internet;
default: nbconvert's address. A slide starts at a cell whose metadata has ``slideshow.slide_type`` "slide" and continues
with cells that have "-". It shows what a cell prints and draws, but not its code.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from build_site import ROOT, executed, with_maths  # beside this file
from nbconvert import SlidesExporter
from nbformat import NotebookNode
from nbformat.v4 import new_notebook

LESSONS = ("1_masks", "2_learning_a_mask", "6_pruning_or_the_model")


def slides(notebooks: list[NotebookNode]) -> NotebookNode:
    """One notebook with the cells that are on slides, in order."""
    cells = [cell for book in notebooks for cell in book.cells if cell.metadata.get("slideshow", {}).get("slide_type")]
    for number, cell in enumerate(cells):
        cell["id"] = str(number)  # unique across notebooks
    return with_maths(new_notebook(cells=cells, metadata={"title": "Adapting by pruning"}))


def build(out: Path, reveal: str = "") -> int:
    """Writes the slides into ``out``; returns how many there are."""
    books = [executed(ROOT / "notebooks" / "teach" / f"{lesson}.ipynb") for lesson in LESSONS]
    show = slides(books)
    exporter = SlidesExporter(template_file=str(ROOT / "docs/site/slides.html.j2"), exclude_input=True)
    if reveal:
        if not Path(reveal, "dist", "reveal.js").is_file():
            raise SystemExit(
                f"{reveal} has no dist/reveal.js: unpack the archive of `npm pack reveal.js@4` and name its folder"
            )
        exporter.reveal_url_prefix = Path(os.path.relpath(reveal, out.parent)).as_posix()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(exporter.from_notebook_node(show)[0], encoding="utf8")
    return sum(cell.metadata["slideshow"]["slide_type"] == "slide" for cell in show.cells)


if __name__ == "__main__":
    page = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/slides.html").resolve()
    print(f"{build(page, *sys.argv[2:3])} slides: {page}")
