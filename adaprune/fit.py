"""From a table of texts to a model in one call: `fit` does every run that this takes and says what adapting gained."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from adaprune.adapt import adapt
from adaprune.adapted import Adapted
from adaprune.data import KNOWN_TASKS, TaskData, expanded, load_task, resampled
from adaprune.data.labels import taken_as
from adaprune.deploy import load_mask, save_mask
from adaprune.given import columns_of
from adaprune.masks import maskable
from adaprune.methods import METHODS, constant, probe_head
from adaprune.runs import Run, find_record, paths_of, plan_for, read_answers, record_path, write_bytes
from adaprune.training import card_of, load_encoder, prepare

# Fields that the probe and the teacher share with the run; the others are settings of the run's own method.
SHARED = ("task", "seed", "model", "data_dir", "results_dir", "max_train_examples", "max_length", "precision",
          "checkpoint_steps")  # fmt: skip

FEWEST = 6  # dev rows that can show a gain: to be better on all of 5 is chance in one of 16 cases


def fit(data: Any, labels: Sequence | None = None, *, teacher: str = "", **fields: Any) -> Adapted:
    """Adapts the model to ``data`` and returns it ready to use.

    It also runs the probe (seconds): a regression on the frozen model's sentence vectors, which shows what the model
    already knows. One line on standard error says what adapting gained over it. Runs that are finished in
    ``results_dir`` are not repeated; an interrupted run continues.

    Args:
        data: a path or a task's name as `Run` takes it; a pandas frame or `datasets.Dataset` with the columns text,
            (text_pair,) label; or two lists, texts and labels. Anything but a path is stored in ``results_dir``/data.
        labels: the second list, where ``data`` is the first; texts may be pairs.
        teacher: the record of a fine-tuned run on the same data, or "auto": the one in ``results_dir``; if there is
            none, it is trained first, which takes about as long again.
        fields: of `Run`, by name. ``method="probe"`` ships the probe: a mask that keeps everything, and a linear head.

    Raises:
        ValueError: an impossible setting (the message names the choices), or a method that leaves nothing to ship.
        TypeError: data of any other type.
        OSError: data, model or results folder cannot be reached.
    """
    if "task" in fields:
        raise ValueError("data names the task: call fit(data) without task=; data can be a path or a task's name")
    fields = {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}
    run = Run(task="a table", **fields)  # refuses unknown names and wrong values before anything is written
    if not (run.method == "probe" or (run.kind.mask and run.kind.weights_intact)):
        ships = [name for name, kind in METHODS.items() if name == "probe" or (kind.mask and kind.weights_intact)]
        raise ValueError(
            f"fit returns a mask or a probe on an untouched model, and method {run.method!r} leaves neither: use "
            f"adapt(Run(...)) for its score, or one of {', '.join(ships)}"
        )
    if teacher and not run.kind.trains:
        raise ValueError(f"teacher={str(teacher)!r} would change nothing in method {run.method!r}: leave it out")
    plan_for(run)  # refuses what the method does not read, before a teacher or the probe is run
    run = run.model_copy(update={"task": _task(data, labels, run.results_dir)})
    task = load_task(run.task, run.data_dir, run.max_train_examples)
    _say_kind(task)
    shared = {name: getattr(run, name) for name in SHARED}
    if teacher == "auto":
        teacher = _teacher(Run(**shared, epochs=run.epochs, method="finetune", sparsity=0.0))
    run = run.model_copy(update={"teacher": str(teacher)})
    ours = known = (run, record := adapt(run))
    if run.method != "probe":
        probe = Run(**shared, method="probe", sparsity=0.0)
        known = (probe, adapt(probe))
    said = _verdict(task, ours, known)
    path = paths_of(run).mask
    if run.method == "probe" and not path.is_file():
        _ship_probe(run, record, task)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: delete {record_path(run)} and run again (masks are not in git)")
    adapted = Adapted(load_mask(path), load_encoder(run.model), path, record, said)
    print(said, file=sys.stderr)
    return adapted


def _task(data: Any, labels: Sequence | None, results_dir: str) -> str:
    """The ``Run.task`` for this data: its path, or that of a file written once and named by its content."""
    if labels is None and isinstance(data, (str, Path)):
        return str(data)
    columns = columns_of(data, labels)
    content = json.dumps(columns).encode()
    path = expanded(results_dir) / "data" / f"table-{hashlib.sha256(content).hexdigest()[:8]}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), buffer)
        write_bytes(path, buffer.getvalue().to_pybytes())
    return str(path)


def _say_kind(task: TaskData) -> None:
    """One line: which kind of task a user's own labels make and, where they leave it open, how to choose the other."""
    if task.name not in KNOWN_TASKS:
        print(f"task: {taken_as(task.labels or sorted(set(task.splits['train']['label'])))}", file=sys.stderr)


