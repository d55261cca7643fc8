"""The comparison: every way of adapting on every task over seeds, as curves and as a table in Markdown."""

import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from adaprune.data import expanded
from adaprune.methods import METHODS
from adaprune.report.gains import ROOM
from adaprune.report.names import markdown, number, written
from adaprune.report.published import beside_paper
from adaprune.report.statistics import SIGNIFICANT, holm, interval, paired_test, retention
from adaprune.runs import RESULT_NEUTRAL, RETIRED, Run, default_of

SETTING = ("model", "max_train_examples")  # scores compare only where these agree
AXES = ("method", "sparsity", "seed")
TAUGHT = "+ teacher"  # in the names of ways
FIXED = [name for name, method in METHODS.items() if not method.trains]  # no setting names these
READING = """\
Each cell: mean score on the dev split [stratified bootstrap 95 % interval] (seeds). With few seeds such an interval
is too narrow: for five normally distributed scores it contains the true mean 84 times in 100. Tests: paired
double-tailed t-test over the seeds that both have, against adaprune, with Holm's correction over all tests of a
section; "-" is not tested (fewer than two seeds in common, or no spread). **Bold**: the best of a column among the
methods that leave the weights intact, where it differs significantly (p < 0.05) from adaprune, or, if it is adaprune,
from all the others. Methods that train weights are context: neither tested nor bold. Gain kept: (score - floor) /
(fine-tuned - floor), the floor being the better of probe and majority class on held-out rows; "-" without a probe, or
where fine-tuning gains less than 0.03. Retention: score / fine-tuned score. Cost: means over runs (memory: the
largest), without a teacher's. To ship: what a task adds to the base model, that is the mask file with its head, or the
head and every weight that was trained (for lora its two factors); records older than coded mask files count 1 bit per
weight, the oldest have nothing ("-").
"""


def with_ways(records: pd.DataFrame) -> pd.DataFrame:
    """The rows of `records.table` with ``way``, what a method is called beside the others, and each run once.

    A way is the method and, if it trains, those of its settings that are not the `usual` ones. A method without mask
    has neither sparsity nor scope (both missing), so such a run at another sparsity is the same run. If several folders
    hold a run, the one in the last folder by name counts, as in `contrasts.contrast`.
    """
    masked = records["mask_sparsity"].notna()
    runs = records.assign(**{name: records[name].where(masked) for name in ("sparsity", "scope")})
    runs = runs.assign(teacher=_teachers(records["teacher"], records["task"]))
    most = usual(runs)

    def call(row: dict) -> str:
        own = {name: row[name] for name in most if not pd.isna(row[name]) and row[name] != most[name]}
        own = {} if row["method"] in FIXED else own
        return " ".join([row["method"], *_phrases(own)])

    runs = runs.assign(way=[call(row) for row in runs.to_dict("records")])
    return runs.drop_duplicates(["task", *SETTING, "way", "sparsity", "seed"], keep="last", ignore_index=True)


def usual(runs: pd.DataFrame) -> dict[str, Any]:
    """The usual value of each setting: its default if any run that trains has it, else the most frequent value."""
    found, trained = {}, ~runs["method"].isin(FIXED)
    runs = runs[trained] if trained.any() else runs
    for name in _settings(runs):
        counts = runs[name].value_counts().sort_index()
        default = default_of(name)
        found[name] = default if default in counts.index or counts.empty else counts.idxmax()
    return found


def shared(runs: pd.DataFrame) -> str:
    """The usual settings that are not defaults, as a phrase; they hold for runs whose way names no other value."""
    own = {k: v for k, v in usual(runs).items() if v != default_of(k)}
    return ", ".join(_phrases(own)) or "default settings"


def _phrases(settings: dict[str, Any]) -> list[str]:
    return [f"{k} {v:g}" if isinstance(v, float) else v if v == TAUGHT else f"{k} {v}" for k, v in settings.items()]


