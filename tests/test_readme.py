"""The README's numbers are those of committed records, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

from adaprune.records import table

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf8")
COLUMNS = ("stsb", "mrpc", "sst2")


def rows() -> dict[str, list[str]]:
    """Name of a row of the results table -> its cells."""
    part = README.split("## What it reaches")[1].split("\n## ")[0]
    cells = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in part.splitlines() if "|" in line]
    return {row[0]: row[1:] for row in cells if re.match(r"^[\d.]+$", row[-1])}


def name_of(record) -> str:
    """The row of a record: method, its recipe where it matters, the sparsity where there is a mask."""
    recipe = f" {record['recipe']}" if record["method"] == "adaprune" else ""
    sparsity = f" {record['mask_sparsity']:g}" if record["mask_sparsity"] == record["mask_sparsity"] else ""
    return f"{record['method']}{recipe}{sparsity}"


def test_the_results_table_says_what_the_records_say():
    records = table(ROOT / "results" / "foundation").to_dict("records")
    expected: dict[str, dict[str, float]] = {}
    for record in records:
        expected.setdefault(name_of(record), {})[record["task"]] = record["score"]
    shown = rows()
    assert set(shown) == set(expected)
    for name, cells in shown.items():
        assert [float(cell) for cell in cells] == [pytest.approx(expected[name][task], abs=5e-4) for task in COLUMNS]


def test_links_and_figures_exist():
    targets = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README)
    local = [target for target in targets if "://" not in target]
    assert len(local) >= 5
    assert [target for target in local if not (ROOT / target).exists()] == []


@pytest.mark.parametrize("command", ["make run", "make test", "papermill notebooks/01_adapt.ipynb", "make lab"])
def test_the_commands_are_there(command):
    assert command in README
