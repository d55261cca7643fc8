"""Fills the tables of README.md, docs/results.md and results/tables.md from the records: no number is typed by hand.

    python docs/build_results.py [--check]

A table is between `<!-- records: NAME -->` and `<!-- end -->`, where NAME is a folder of results/ or one of `SPECIAL`.
With --check nothing is written, and the exit code is 1 if a page is out of date.
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from adaprune.report import comparison, gains
from adaprune.report.names import WRITTEN, markdown, written
from adaprune.runs import plan_then, read_record, table

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/results.md", "results/tables.md")
PLACE = re.compile(r"(<!-- records: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
WITHOUT_MASK = -1.0  # sorts before every sparsity
CHOSEN_ON = {
    "steps": "selection_score",
    "heads": "selection_score",
}  # settings were chosen by it: held-out rows; all others: dev rows

SCORED_ON = {"dev": "score", "held out": "selection_score"}
FACTORS = {  # of the deciding test: the field of Run and, by its value, what stands in the table
    "start": ("initial_theta", {"": "0", "magnitude": "abs(w)"}),
    "cut": ("allocation", {"": "global", "scores": "SMP's"}),
    "lambda": ("penalty", {1e-9: "0", 0.0: "400"}),  # 0 leaves it to the method
    "slope": ("temperature", {0.0: "identity", 1.0: "sigmoid"}),
}


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
    heads = [
        f"{WRITTEN.get(task, Path(task).name)}, {f'{most:,} rows' if most else 'all rows'}" for task, most in columns
    ]
    return _markdown(["way", "sparsity", *heads], rows)


def gain() -> str:
    """The share of the gain kept by `adaprune`, with floors and fine-tuning, on the tasks of results/gain.

    Tasks on which fine-tuning gains less than `gains.ROOM` are shown but do not count.
    """
    runs, ours, marks = _of_gain()
    tasks = [task for task in WRITTEN if task in set(ours["task"])]
    rows = []
    for method, label in {"majority": "majority class", "probe": "probe", "finetune": "fine-tuned"}.items():
        of_method = runs[runs["method"] == method]
        rows.append([label, *(_cell(of_method[of_method["task"] == task]["score"]) for task in tasks), *[""] * 4])
    rows += [[*row[:-2], row[-1]] for row in _kept(ours, marks, tasks, seeds=True)]  # the tasks' mean is in `tasks`
    heads = [WRITTEN[task] for task in tasks]
    return _markdown(["", *heads, "gain kept", "95 % over dev rows", "over seeds", "lowest task"], rows)


def rivals() -> str:
    """Every other mask of results/gain, and below those of a sparsity `adaprune` on the same tasks and seeds.

    The share of a row is over the tasks that it has, and fine-tuned scores are of its seeds.
    """
    runs, ours, _ = _of_gain()
    tasks = [task for task in WRITTEN if task in set(ours["task"])]
    others = runs[runs["sparsity"].gt(0) & (runs["method"] != "adaprune")]
    place, rows = ["task", "seed"], []
    for at, level in others.groupby("sparsity"):
        of_ours: dict[tuple[str, ...], list[str]] = {}  # a row without its name: the rivals that it stands beside
        for method, group in level.groupby("method"):
            same = runs.set_index(place).index.isin(group.set_index(place).index)
            there = runs[same | (runs["method"].isin(["probe", "majority"]) & runs["task"].isin(group["task"]))]
            marks, beside = gains.landmarks(there), there[(there["method"] == "adaprune") & (there["sparsity"] == at)]
            rows += _kept(group, marks, tasks)
            for row in _kept(beside, marks, tasks):
                if row[-1] != "-":  # has all of its tasks
                    of_ours.setdefault(tuple(row), []).append(written(method))
        rows += [[f"{row[0]}, beside {' and '.join(names)}", *row[1:]] for row, names in of_ours.items()]
    heads = [WRITTEN[task] for task in tasks]
    return _markdown(["", *heads, "gain kept", "95 % over dev rows", "mean of tasks", "lowest task"], rows)


def _kept(runs: pd.DataFrame, marks: pd.DataFrame, tasks: list[str], seeds: bool = False) -> list[list[str]]:
    """A row per sparsity and method: scores on the ``tasks``, and the share over them."""
    found = gains.shares(runs, marks, ["sparsity", "method"]).set_index(["sparsity", "method"])
    rows = []
    for key, group in runs.groupby(["sparsity", "method"]):
        name = f"**{written(key[1])}**" if key[1] == "adaprune" else written(key[1])
        name += ", from |w|" * bool((group["initial_theta"] == "magnitude").all())
        cells = [_cell(group[group["task"] == task]["score"]) for task in tasks]
        rows.append([f"{name}, {key[0]:g} removed", *cells, *_share(found, key, seeds)])
    return rows


def tasks() -> str:
    """The tasks of results/gain, a row each: floor, fine-tuned score, room, and the share of it that masks keep."""
    _, ours, marks = _of_gain()
    sparsities = sorted(set(ours["sparsity"]))
    rows, all_shares = [], []
    for task in (task for task in WRITTEN if task in set(ours["task"])):
        mark, of_task = marks.xs(task, level="task").iloc[0], ours[ours["task"] == task]
        shares = [
            (of_task.loc[of_task["sparsity"] == at, "score"].mean() - mark["floor"]) / mark["room"] for at in sparsities
        ]
        numbers = [f"{mark['floor']:.3f}", f"{mark['floor'] + mark['room']:.3f}", f"{mark['room']:.3f}"]
        rows.append([WRITTEN[task], *numbers, *(f"{share:.2f}" for share in shares)])
        all_shares.append(shares)
    rows.append(["mean", "", "", "", *(f"{share:.2f}" for share in np.mean(all_shares, axis=0))])
    heads = ["", "floor", "fine-tuned", "room", *(f"gain kept at {at:g}" for at in sparsities)]
    return _markdown(heads, rows)


def _of_gain() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The runs of results/gain, those of `adaprune`, and the landmarks of the tasks that have such runs."""
    folder = ROOT / "results" / "gain"
    runs = gains.with_rows(table(folder), folder)
    ours = runs[runs["method"] == "adaprune"]
    return runs, ours, gains.landmarks(runs[runs["task"].isin(ours["task"])])


