"""Runs in pairs that differ in one thing, and what they say of a claim; what masks keep, from records alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from adaprune.records import read_record
from adaprune.run import METHODS, RESULT_NEUTRAL, Run
from adaprune.statistics import SIGNIFICANT, paired_test

BUDGET = ("model", "max_train_examples", "epochs", "batch_size", "precision", "max_length")


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
    values = {name: field.default for name, field in Run.model_fields.items() if name not in given} | wanted
    return records[(records[list(values)] == pd.Series(values)).all(axis=1)]


def contrast(records: pd.DataFrame, ours: dict[str, Any], theirs: dict[str, Any]) -> pd.DataFrame:
    """Two kinds of runs in pairs that differ in nothing else: the fields, ``score``, ``score_theirs``, ``difference``.

    What a kind does not name is the default (recipe tuned, scope encoder, no ablation ...); budget, task, seed and
    sparsity are whatever both sides of a pair have. A method without mask pairs with every sparsity. Empty where there
    is no pair. Of a run that several folders hold the last one counts, by the folder's name.

    Args:
        records: of `records.table`.
        ours, theirs: fields of `Run` and their values.
    """
    keys = sorted({*BUDGET, "task", "sparsity", "seed"} - ours.keys() - theirs.keys())
    sides = [select(records, fields).drop_duplicates(keys, keep="last") for fields in (ours, theirs)]
    if any(not METHODS[side.get("method", "adaprune")].mask for side in (ours, theirs)):
        keys = [name for name in keys if name != "sparsity"]
        sides[1] = sides[1].drop_duplicates(keys)
    pairs = sides[0].merge(sides[1], on=keys, suffixes=("", "_theirs"))
    return pairs.assign(difference=pairs["score"] - pairs["score_theirs"])


def verdict(pairs: pd.DataFrame, sign: int = 1, margin: float = 0.0) -> str:
    """What the pairs of `contrast` say of a claim that their difference has this sign and is larger than the margin.

    "not tested" without pairs; "confirmed" if every task's mean difference is so and the paired t-test over all
    pairs has p < 0.05; "not confirmed" if a task's is not; else "right sign, not significant".
    """
    if pairs.empty:
        return "not tested"
    if not (sign * pairs.groupby("task")["difference"].mean() > margin).all():
        return "not confirmed"
    p = paired_test(pairs["score"], pairs["score_theirs"] + sign * margin)
    return "confirmed" if p < SIGNIFICANT else "right sign, not significant"


def evidence(pairs: pd.DataFrame) -> str:
    """The numbers behind `verdict`: for each task the mean of both sides and the number of pairs."""
    means = pairs.groupby("task")[["score", "score_theirs"]].mean()
    sizes = pairs.groupby("task").size()
    return "; ".join(f"{task} {a:.3f} against {b:.3f} ({sizes[task]})" for task, a, b in means.itertuples()) or "-"


def judged(holds: Sequence[bool]) -> str:
    """The verdict on a claim about single runs: "not tested" without any, "confirmed" if it holds in each."""
    return "not tested" if not len(holds) else "confirmed" if all(holds) else "not confirmed"
