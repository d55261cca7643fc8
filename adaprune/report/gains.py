"""The share of fine-tuning's gain that is kept: (score - floor) / (fine-tuned - floor), the headline number.

The floor is the score without adaptation: the better of the probe and the majority class, chosen on held-out rows.
Without a floor, every method seems to do well on a task that the checkpoint already knows (STS-B on a sentence
encoder).
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from adaprune.data import RESAMPLES
from adaprune.report.names import way_of
from adaprune.report.statistics import LEVEL
from adaprune.runs import paths_of, read_answers

ROOM = 0.03  # tasks on which fine-tuning gains less over the floor do not count
SETTING = ["model", "task", "max_train_examples"]


def with_rows(runs: pd.DataFrame, results_dir: str | Path) -> pd.DataFrame:
    """``runs`` from `records.table` with ``resampled``: each run's score on bootstrap samples of the dev rows.

    The scores are missing (NaN) without a file of answers, and for a user's own data.

    Raises:
        ValueError: a damaged file of answers.
    """

    def samples(record: str) -> np.ndarray:
        try:
            scores = read_answers(paths_of(Path(results_dir, record)).answers)[1].astype(float)
        except FileNotFoundError:
            scores = np.zeros(0)
        return scores if len(scores) else np.full(RESAMPLES, math.nan)

    return runs.assign(resampled=[samples(record) for record in runs["record"]])


def landmarks(runs: pd.DataFrame) -> pd.DataFrame:
    """Floor and fine-tuning of each setting, the two ends of the scale for a score.

    Args:
        runs: from `with_rows`, including probe, majority and finetune.

    Returns:
        Indexed by model, task, max_train_examples: ``floor`` and ``floor_rows`` (its resampled scores), ``floor_is``;
        ``tuned``, ``tuned_var`` (of its mean over seeds), ``tuned_rows``, ``tuned_seeds``; ``room``, their difference.
        A setting that has nothing else to measure yet is left out, as one without probe or fine-tuning is.
        If there are several ways to fine-tune, the one with the best mean on held-out rows is used.
    """
    rows = []
    for setting, group in runs[runs["ablation"] == ""].groupby(SETTING):
        floors = group[group["method"].isin(["probe", "majority"])].sort_values("selection_score")
        tuned = group[group["method"] == "finetune"]
        there = set(group["method"])
        if not {"probe", "finetune"} <= there or there <= {"probe", "majority", "finetune"}:
            continue
        floor = floors.iloc[-1]
        ways = tuned.groupby(["epochs", "learning_rate", "batch_size", "teacher"])
        tuned = max((way for _, way in ways), key=lambda way: way["selection_score"].mean())
        mean, of_rows = tuned["score"].mean(), np.mean(np.stack(tuned["resampled"]), axis=0)
        rows.append([
            *setting, floor["score"], floor["resampled"], floor["method"],
            mean, _variance(tuned["score"]), len(tuned), of_rows, mean - floor["score"],
        ])  # fmt: skip
    columns = ["floor", "floor_rows", "floor_is", "tuned", "tuned_var", "tuned_seeds", "tuned_rows", "room"]
    return pd.DataFrame(rows, columns=[*SETTING, *columns]).set_index(SETTING)


def shares(runs: pd.DataFrame, marks: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The share of the gain that each group of runs keeps over all tasks with room.

        share = sum_t (score_t - floor_t) / sum_t (tuned_t - floor_t)

    with means over seeds; summing first avoids dividing by a small room. There are two 95 % intervals: over seeds (t,
    by the delta method, including the denominator's spread), and over dev rows (paired bootstrap).

    Args:
        runs: from `with_rows`.
        marks: from `landmarks`, for one model.
        by: columns that form a group, e.g. ["way", "sparsity"].

    Returns:
        The columns of ``by``; ``share``; ``mean``, that of the single tasks' shares; ``seeds_low``, ``seeds_high``;
        ``rows_low``, ``rows_high``; ``retention``, the plain mean over tasks of score / tuned; ``lowest`` (share of the
        worst task) and ``lowest_task``; ``tasks`` and ``seeds`` (the fewest). Only groups with a run on every task with
        room are included.
    """
    room = marks[marks["room"] >= ROOM]
    rows = []
    for key, group in runs.groupby(by, dropna=False):
        parts = {setting: part for setting, part in group.groupby(SETTING) if setting in room.index}
        if not len(room) or parts.keys() != set(room.index):
            continue
        ends = room.loc[list(parts)]
        means = np.array([part["score"].mean() for part in parts.values()])
        gained, whole = (means - ends["floor"]).sum(), ends["room"].sum()
        share = gained / whole
        spread = sum(_variance(part["score"]) for part in parts.values()) + share**2 * ends["tuned_var"].sum()
        seeds = [len(part) for part in parts.values()]
        freedom = sum(seeds) - len(seeds) + ends["tuned_seeds"].sum() - len(ends)
        half = stats.t.ppf(0.5 + LEVEL / 2, freedom) * math.sqrt(spread) / whole if freedom else math.nan
        ours = np.stack([np.mean(np.stack(part["resampled"]), axis=0) for part in parts.values()])
        floor, tuned = np.stack(ends["floor_rows"]), np.stack(ends["tuned_rows"])
        drawn = (ours - floor).sum(0) / (tuned - floor).sum(0)
        low, high = (
            np.quantile(drawn, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2]) if np.isfinite(drawn).all() else [math.nan] * 2
        )
        each = (means - ends["floor"]) / ends["room"]
        rows.append([
            *(key if isinstance(key, tuple) else (key,)), share, each.mean(), share - half, share + half, low, high,
            float((means / ends["tuned"]).mean()), each.min(), each.idxmin()[1], len(parts), min(seeds),
        ])  # fmt: skip
    columns = [
        *by, "share", "mean", "seeds_low", "seeds_high", "rows_low", "rows_high",
        "retention", "lowest", "lowest_task", "tasks", "seeds",
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def speeds(kept: pd.DataFrame, measured: Sequence[Mapping[str, Any]], **where: Any) -> pd.DataFrame:
    """The speed of each way relative to the dense model, and the share of the gain that its masks keep.

    Args:
        kept: from `shares` of adaprune's runs, by ["pattern", "sparsity"].
        measured: ``rows`` of a file of `benchmarks.inference`.
        where: ``shape``, ``batch``, ``threads`` and, for masks, ``mask`` to select; omitted keys select everything.

    Returns:
        ``way``, ``sparsity``, ``share``, ``rows_low``, ``rows_high``, and ``faster``: one row per way and sparsity
        that both tables have. Ways without masks have sparsity 0 and no share, because their quality is not known here.
    """
    rows = []
    for row in measured:
        if row["way"] == "dense float32" or any(row[n] != v for n, v in where.items() if n != "mask" or row["mask"]):
            continue
        rows.append({
            "way": row["way"],
            "sparsity": 0.0 if row["sparsity"] is None else row["sparsity"],
            "pattern": "units" if row["way"].startswith("units") else "weights",
            "faster": row["faster"]["median"],
        })  # fmt: skip
    found = pd.DataFrame(rows, columns=["way", "sparsity", "pattern", "faster"])
    kept = kept.assign(sparsity=kept["sparsity"].round(4))
    found = found.assign(sparsity=found["sparsity"].round(4)).merge(kept, on=["pattern", "sparsity"], how="left")
    found = found[found["share"].notna() | (found["sparsity"] == 0)]
    columns = ["way", "sparsity", "share", "rows_low", "rows_high", "faster"]
    return found[columns].sort_values(["way", "sparsity"], ignore_index=True)


def frontier(runs: pd.DataFrame) -> pd.DataFrame:
    """The bytes that each way of adapting ships and the share of the gain that it keeps, sorted by bytes.

    A way is named by `names.way_of`. If it was run with several rates, batch sizes, numbers of epochs or starts, the
    setting with the best mean on held-out rows is used for each task.

    Args:
        runs: from `with_rows`, for one model, including probe, majority and finetune.

    Returns:
        The columns of `shares`, and: ``method``; ``bytes``, the mean over tasks and seeds; ``first``, whether it keeps
        anything, and no other way as much with as few bytes.
    """
    named = runs[runs["ablation"] == ""]
    named = named.assign(way=[way_of(row) for row in named.to_dict("records")])
    best = []
    for _, group in named.groupby(["way", "task", "max_train_examples"]):
        settings = group.groupby(["learning_rate", "head_learning_rate", "batch_size", "epochs", "initial_theta"])
        best.append(max((part for _, part in settings), key=lambda part: part["selection_score"].mean()))
    best = pd.concat(best)
    found = shares(best, landmarks(best), ["way", "method"]).dropna(subset="share")
    found = found[~found["method"].isin(["probe", "majority"])]
    sizes = best.groupby("way")["shipped_bytes"].mean()
    found = found.assign(bytes=found["way"].map(sizes)).sort_values(["bytes", "share"], ignore_index=True)
    beaten = [
        ((found["bytes"] <= row.bytes) & (found["share"] >= row.share) & (found["way"] != row.way)).any()
        for row in found.itertuples()
    ]
    return found.assign(first=~np.array(beaten, bool) & (found["share"] > 0))  # the floor needs no adapting


def _variance(scores: pd.Series) -> float:
    """Of the mean over seeds; NaN of one seed."""
    return float(scores.var(ddof=1) / len(scores)) if len(scores) > 1 else math.nan