def frontier_ways() -> str:
    """The ways of results/frontier by the bytes that a task ships, with the share of the gain that they keep.

    Of each task, with the number of seeds, and over all tasks for the ways that all have. In the last column, whether a
    way keeps anything over all tasks, and no other as much with as few bytes.
    """
    folder = ROOT / "results" / "frontier"
    runs = gains.with_rows(table(folder), folder)
    tasks = [task for task in WRITTEN if task in set(runs["task"])]
    each = {task: gains.frontier(runs[runs["task"] == task]).set_index("way") for task in tasks}
    over = gains.frontier(runs).set_index("way")
    sizes = pd.concat([*each.values(), over])["bytes"].groupby(level=0).last()
    rows = []
    for way in sizes.sort_values().index:
        kept = [found.loc[way] if way in found.index else None for found in each.values()]
        cells = ["-" if one is None else f"{one['share']:.2f} ({one['seeds']})" for one in kept]
        both = (
            [f"{over.loc[way, 'share']:.2f}", "yes" if over.loc[way, "first"] else ""]
            if way in over.index
            else ["-", ""]
        )
        rows.append([written(way), f"{sizes[way] / 1000:,.0f}", *cells, *both])
    heads = [WRITTEN[task] for task in tasks]
    return _markdown(["way", "kB shipped per task", *heads, "gain kept over all", "not beaten"], rows)


def recipes() -> str:
    """The settings of the tuned recipe that the runs of `adaprune` in each folder had, and the commits that made them.

    What old plans do not say is as `runs.plan_then` reads it.
    """
    rows = []
    for folder in sorted(path for path in (ROOT / "results").iterdir() if path.is_dir()):
        records = [read_record(path) for path in sorted(folder.glob("*.json"))]
        records = [record for record in records if record["run"]["method"] == "adaprune"]
        kinds: dict[tuple[str, ...], set[str]] = {}
        for record in records:
            plan, commit = plan_then(record), record["environment"]["git_commit"]
            kind = (
                plan["head"],
                {"own": "mean", "cls": "[CLS]"}.get(plan["pooling"], plan["pooling"]),  # own: of MiniLM, mpnet the mean
                "yes" if record["run"]["teacher"] else "no",
                plan["copies"] or "none",
            )
            kinds.setdefault(kind, set()).add(commit[:7] + commit[40:])
        rows += [[f"`{folder.name}`", *kind, ", ".join(sorted(commits))] for kind, commits in sorted(kinds.items())]
    return _markdown(["folder", "head", "pooling", "teacher", "copies", "commits"], rows)