def _teacher(run: Run) -> str:
    """The record of the fine-tuned teacher, found or made; says what it costs."""
    path = record_path(run)
    if find_record(run) is None:
        print("teacher: fine-tuning the whole model first; nothing of it is shipped", file=sys.stderr)
    record = adapt(run)
    metric = record["metrics"]["primary"]
    print(
        f"teacher: {metric} {record['metrics']['validation'][metric]:.3f}, {record['cost']['train_seconds']:.0f} s of "
        f"training, {path}",
        file=sys.stderr,
    )
    return str(path)


def _verdict(task: TaskData, ours: tuple[Run, dict], known: tuple[Run, dict]) -> str:
    """One line: the score, the majority class's and the probe's, and what adapting gained.

    ``ours`` and ``known`` are the run and the probe, which may be the same, each with its record. Whether this is a
    gain is judged by the paired bootstrap over the dev rows (95 %), see `data.resampled`.
    """
    run, metric = ours[0], ours[1]["metrics"]["primary"]
    score, without = (record["metrics"]["validation"][metric] for _, record in (ours, known))
    held = task.splits["validation"]["label"]
    rows = f"{len(held)} dev rows"
    if lacking := [label for number, label in enumerate(task.labels) if number not in set(held)]:
        rows += f", none of them {' or '.join(lacking[:3])}"
    constant = "the commonest label" if task.labels else "the mean"
    floor = commonest(task)[metric]
    begin = f"{metric} {score:.3f} on {rows}; always {constant}: {floor:.3f}"
    if run.method == "probe":
        return f"{begin}. This is the probe: nothing was adapted."
    try:
        samples = [_samples(one, task, metric) for one, _ in (ours, known)]
        low, high = np.quantile(samples[0] - samples[1], [0.025, 0.975])
        between = f" [{low:+.3f}, {high:+.3f}]"
    except FileNotFoundError:  # records from before 0.2
        low, between = score - without, ""
    gain = f"{score - without:+.3f}{between}"
    if score <= without:
        said = f"adapting gained nothing ({gain}): the probe is the better choice, method='probe' ships it"
    elif low <= 0 or len(held) < FEWEST:
        said = f"adapting gained {gain} over it; with so few rows this may be chance"
    else:
        said = f"adapting gained {gain} over it"
    if max(score, without) < floor:
        said += f"; neither is better than always {constant}"
    return f"{begin}; a probe on the untouched model: {without:.3f}; {said}."


def _samples(run: Run, task: TaskData, metric: str) -> np.ndarray:
    """The main metric on `data.resampled` samples of the dev rows; for a user's own file, from its answers.

    Raises:
        FileNotFoundError: no answers beside the record.
    """
    answers, scores = read_answers(paths_of(run).answers)
    if len(scores):
        return scores
    said = np.eye(task.num_labels)[answers] if task.labels else answers[:, None]
    labels = np.asarray(task.splits["validation"]["label"])
    return resampled(lambda one, true: task.metrics(one, true)[metric], said, labels)


def scores_beside(run: Run) -> dict[str, float]:
    """The main metric of a finished run, of the probe, and of the commonest label, on the same dev rows.

    The probe is read from ``results_dir``, or run in a temporary folder. With more than 20,000 training rows that would
    take minutes, so it is left out.
    """
    task = load_task(run.task, run.data_dir, run.max_train_examples)
    probe = Run(**{name: getattr(run, name) for name in SHARED}, method="probe", sparsity=0.0)
    found, metric = find_record(probe), task.primary
    if found is None and len(task.splits["train"]) <= 20_000:
        with tempfile.TemporaryDirectory() as folder:
            found = adapt(probe.model_copy(update={"results_dir": folder}))
    return {
        "this run": find_record(run)["metrics"]["validation"][metric],
        "probe": float("nan") if found is None else found["metrics"]["validation"][metric],
        "commonest label" if task.labels else "the mean": commonest(task)[metric],
    }


def commonest(task: Any) -> dict[str, float]:
    """The metrics of a constant answer: the majority class of the training rows or, in a regression, their mean."""
    held = task.splits["validation"]
    return task.metrics(constant(task, len(held)), held["label"])


def _ship_probe(run: Run, record: dict, task: TaskData) -> None:
    """Writes the probe as a mask file: every weight kept, and the regression as a linear head."""
    encoder, plan, paths = load_encoder(run.model), plan_for(run), paths_of(run)
    job = prepare(run, plan, paths, task, encoder)
    kept = {
        name: torch.ones_like(module.weight, dtype=torch.bool)
        for name, module in maskable(encoder.model, run.scope).items()
    }
    card = {**card_of(job, encoder, record["metrics"]), "sparsity": 0.0}
    save_mask(paths.mask, kept, probe_head(job).state_dict(), card, encoder.model)
