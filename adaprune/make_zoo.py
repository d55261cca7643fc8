"""Fills the zoo from the finished runs of a table: each mask with a complete card.

    python -m adaprune.make_zoo [--table sweeps/zoo.tsv] [--data DIR] [--zoo adaprune/zoo]

The first run of each name in the table ships, whatever its score; further seeds add their scores to its card. A mask
that is no longer beside its record is taken from the zoo itself, if it came from that record. Besides the usual
entries, a card has ``zoo``: the data and their terms; the rows and their fingerprint; the dev scores by seed; the base
model's other name; the commands and the commit that reproduce it. A name whose first run is not finished keeps the
file that the zoo has, and is listed; masks whose name is not in the table are removed. Nothing is written until all
records, masks and rows are found to belong together.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from adaprune.data import load_task
from adaprune.deploy import ZOO, given, load_mask, save_mask, zoo, zoo_name
from adaprune.report.sweeps import read_sweep
from adaprune.runs import RESULT_NEUTRAL, Run, default_of, find_record, mask_path, read_record, record_path
from adaprune.training import MINILM, bar, load_encoder

MOST_BYTES = 6_000_000
BASE_SIZE = "all-mpnet-base-v2"  # not in a package that is installed: benchmarks.base_size fetches it
BASES = {  # a model, or the last part of its path: its name on the hub, and its licence there
    MINILM: ("sentence-transformers/all-MiniLM-L6-v2", "apache-2.0"),
    BASE_SIZE: (f"sentence-transformers/{BASE_SIZE}", "apache-2.0"),
}
# Each corpus keeps its own terms, given here as far as we know them.
DATA = {
    "cola": "CoLA (Warstadt et al. 2019), sentences from published linguistics; no explicit licence, research use",
    "sst2": "SST-2 (Socher et al. 2013), film reviews; no explicit licence, research use",
    "mrpc": "MRPC (Dolan and Brockett 2005), news; licence terms of Microsoft Research",
    "stsb": "STS-B (Cer et al. 2017), news, captions, forums; mixed source licences, SemEval data CC BY-SA 4.0",
    "qqp": "QQP, questions from Quora; terms of Quora",
    "mnli": "MNLI (Williams et al. 2018); mostly the OANC licence, fiction CC BY, CC BY-SA 3.0 and public domain; "
    "rows are from a part of 27,751 of its 392,702 training rows, so the commands need that part as data_dir",
    "qnli": "QNLI (Rajpurkar et al. 2016, Wang et al. 2019), from SQuAD; CC BY-SA 4.0; "
    "rows are from a part of 23,061 of its 104,743 training rows, so the commands need that part as data_dir",
    "rte": "RTE 1, 2, 3 and 5 (Dagan et al. 2006 and others), news and Wikipedia; no explicit licence",
    "wnli": "WNLI (Levesque et al. 2012), Winograd schemas; CC BY 4.0",
    "movie_reviews": "film reviews with the ratings of vaderSentiment (Hutto and Gilbert 2014); MIT",
}


def make_zoo(runs: list[Run], folder: str | Path = ZOO) -> list[Path]:
    """Writes the mask of each name among the ``runs`` and removes other names from ``folder``; returns what it wrote.

    A name whose first run lacks its record or mask is left as it is.

    Raises:
        ValueError: a run that ships changed weights, its rows are not those of its record, or its task is not a public
            one. Nothing has then been written.
        OSError: data or a base model is not available.
    """
    named: dict[str, list[Run]] = {}
    for run in runs:
        named.setdefault(zoo_name(run), []).append(run)
    sources = {name: _source(some[0], Path(folder, f"{name}.safetensors")) for name, some in named.items()}
    ship = {name: named[name][0] for name, source in sources.items() if source is not None}
    cards = {name: _about(name, named[name]) for name in bar(ship, desc="cards", unit="mask")}
    encoders = {model: load_encoder(model).model for model in {run.model for run in ship.values()}}
    masks = {name: load_mask(sources[name], base=encoders[run.model]) for name, run in ship.items()}
    made = []
    for name, mask in masks.items():
        path, base = Path(folder, f"{name}.safetensors"), encoders[ship[name].model]
        card = {**given(mask.card), "zoo": cards[name]}
        if ship[name].model != MINILM and (known := BASES.get(Path(ship[name].model).name)):
            card["model"], card["licence"] = known  # a folder is nowhere else, and may lack the model's README
        if ship[name].pattern != "weights":
            card["pattern"] = ship[name].pattern
        made.append(save_mask(path, mask.masks, mask.head, card, base))
    for old in Path(folder).glob("*.safetensors"):
        if old.stem not in named:
            old.unlink()
            old.with_suffix(".json").unlink(missing_ok=True)
    return made


def _source(run: Run, shipped: Path) -> Path | None:
    """Where the run's mask is: beside its record or, from that same record, in the zoo; None if nowhere."""
    record = find_record(run)
    if record is None or mask_path(run).exists():
        return record and mask_path(run)
    if not shipped.exists():
        return None
    card = load_mask(shipped).card
    same = card["metrics"] == record["metrics"] and card["zoo"]["commit"] == record["environment"]["git_commit"]
    return shipped if same else None