def curves(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean and interval for each setting, task, way, sparsity: ``epochs``, ``mean``, ``low``, ``high``, ``seeds``."""
    keys = [*SETTING, "task", "way", "method", "sparsity", "epochs"]  # a way has one number of epochs
    rows = [
        (*key, group["score"].mean(), *interval([group["score"]]), len(group))
        for key, group in runs.groupby(keys, dropna=False)
    ]
    return pd.DataFrame(rows, columns=[*keys, "mean", "low", "high", "seeds"])


def of_methods(points: pd.DataFrame, methods: Collection[str]) -> pd.DataFrame:
    """The `curves` of these methods, one way per method: the way with the most runs, renamed to the method's name."""
    some = points[points["method"].isin(methods)]
    keys = [name for name in (*SETTING, "task", "method") if name in some]
    runs = some.groupby([*keys, "way"])["seeds"].sum().reset_index().sort_values("seeds", kind="stable")
    leading = runs.drop_duplicates(keys, keep="last")[[*keys, "way"]]
    return some.merge(leading, on=[*keys, "way"]).assign(way=lambda found: found["method"])


def budget(epochs: pd.Series, seeds: pd.Series) -> str:
    """The range of epochs, and of seeds per point, in a panel.

    >>> budget(pd.Series([3.0, 2.0]), pd.Series([1, 1]))
    'epochs: 2 to 3; seeds per point: 1'
    """
    given = epochs[epochs > 0]
    spans = [" to ".join(f"{value:g}" for value in sorted({part.min(), part.max()})) for part in (given, seeds)]
    lengths = ["the recipe's"] * (len(given) < len(epochs)) + spans[:1] * (len(given) > 0)
    return f"epochs: {' or '.join(lengths)}; seeds per point: {spans[1]}"


def retained(runs: pd.DataFrame) -> pd.DataFrame:
    """The share of fine-tuning's score that each way keeps over all tasks of a model, where there are several.

        retention = mean over tasks of  mean over seeds of score / mean over seeds of fine-tuning's score

    Ways are named within a task, because all runs on a task may share a setting (fewer epochs on more rows). Only ways
    with a run on every task count, and only models with a fine-tuned run and a single number of training rows for each
    task. The interval is over seeds, as in `curves`; fine-tuning's own spread is in its own line.

    Returns:
        Columns ``model``, ``way``, ``method``, ``sparsity``, ``mean``, ``low``, ``high``, ``worst`` (the lowest
        task's), ``tasks``, ``seeds`` (the fewest).
    """
    rows = []
    for model, of_model in runs.groupby("model"):
        parts = [with_ways(part) for _, part in of_model.groupby(["task", "max_train_examples"])]
        tuned = [part.loc[part["way"] == "finetune", "score"].mean() for part in parts]
        if len(parts) < 2 or len(parts) > of_model["task"].nunique() or not all(score > 0 for score in tuned):
            continue
        shares = pd.concat([part.assign(share=part["score"] / own) for part, own in zip(parts, tuned, strict=True)])
        for key, group in shares.groupby(["way", "method", "sparsity"], dropna=False):
            strata = [share for _, share in group.groupby("task")["share"]]
            if len(strata) == len(parts):
                means, fewest = [share.mean() for share in strata], min(map(len, strata))
                rows.append((model, *key, np.mean(means), *interval(strata), min(means), len(strata), fewest))
    columns = ["model", "way", "method", "sparsity", "mean", "low", "high", "worst", "tasks", "seeds"]
    return pd.DataFrame(rows, columns=columns)


def sections(runs: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The runs to compare with each other, with a title: of one setting and sparsity, plus methods without a mask."""
    for (model, rows), part in runs.groupby(list(SETTING)):
        title = f"{model}, {f'first {rows:,}' if rows else 'all'} training rows"
        unmasked = part["sparsity"].isna()
        for sparsity in sorted(part["sparsity"].dropna().unique()):
            yield f"{title}, sparsity {sparsity:g}", part[unmasked | (part["sparsity"] == sparsity)]
        if unmasked.all():
            yield title, part


def against_adaprune(part: pd.DataFrame) -> pd.DataFrame:
    """Every other weights-intact way of a section against adaprune: ``difference``, ``pairs``, ``p``, ``p_holm``.

    Seeds that both have are the pairs; difference = the way's mean - adaprune's over them. Empty where the section has
    no adaprune; if it has several, they are compared with the one without further settings, or the first by name.
    """
    columns = ["task", "way", "difference", "pairs", "p"]
    ours = sorted(part.loc[part["method"] == "adaprune", "way"].unique())
    seeds = {
        key: group.set_index("seed")["score"] for key, group in part[part["weights_intact"]].groupby(["task", "way"])
    }
    rows = []
    for (task, way), theirs in seeds.items():
        if ours and way != ours[0] and (task, ours[0]) in seeds:
            pairs = pd.concat([seeds[task, ours[0]], theirs], axis=1, join="inner").to_numpy()
            difference = (pairs[:, 1] - pairs[:, 0]).mean() if len(pairs) else math.nan
            rows.append((task, way, difference, len(pairs), paired_test(*pairs.T)))
    found = pd.DataFrame(rows, columns=columns)
    return found.assign(p_holm=holm(found["p"]))


def write_table(runs: pd.DataFrame, path: str | Path) -> Path:
    """Writes the comparison of ``runs`` (of `with_ways`) as Markdown: scores, tests, retention and cost by section."""
    lines = [f"# Comparison: {Path(path).stem.removeprefix('table_')}", "", READING, f"Unless named: {shared(runs)}."]
    for title, part in sections(runs):
        found = against_adaprune(part)
        lines += ["", f"## {title}", "", *_scores(part, found)]
        if len(found):
            rows = [
                [task, way, f"{gap:+.3f}" if pairs else "-", str(pairs), number(p, ".3g"), number(p_holm, ".3g")]
                for task, way, gap, pairs, p, p_holm in found.itertuples(index=False)
            ]
            header = ["task", "method", "difference from adaprune", "pairs", "p", "p (Holm)"]
            lines += ["", "### Tests", "", *markdown(header, rows)]
        lines += ["", "### Gain kept, retention and cost", "", *_costs(part)]
    if len(beside := beside_paper(curves(runs))):
        lines += ["", "## Beside the paper's Table 2, BERT-base on all training rows", "", *_beside(beside)]
    for model, kept in retained(runs).groupby("model"):
        title = f"## {model}, share of fine-tuning's score kept, mean over {kept['tasks'].iloc[0]} tasks"
        lines += ["", title, "", *_shares(kept)]
    path = expanded(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    return path


def _beside(found: pd.DataFrame) -> list[str]:
    """The table of `published.beside_paper`."""
    rows = [
        [
            written(row.task), written(row.method), number(row.sparsity, "g"), f"{row.paper:.3f}", f"{row.ours:.3f}",
            f"{row.difference:+.3f}", str(row.seeds), f"{written(row.model)}, {row.rows or 'all'} rows",
        ]
        for row in found.itertuples()
    ]  # fmt: skip
    return markdown(["task", "method", "sparsity", "paper", "ours", "difference", "seeds", "ours is of"], rows)


def _settings(runs: pd.DataFrame) -> list[str]:
    """The fields of `Run`, present and past, that tell a method's ways apart; the teacher last."""
    fields = [*Run.model_fields, *(name for name in RETIRED if name in runs)]
    others = [name for name in fields if name not in {"task", "teacher", *AXES, *SETTING, *RESULT_NEUTRAL}]
    return [*others, "teacher"]


def _teachers(paths: pd.Series, tasks: pd.Series) -> pd.Series:
    """Each teacher's settings but folder, task, seed, precision; just `TAUGHT` if no task has two kinds of teacher."""
    settings = paths.str.replace(r"^.*_method~|_seed~\d+|_precision~[a-z0-9]+|\.json$", "", regex=True)
    taught = settings[settings != ""]
    return settings.where(settings == "", TAUGHT) if (taught.groupby(tasks).nunique() <= 1).all() else settings


def _ranked(part: pd.DataFrame) -> list[tuple[str, str]]:
    """Ways and their names in a table: those with weights intact first, the best mean over tasks at the top."""
    means = part.groupby(["way", "task"])["score"].mean().groupby("way").mean()
    first = part.groupby("way")[["weights_intact", "noise"]].first()
    intact, noise = first["weights_intact"], first["noise"]
    order = sorted(means.index, key=lambda way: (not intact[way], -means[way], way))
    changed = {way: f"{way} (weights {'noised' if noise[way] else 'trained'})" for way in order if not intact[way]}
    return [(way, changed.get(way, way)) for way in order]


def _scores(part: pd.DataFrame, found: pd.DataFrame) -> list[str]:
    """The table way x task, and over all tasks where there are several."""
    tasks = part.groupby("task")["primary"].first()
    bold = {(_winner(part[part["task"] == task], found[found["task"] == task]), task) for task in tasks.index}
    rows = []
    for way, called in _ranked(part):
        seeds = {task: scores for task, scores in part[part["way"] == way].groupby("task")["score"]}
        cells = [_cell([seeds[task]], (way, task) in bold) if task in seeds else "-" for task in tasks.index]
        if len(tasks) > 1:
            cells.append(_cell(list(seeds.values())) if len(seeds) == len(tasks) else "-")
        rows.append([called, *cells])
    header = ["method", *(f"{task} ({metric})" for task, metric in tasks.items())]
    return markdown(header + ["mean over tasks"] * (len(tasks) > 1), rows)


def _winner(part: pd.DataFrame, found: pd.DataFrame) -> str | None:
    """The way to print bold in one task's column, if there is one (see READING)."""
    means = part[part["weights_intact"]].groupby("way")["score"].mean()
    if found.empty:
        return None
    best = means.idxmax()
    against = found[found["way"] == best] if best in set(found["way"]) else found
    return best if (against["p_holm"] < SIGNIFICANT).all() else None  # NaN is not below


def _cell(strata: list[pd.Series], bold: bool = False) -> str:
    mean = f"{np.mean([scores.mean() for scores in strata]):.3f}"
    low, high = interval(strata)
    seeds = sorted({len(scores) for scores in strata})
    spread = "" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]"
    return f"{f'**{mean}**' if bold else mean}{spread} ({'-'.join(map(str, {seeds[0]: 0, seeds[-1]: 0}))})"


def _costs(part: pd.DataFrame) -> list[str]:
    """The table of the gain kept and of retention by task, and of what a way costs."""
    tasks = sorted(part["task"].unique())
    tuned = part[part["method"] == "finetune"].groupby("task")["score"].mean()
    floors = part[part["method"].isin(["probe", "majority"])].sort_values("selection_score").groupby("task")
    floor = floors["score"].last().where(floors["method"].agg(set).map(lambda of: "probe" in of))
    room = (tuned - floor).where(lambda room: room >= ROOM)
    rows = []
    for way, called in _ranked(part):
        runs = part[part["way"] == way]
        means = runs.groupby("task")["score"].mean().reindex(tasks)
        gained = [number(share, ".2f") for share in ((means - floor) / room).reindex(tasks)]
        kept = [number(retention(*pair), ".3f") for pair in zip(means, tuned.reindex(tasks), strict=True)]
        memory, shipped = runs["peak_memory_bytes"].max() / 2**30, runs["shipped_bytes"].mean() / 1e6
        cost = [number(runs["train_seconds"].mean(), ".0f"), number(memory, ".2f"), number(shipped, ".2f")]
        rows.append([called, *gained, *kept, *cost])
    heads = [f"{kind} {task}" for kind in ("gain kept", "retention") for task in tasks]
    header = ["method", *heads, "train s", "peak memory GiB", "MB to ship per task"]
    return markdown(header, rows)


def _shares(kept: pd.DataFrame) -> list[str]:
    """The table way x sparsity of `retained`, each cell with the lowest task's share."""
    sparsities = sorted(kept["sparsity"].dropna().unique())
    rows = []
    for way, of_way in kept.groupby("way"):
        cells = dict.fromkeys(sparsities, "-")
        for row in of_way.itertuples(index=False):
            spread = "" if math.isnan(row.low) else f" [{row.low:.3f}, {row.high:.3f}]"
            cell = f"{row.mean:.3f}{spread} ({row.seeds}), lowest {row.worst:.3f}"
            cells |= dict.fromkeys(sparsities if math.isnan(row.sparsity) else [row.sparsity], cell)
        rows.append([way, *cells.values()])
    return markdown(["method", *(f"sparsity {sparsity:g}" for sparsity in sparsities)], rows)
