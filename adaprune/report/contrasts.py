"""Runs in pairs that differ in one thing, and what they say of a claim; what masks keep, from records alone."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from adaprune.data import CORRELATIONS
from adaprune.methods import METHODS
from adaprune.report.names import written
from adaprune.report.statistics import LEVEL, SIGNIFICANT, holm, within_cells_interval, within_cells_test
from adaprune.runs import RESULT_NEUTRAL, RETIRED, Run, default_of, read_record

BUDGET = ("model", "max_train_examples", "epochs", "batch_size", "precision", "max_length")
CELL = ("task", "sparsity", *BUDGET)  # pairs that agree here differ in their seeds alone
# How far above a constant prediction a score still shows nothing learned, about two standard errors: of an accuracy on
# the dev rows of most tasks, and of a correlation on STS-B's 1,500.
BY_CHANCE = {"accuracy": 0.02, "f1": 0.02, "correlation": 0.05}


def mask_counts(records: pd.DataFrame, results_dir: str | Path) -> pd.DataFrame:
    """What the masks of these runs keep, from their records: a row for each run and each ``kind`` of ``group``.

    Kinds: component, layer, scope (encoder, all_weights) and, where embeddings are in scope, rows (seen, unseen: words
    that occur in training). Columns: those of ``records`` and ``kind``, ``group``, ``kept``, ``total``, ``removed``
    (the group's sparsity).
    """
    rows = []
    for run in records.to_dict("records"):
        mask = read_record(Path(results_dir, run["record"]))["mask"] or {}
        groups = {
            (k, group): counts for k in ("component", "layer") for group, counts in mask.get(f"per_{k}", {}).items()
        }
        groups |= {("scope", name): mask[name] for name in ("encoder", "all_weights") if name in mask}
        groups |= {("rows", which): mask[f"{which}_rows"] for which in ("seen", "unseen") if f"{which}_rows" in mask}
        for (kind, group), found in groups.items():
            counts = {"kept": found["kept"], "total": found["total"], "removed": found["sparsity"]}
            rows.append({**run, "kind": kind, "group": group, **counts})
    return pd.DataFrame(rows, columns=[*records.columns, "kind", "group", "kept", "total", "removed"])


def select(records: pd.DataFrame, wanted: dict[str, Any]) -> pd.DataFrame:
    """The runs with these fields; what is not named is the default, but for budget, task, sparsity and seed."""
    given = {*BUDGET, "task", "sparsity", "seed", *RESULT_NEUTRAL}
    fields = [*Run.model_fields, *(name for name in RETIRED if name in records)]
    values = {name: default_of(name) for name in fields if name not in given} | wanted
    if not set(values) <= set(records):  # a retired field that no run here used
        return records[:0]
    return records[(records[list(values)] == pd.Series(values)).all(axis=1)]


def contrast(records: pd.DataFrame, ours: dict[str, Any], theirs: dict[str, Any]) -> pd.DataFrame:
    """Two kinds of runs in pairs that differ in nothing else: the fields, ``score``, ``score_theirs``, ``difference``.

    What a kind does not name is the default (recipe tuned, scope encoder, no ablation ...); budget, task, seed and
    sparsity are whatever both sides of a pair have. Both lie in one folder, which is one experiment: a recipe's own
    settings may have changed between two. A method without mask pairs with every sparsity. Of a pair that several
    folders hold the last one counts, by the folder's name. Empty where there is no pair.

    Args:
        records: of `records.table`.
        ours, theirs: fields of `Run` and their values.
    """
    keys = sorted({*CELL, "seed"} - ours.keys() - theirs.keys())
    placed = records.assign(folder=[Path(file).parent.as_posix() for file in records["record"]])
    sides = [select(placed, fields) for fields in (ours, theirs)]
    bare = [not METHODS[side.get("method", "adaprune")].mask for side in (ours, theirs)]
    keys = [name for name in keys if name != "sparsity" or not any(bare)]
    sides = [side.drop_duplicates([*keys, "folder"]) if once else side for side, once in zip(sides, bare, strict=True)]
    pairs = sides[0].merge(sides[1], on=[*keys, "folder"], suffixes=("", "_theirs"))
    if bare[0]:  # the sparsity of a pair is the mask's
        pairs = pairs.assign(sparsity=pairs["sparsity_theirs"])
    pairs = pairs.drop_duplicates([*CELL, "seed"], keep="last", ignore_index=True)
    return pairs.assign(difference=pairs["score"] - pairs["score_theirs"])


def chance_of(records: pd.DataFrame) -> dict[str, float]:
    """The highest score that is at chance, on each task that has a majority record: its score and `BY_CHANCE` more."""
    found = records[(records["method"] == "majority") & (records["ablation"] == "")]
    kinds = found["primary"].where(~found["primary"].isin(CORRELATIONS), "correlation")
    return (found["score"] + kinds.map(BY_CHANCE).astype(float)).groupby(found["task"]).mean().to_dict()


def cells(pairs: pd.DataFrame, chance: Mapping[str, float]) -> pd.DataFrame:
    """One row per cell of the pairs of `contrast`: what each says, and whether it may count.

    Columns: those of ``CELL``; ``pairs``; ``score``, ``score_theirs``, ``difference`` (means over seeds); ``rows_low``,
    ``rows_high``, the 95 % interval of the mean difference over resampled dev rows (paired bootstrap; NaN unless
    ``records`` came from `gains.with_rows`); ``left_out``: "" or why the cell does not count: "one pair" has no spread
    over seeds, and "both at chance" compares two failures (neither mean is above ``chance``).
    """
    rows = []
    for key, group in pairs.groupby(list(CELL)):
        ours, theirs = group["score"].mean(), group["score_theirs"].mean()
        failed = max(ours, theirs) <= chance.get(key[0], -math.inf)
        why = "both at chance" if failed else "one pair" if len(group) < 2 else ""
        low, high = math.nan, math.nan
        if "resampled" in group:
            drawn = np.mean(np.stack(group["resampled"]) - np.stack(group["resampled_theirs"]), axis=0)
            low, high = np.quantile(drawn, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
        rows.append([*key, len(group), ours, theirs, group["difference"].mean(), low, high, why])
    named = ["pairs", "score", "score_theirs", "difference", "rows_low", "rows_high", "left_out"]
    return pd.DataFrame(rows, columns=[*CELL, *named])


def verdicts(claims: Sequence[tuple[pd.DataFrame, int, float]], chance: Mapping[str, float]) -> list[str]:
    """What pairs say of each claim that their difference has a sign (1 or -1) and is larger than a margin.

    Only cells that count are judged (see `cells`); without one the claim is "not tested". "not confirmed" if the mean
    difference of any of them is not so; "confirmed" if all are and p < 0.05, by `statistics.within_cells_test` and
    Holm's correction over the claims; else "right sign, not significant". One test judges the mean over all cells
    named, with their budgets: it says nothing of a single cell, nor of other tasks. Both p-values follow.

    Args:
        claims: for each the pairs of `contrast`, the sign and the margin.
        chance: of `chance_of`.
    """
    judged = [cells(pairs, chance).query("left_out == ''") for pairs, *_ in claims]
    alone = [_p(pairs, found, *rest) for (pairs, *rest), found in zip(claims, judged, strict=True)]
    said = []
    for (_, sign, margin), found, p, corrected in zip(claims, judged, alone, holm(alone), strict=True):
        wrong = found[~(sign * found["difference"] > margin)]
        if found.empty:
            said.append("not tested")
        elif len(wrong):
            said.append(f"not confirmed: not so for {places(wrong)}")
        else:
            verdict = "confirmed" if corrected < SIGNIFICANT else "right sign, not significant"
            mean = " in the mean" if len(found) > 1 else ""
            said.append(f"{verdict}{mean} for {places(found)} (p = {p:.2g}, after Holm {corrected:.2g})")
    return said


def below_probe(pairs: pd.DataFrame, chance: Mapping[str, float], records: pd.DataFrame) -> str:
    """In how many of the cells that count no side is above a probe of as many rows: the end of a verdict, or "".

    Such a cell compares what two ways keep of the checkpoint, and not what they add to it.
    """
    found = cells(pairs, chance).query("left_out == ''")
    probes = records[(records["method"] == "probe") & (records["ablation"] == "")]
    best = probes.groupby(["model", "task", "max_train_examples"])["score"].max()
    below = [
        max(cell.score, cell.score_theirs) <= best.get((cell.model, cell.task, cell.max_train_examples), -math.inf)
        for cell in found.itertuples()
    ]
    return f"; neither side above a probe in {sum(below)} of {len(below)} cells" if any(below) else ""


def places(found: pd.DataFrame) -> str:
    """The `cells`, as a sentence has them.

    >>> cells = {"task": ["cola", "stsb", "stsb"], "sparsity": [0.5, 0.2, 0.9], "model": "minilm"}
    >>> places(pd.DataFrame({**cells, "max_train_examples": 3000, "epochs": 3.0}))
    'CoLA at 0.5 (3,000 rows, 3 epochs); STS-B at 0.2, 0.9 (3,000 rows, 3 epochs)'
    """
    alike = found.groupby(["task", "model", "max_train_examples", "epochs"])
    return "; ".join(
        f"{written(of['task'].iloc[0])} at {', '.join(f'{level:g}' for level in sorted(of['sparsity'].unique()))} "
        f"({_budget(of.iloc[0])})"
        for _, of in alike
    )


def _p(pairs: pd.DataFrame, judged: pd.DataFrame, sign: int, margin: float) -> float:
    if judged.empty:
        return float("nan")
    pairs = pairs.merge(judged[list(CELL)])
    return within_cells_test(pairs["difference"] - sign * margin, pairs.groupby(list(CELL)).ngroup())


def evidence(pairs: pd.DataFrame, chance: Mapping[str, float]) -> str:
    """The numbers behind `verdicts`, a cell at a time: both means, how many pairs, the interval over dev rows."""
    told = []
    for cell in cells(pairs, chance).itertuples():
        line = f"{setting(cell._asdict())}: {cell.score:.3f} against {cell.score_theirs:.3f}"
        count = f"{cell.pairs} pair{'s' * (cell.pairs > 1)}"
        rows = "" if math.isnan(cell.rows_low) else f"; over dev rows [{cell.rows_low:+.3f}, {cell.rows_high:+.3f}]"
        told.append(f"{line} ({count}{rows}{'; left out, ' + cell.left_out if cell.left_out else ''})")
    return "; ".join(told) or "-"


def setting(run: Mapping[str, Any]) -> str:
    """Task, sparsity, model, rows and epochs of a run, as a sentence has them.

    >>> setting({"task": "stsb", "sparsity": 0.5, "model": "minilm", "max_train_examples": 3000, "epochs": 0.0})
    "STS-B at 0.5 (3,000 rows, the recipe's epochs)"
    """
    return f"{written(run['task'])} at {run['sparsity']:g} ({_budget(run)})"


def _budget(run: Mapping[str, Any]) -> str:
    model = "" if run["model"] == "minilm" else f"{run['model']}, "
    size = f"{run['max_train_examples']:,}" if run["max_train_examples"] else "all"
    length = f"{run['epochs']:g}" if run["epochs"] else "the recipe's"
    return f"{model}{size} rows, {length} epochs"


def not_worse(pairs: pd.DataFrame, margin: float, tasks: int = 5, seeds: int = 3) -> str:
    """Whether one side is no worse than the other on held-out training rows, on which things may be chosen.

    "not worse" if the 95 % interval of the mean over cells lies above ``-margin``, "worse" if all of it lies below;
    "not known" between; "too few": not so many tasks with so many seeds each. The numbers follow.

    Args:
        pairs: of `contrast`, the side that is judged first.
        margin: how much may be lost, in the mean over tasks.
        tasks, seeds: the fewest that a verdict may rest on.
    """
    if pairs.empty:
        return "too few: no pair"
    lost = pairs["selection_score"] - pairs["selection_score_theirs"]
    low, high = within_cells_interval(lost, pairs.groupby(list(CELL)).ngroup())
    means = lost.groupby([pairs[name] for name in CELL]).mean()
    enough = pairs.groupby("task")["seed"].nunique()
    few = len(enough) < tasks or enough.min() < seeds
    said = "not worse" if low > -margin else "worse" if high < -margin else "not known"
    numbers = f"{means.mean():+.4f} [{low:+.4f}, {high:+.4f}], {len(enough)} tasks, {enough.min()} seeds at the least"
    each = "; ".join(f"{task} {value:+.4f}" for task, value in means.groupby("task").mean().items())
    return f"{'too few' if few else said}: {numbers} ({each})"


def judged(holds: Sequence[bool]) -> str:
    """The verdict on a claim about single runs: "not tested" without any, "confirmed" if it holds in each."""
    return "not tested" if not len(holds) else "confirmed" if all(holds) else "not confirmed"