def _about(name: str, runs: list[Run]) -> dict[str, Any]:
    """The entry ``zoo`` of a card."""
    run, records = runs[0], {run.seed: record for run in runs if (record := find_record(run)) is not None}
    if run.task not in DATA:
        raise ValueError(f"task {run.task!r}: the zoo holds masks of {', '.join(DATA)}, whose terms are known")
    record = records[run.seed]
    if not record["weights_intact"]:
        raise ValueError(f"{run.name} changed weights: its mask is of no use to others")
    task = load_task(run.task, run.data_dir, run.max_train_examples)
    if (was := record["environment"]["data_fingerprint"]) != task.fingerprint:
        raise ValueError(f"{run.name} saw other rows of {run.task} than data_dir has now ({was} was its fingerprint)")
    metric = record["metrics"]["primary"]
    fetch = [f"python -m benchmarks.base_size --folder {run.model}"] if Path(run.model).name == BASE_SIZE else []
    return {
        "name": name,
        "data": DATA[run.task],
        "rows": {split: len(rows) for split, rows in task.splits.items()},
        "fingerprint": task.fingerprint,
        "scores": {str(seed): found["metrics"]["validation"][metric] for seed, found in records.items()},
        "base": BASES.get(Path(run.model).name, (run.model, ""))[0],
        "commands": [*fetch, *_commands(run)],
        "commit": record["environment"]["git_commit"],
    }


def _commands(run: Run) -> list[str]:
    """The commands that repeat the run, its teacher's first."""
    before, asked = [], _changed(run)
    if run.teacher:
        teacher = Run(**read_record(run.teacher)["run"])
        before, asked["teacher"] = _commands(teacher), record_path(Run(**_changed(teacher))).as_posix()
    asked = ", ".join(f"{name}={value!r}" for name, value in asked.items())
    return [*before, f'python -c "from adaprune import Run, adapt; adapt(Run({asked}))"']


def _changed(run: Run) -> dict[str, Any]:
    """The fields that affect the result and are not at their default."""
    changed = {name: value for name, value in run if name not in RESULT_NEUTRAL and value != default_of(name)}
    return {name: getattr(run, name) for name in ("task", "method", "sparsity", "seed")} | changed


def main(arguments: list[str] | None = None) -> int:
    """The command line; 1 where the zoo has grown too large to ship."""
    parser = argparse.ArgumentParser(prog="python -m adaprune.make_zoo", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--table", type=Path, default=Path("sweeps/zoo.tsv"), help="the runs, one row each, with their results_dir"
    )
    parser.add_argument("--data", default="", help="folder with <task>/{train,validation}.parquet; empty: the hub")
    parser.add_argument("--zoo", type=Path, default=ZOO, help="where the masks go")
    asked = parser.parse_args(arguments)
    try:
        runs = read_sweep(asked.table, data_dir=asked.data)
        made = make_zoo(runs, asked.zoo)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    if lacking := sorted({zoo_name(run) for run in runs} - {path.stem for path in made}):
        print(f"left as they are, for want of a record or mask: {', '.join(lacking)}", file=sys.stderr)
    size = sum(path.stat().st_size for path in Path(asked.zoo).glob("*"))
    print(zoo(asked.zoo).round(4).to_string(), f"{size:,} bytes of at most {MOST_BYTES:,}", sep="\n")
    return int(size > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main())
