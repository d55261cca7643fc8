"""Runs in pairs that differ in one thing, and what they say of a claim; what masks keep, from records alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from adaprune.methods import METHODS
from adaprune.report.statistics import SIGNIFICANT, holm, within_cells_test
from adaprune.runs import RESULT_NEUTRAL, RETIRED, Run, default_of, read_record

BUDGET = ("model", "max_train_examples", "epochs", "batch_size", "precision", "max_length")
CELL = ("task", "sparsity", *BUDGET)  # pairs that agree here differ in their seeds alone


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
    if any(not METHODS[side.get("method", "adaprune")].mask for side in (ours, theirs)):
        keys = [name for name in keys if name != "sparsity"]
        sides[1] = sides[1].drop_duplicates([*keys, "folder"])
    pairs = sides[0].merge(sides[1], on=[*keys, "folder"], suffixes=("", "_theirs"))
    pairs = pairs.drop_duplicates([*CELL, "seed"], keep="last", ignore_index=True)
    return pairs.assign(difference=pairs["score"] - pairs["score_theirs"])


def verdicts(claims: Sequence[tuple[pd.DataFrame, int, float]]) -> list[str]:
    """What pairs say of each claim that their difference has a sign (1 or -1) and is larger than a margin.

    "not tested" without pairs; "not confirmed" if the mean difference of any cell (one task, sparsity and budget) is
    not so; "confirmed" if all are and p < 0.05, by `statistics.within_cells_test` and Holm's correction over the
    claims; else "right sign, not significant", as where no cell has two seeds. The test speaks of the tasks and
    sparsities measured: two or three tasks cannot say what others would do.

    Args:
        claims: for each the pairs of `contrast`, the sign and the margin.
    """
    p = holm([
        within_cells_test(pairs["difference"] - sign * margin, pairs.groupby(list(CELL)).ngroup())
        for pairs, sign, margin in claims
    ])  # fmt: skip
    return [
        "not tested"
        if pairs.empty
        else "not confirmed"
        if exceptions(pairs, sign, margin)
        else "confirmed"
        if corrected < SIGNIFICANT
        else "right sign, not significant"
        for (pairs, sign, margin), corrected in zip(claims, p, strict=True)
    ]


def exceptions(pairs: pd.DataFrame, sign: int, margin: float) -> list[str]:
    """The cells whose mean difference is not of this sign and larger than the margin, by task and sparsity."""
    means = sign * pairs.groupby(list(CELL))["difference"].mean()
    return [f"{task} at {sparsity:g}" for task, sparsity, *_ in means.index[~(means > margin)]]


def evidence(pairs: pd.DataFrame) -> str:
    """The numbers behind `verdicts`: for each task the mean of both sides, the number of pairs and the sparsities."""
    told = []
    for task, of_task in pairs.groupby("task"):
        ours, theirs = of_task["score"].mean(), of_task["score_theirs"].mean()
        levels = ", ".join(f"{level:g}" for level in sorted(set(of_task["sparsity"])))
        told.append(f"{task} {ours:.3f} against {theirs:.3f} ({len(of_task)}, at {levels})")
    return "; ".join(told) or "-"


def judged(holds: Sequence[bool]) -> str:
    """The verdict on a claim about single runs: "not tested" without any, "confirmed" if it holds in each."""
    return "not tested" if not len(holds) else "confirmed" if all(holds) else "not confirmed"