def deciding_cells() -> str:
    """The deciding test: the score of each start x cut x lambda x slope."""
    runs, tasks = _of_deciding()
    settings = runs.groupby(list(FACTORS), sort=False)
    rows = [
        [*setting, *(_cell(group[group["task"] == task]["score"]) for task in tasks)] for setting, group in settings
    ]
    return _markdown([*FACTORS, *(WRITTEN[task] for task in tasks)], sorted(rows))


def deciding() -> str:
    """What each setting of the deciding test changes while the others stay.

    A change is the mean over pairs of runs, of one task and seed, that differ in one setting alone. In brackets: in how
    many of the pairs the second setting scores higher. Both are given for the dev split and for held-out rows.
    """
    runs, tasks = _of_deciding()
    places = {f"{WRITTEN[task]}, {rows}": (task, score) for rows, score in SCORED_ON.items() for task in tasks}
    rows = []
    for factor, (_, labels) in FACTORS.items():
        before, after = labels.values()
        others = [other for other in FACTORS if other != factor]
        paired = runs.pivot_table(index=["task", "seed", *others], columns=factor, values=list(SCORED_ON.values()))
        change = paired.xs(after, axis=1, level=factor) - paired.xs(before, axis=1, level=factor)
        change = change.dropna().reset_index()
        for start in ["both"] if factor == "start" else FACTORS["start"][1].values():
            some = change if start == "both" else change[change["start"] == start]
            found = [some[some["task"] == task][score] for task, score in places.values()]
            changes = [f"{of.mean():+.3f} ({(of > 0).sum()} of {len(of)})" if len(of) else "-" for of in found]
            rows.append([f"{factor}: {before} to {after}", start, *changes])
    return _markdown(["change", "start", *places], rows)


def _of_deciding() -> tuple[pd.DataFrame, list[str]]:
    """The runs of the deciding test with a column for each of `FACTORS`, and their tasks in order."""
    runs = table(ROOT / "results" / "deciding").query("method == 'soft_movement'")
    for factor, (column, labels) in FACTORS.items():
        runs[factor] = runs[column].map(labels)
    return runs, [task for task in WRITTEN if task in set(runs["task"])]


def _share(found: pd.DataFrame, key: tuple[float, str], seeds: bool) -> list[str]:
    """The share, its intervals, the mean of the tasks' own shares, the lowest task; dashes if a task is missing."""
    kinds = ("rows", "seeds") if seeds else ("rows",)
    if key not in found.index:
        return ["-"] * (3 + len(kinds))
    row = found.loc[key]
    ends = [(row[f"{kind}_low"], row[f"{kind}_high"]) for kind in kinds]
    told = ["-" if np.isnan(low) else f"{low:.2f} to {high:.2f}" for low, high in ends]
    return [f"{row['share']:.2f}", *told, f"{row['mean']:.2f}", f"{WRITTEN[row['lowest_task']]} {row['lowest']:.2f}"]


def _by_number(way: str) -> list[tuple[int, float, str]]:
    """The words of a way, for sorting with numbers in order: 3 epochs before 12."""
    return [(0, float(word), "") if re.fullmatch(r"[\d.]+", word) else (1, 0.0, word) for word in way.split()]


def _cell(found: pd.Series) -> str:
    return f"{found.mean():.3f} ({len(found)})" if len(found) else "-"


def _markdown(heads: list[str], rows: list[list[str]]) -> str:
    return "".join(f"{line}\n" for line in markdown(heads, rows))


SPECIAL = {made.__name__: made for made in (gain, rivals, tasks, frontier_ways, recipes, deciding, deciding_cells)}


def filled(text: str) -> str:
    """``text`` with every table made again.

    Raises:
        ValueError: a table's folder has no records.
    """
    return PLACE.sub(lambda at: at[1] + (SPECIAL[at[2]]() if at[2] in SPECIAL else scores(at[2])) + at[3], text)


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
