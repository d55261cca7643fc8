"""Tasks, models and methods as people write them, and the line that says what a figure was made from."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from adaprune.methods import METHODS

WRITTEN = {
    "cola": "CoLA", "sst2": "SST-2", "mrpc": "MRPC", "stsb": "STS-B", "qqp": "QQP", "mnli": "MNLI", "qnli": "QNLI",
    "rte": "RTE", "movie_reviews": "movie reviews",
}  # tasks  # fmt: skip
CALLED = WRITTEN | {
    "minilm": "MiniLM",
    "spearman": "Spearman correlation",
    "pearson": "Pearson correlation",
    "matthews_correlation": "Matthews correlation",
    "f1": "F1",
    "finetune": "fine-tuning",
    "features": "feature extraction",
    "majority": "majority class",
    "bernoulli": "Bernoulli mask",
    "random": "random mask",
    "magnitude": "magnitude mask",
    "gmp": "GMP",
    "imp": "IMP",
    "smp": "SMP",
    "soft_movement": "soft movement",
    "edge_popup": "edge-popup",
    "threshold_mask": "threshold mask",
    "zero_shot": "zero-shot",
    "snip": "SNIP",
    "wanda": "Wanda",
    "lora": "LoRA",
    "ia3": "IA3",
    "bitfit": "BitFit",
    "gmp_finetune": "GMP, weights trained",
    "imp_finetune": "IMP, weights trained",
    "movement_finetune": "movement, weights trained",
}
PHRASES = {"initial theta magnitude": "from |w|", "penalty 1e-09": "no penalty"}  # settings (1e-9: 0 is the recipe's)
MOST = 3  # folders and commits that a line names


def written(way: str) -> str:
    """A task, model, metric or method, with its settings, as a figure writes it; an unknown one stays.

    >>> written("smp allocation equal"), written("adaprune 0.5"), written("compact, sparse"), written("stsb")
    ('SMP, allocation equal', 'adaprune 0.5', 'compact, sparse', 'STS-B')
    >>> written("soft_movement initial_theta magnitude penalty 1e-09 + teacher")
    'soft movement, from |w| no penalty + teacher'
    """
    name, _, settings = way.replace(",", "").partition(" ")
    apart = ", " if settings[:1].isalpha() else " "
    settings = settings.replace("_", " ")
    for setting, phrase in PHRASES.items():
        settings = settings.replace(setting, phrase)
    return f"{CALLED.get(name, name)}{apart}{settings}".strip()


def way_of(row: Mapping[str, Any]) -> str:
    """What a run is called beside others: its method, with sparsity, rank, scope, recipe and head where they matter.

    Args:
        row: of `adaprune.runs.records.table`, or the fields of a run.

    >>> run = {"recipe": "tuned", "scope": "encoder", "pattern": "weights", "rank": 0, "head": ""}
    >>> way_of({**run, "method": "adaprune", "sparsity": 0.5, "recipe": "paper"})
    'adaprune 0.5 paper'
    >>> way_of({**run, "method": "lora", "sparsity": 0.5, "rank": 1, "head": "mlp"})
    'lora r = 1, mlp head'
    """
    parts = [row["method"]]
    if row["method"] not in METHODS or METHODS[row["method"]].mask:
        parts += ["units"] if row["pattern"] == "units" else []
        parts.append(f"{row['sparsity']:g}")
        parts += ["+embeddings"] if row["scope"] == "encoder+embeddings" else []
    parts += [f"r = {row['rank'] or 8}"] if row["method"] == "lora" else []
    parts += ["paper"] if row["recipe"] == "paper" else []
    return " ".join(parts) + (f", {row['head']} head" if row["head"] else "")


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    r"""The lines of a table in Markdown; a bar in a cell is escaped.

    >>> print(*markdown(["way", "score"], [["from |w|", "0.5"]]), sep="\n")
    | way | score |
    | --- | --- |
    | from \|w\| | 0.5 |
    """
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines]


def number(value: float, form: str) -> str:
    """A number in the given form; "-" for NaN."""
    return "-" if pd.isna(value) else format(value, form)


class Source(NamedTuple):
    """What a figure was made from: a line for its lower edge, and the files of the records."""

    line: str
    records: list[str]


def source(notebook: str, folder: str | Path, runs: pd.DataFrame, also: Iterable[str | Path] = ()) -> Source:
    """Names the notebook, the folders, how many runs, their seeds, and the commit that made the records.

    The commit is that of the records, by how many there are of each. The commit that drew the figure cannot stand in
    it: it is the one that brings the figure in. No figure needs it, for a test holds all to what the checkout draws.

    Args:
        notebook: its name, without suffix.
        folder: where the records lie.
        runs: what is drawn, of `records.table`: ``record``, and ``seed``, ``git_commit`` where they are known.
        also: files of other measurements that are drawn.

    >>> runs = pd.DataFrame({"record": ["quick/a.json", "quick/b.json"], "seed": [0, 1], "git_commit": "4f46e7c7fb"})
    >>> source("02_compare", "results", runs).line
    'Made by notebooks/02_compare.ipynb from results/quick: 2 runs, seeds 0, 1; commit of the records 4f46e7c'
    """
    folder = Path(folder)
    if folder.is_absolute():  # a figure tells nothing of where its maker keeps things
        folder = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else Path(folder.name)
    records = sorted({(folder / record).as_posix() for record in runs["record"]})
    parts = [f"{len(records)} run{'s' * (len(records) > 1)}"]
    if "seed" in runs:
        seeds = sorted(set(runs["seed"].astype(int)))
        gapless = len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1
        named = f"{seeds[0]} to {seeds[-1]}" if gapless else ", ".join(map(str, seeds))
        parts.append(f"seed{'s' * (len(seeds) > 1)} {named}")
    line = f"Made by notebooks/{notebook}.ipynb from {_few(sorted({str(Path(r).parent) for r in records}))}"
    line += f": {', '.join(parts)}"
    if "git_commit" in runs:
        counts = runs["git_commit"].fillna("unknown").value_counts().sort_index().sort_values(kind="stable")
        line += f"; commit of the records {_few([c[:7] + c[40:] for c in counts.index[::-1]])}"
    more = [Path(file).as_posix() for file in also]
    return Source("; and ".join([line, *more]), records + more)


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:MOST]) + f" and {len(names) - MOST} more" * (len(names) > MOST)
