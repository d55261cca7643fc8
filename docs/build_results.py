"""Fills the tables of README.md and docs/results.md from the records in results/, so that no number is typed by hand.

    python docs/build_results.py [--check]

A table is between `<!-- records: NAME -->` and `<!-- end -->`, where NAME is a folder of results/, or `gain` for the
share of fine-tuning's gain that is kept. With --check nothing is written, and the exit code is 1 if a page is out of
date.
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from adaprune.report import comparison, gains
from adaprune.report.names import WRITTEN
from adaprune.runs import table

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/results.md")
PLACE = re.compile(r"(<!-- records: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
WITHOUT_MASK = -1.0  # sorts before every sparsity
CHOSEN_ON = {
    "steps": "selection_score",
    "heads": "selection_score",
}  # settings were chosen by it: held-out rows; all others: dev rows


def scores(name: str) -> str:
    """Every way in a folder, by sparsity and task: means over seeds, with the number of seeds in brackets."""
    runs = comparison.with_ways(table(ROOT / "results" / name))
    runs = runs.assign(sparsity=runs["sparsity"].fillna(WITHOUT_MASK))
    if name == "steps":  # about their number: the usual one is named too
        usual = (runs["epochs"] > 0) & ~runs["way"].str.contains(" epochs ")
        runs["way"] = runs["way"].where(~usual, runs["way"] + runs["epochs"].map(" epochs {:g}".format))
    columns = runs.groupby(["task", "max_train_examples"]).size().index
    several = len({model for model in runs["model"]}) > 1
    rows = []
    groups = sorted(
        runs.groupby(["model", "sparsity", "way"]), key=lambda found: (*found[0][:2], _by_number(found[0][2]))
    )
    for (model, sparsity, way), group in groups:
        label = f"{way} ({Path(model).name})" if several else way
        cells = [
            group.loc[(group["task"] == task) & (group["max_train_examples"] == most), CHOSEN_ON.get(name, "score")]
            for task, most in columns
        ]
        rows.append([label, "-" if sparsity == WITHOUT_MASK else f"{sparsity:g}", *(_cell(found) for found in cells)])
    heads = [f"{WRITTEN.get(task, task)}, {f'{most:,} rows' if most else 'all rows'}" for task, most in columns]
    return _markdown(["way", "sparsity", *heads], rows)


def gain(name: str) -> str:
    """The share of the gain kept by `adaprune`, with floors and fine-tuning, on the tasks of results/gain.

    Tasks on which fine-tuning gains less than `gains.ROOM` are shown but do not count.
    """
    folder = ROOT / "results" / name
    runs = gains.with_rows(table(folder), folder)
    ours = runs[runs["method"] == "adaprune"]
    tasks = [task for task in WRITTEN if task in set(ours["task"])]
    marks = gains.landmarks(runs[runs["task"].isin(tasks)])
    rows = []
    for method, label in {"majority": "majority class", "probe": "probe", "finetune": "fine-tuned"}.items():
        of_method = runs[runs["method"] == method]
        rows.append([label, *(_cell(of_method[of_method["task"] == task]["score"]) for task in tasks), "", "", ""])
    found = gains.shares(ours, marks, ["sparsity"]).set_index("sparsity")
    for sparsity, group in ours.groupby("sparsity"):
        cells = [_cell(group[group["task"] == task]["score"]) for task in tasks]
        rows.append([f"**adaprune**, {sparsity:g} removed", *cells, *_share(found, sparsity)])
    heads = [WRITTEN[task] for task in tasks]
    return _markdown(["", *heads, "share of the gain kept", "over dev rows", "lowest task"], rows)


def _share(found: pd.DataFrame, sparsity: float) -> list[str]:
    """The share, its interval over dev rows, its lowest task; dashes if a task is missing."""
    if sparsity not in found.index:
        return ["-"] * 3
    row = found.loc[sparsity]
    interval = "-" if np.isnan(row["rows_low"]) else f"{row['rows_low']:.2f} to {row['rows_high']:.2f}"
    return [f"{row['share']:.2f}", interval, f"{WRITTEN[row['lowest_task']]} {row['lowest']:.2f}"]


def _by_number(way: str) -> list[tuple[int, float, str]]:
    """The words of a way, for sorting with numbers in order: 3 epochs before 12."""
    return [(0, float(word), "") if re.fullmatch(r"[\d.]+", word) else (1, 0.0, word) for word in way.split()]


def _cell(found: pd.Series) -> str:
    return f"{found.mean():.3f} ({len(found)})" if len(found) else "-"


def _markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def filled(text: str) -> str:
    """``text`` with every table made again.

    Raises:
        ValueError: a table's folder has no records.
    """
    return PLACE.sub(lambda found: found[1] + (gain if found[2] == "gain" else scores)(found[2]) + found[3], text)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, end with 1 where a page is out of date")
    check, stale = parser.parse_args().check, []
    for page in (ROOT / name for name in PAGES):
        text = page.read_text()
        made = filled(text)
        if made != text:
            stale.append(page.name)
            if not check:
                page.write_text(made)
    print(f"{'out of date' if check else 'written'}: {', '.join(stale)}" if stale else "up to date")
    sys.exit(int(check and bool(stale)))


if __name__ == "__main__":
    main()
