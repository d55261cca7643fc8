"""One run from its parameters to its record, in eight steps: ARCHITECTURE.md draws them. Wiring only."""

from __future__ import annotations

import importlib.util
import resource
import shutil
import sys
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import set_seed

from adaprune.ablations import ablate, check_ablation
from adaprune.data import TaskData, load_task, tokenize
from adaprune.deploy import save_mask
from adaprune.masks import EMBED, component_of, detach, maskable, ranks, summary
from adaprune.methods import Method, register
from adaprune.runs import (
    Paths,
    Plan,
    Run,
    check_writable,
    environment,
    find_record,
    paths_of,
    plan_for,
    read_record,
    record_path,
    write_answers,
    write_record,
)
from adaprune.training import (
    AdaptedModel,
    Encoder,
    Job,
    Outcome,
    Sentences,
    Settings,
    claim,
    load_encoder,
    most_tokens,
    predict,
    read_logits,
    set_dropout,
    taught,
    tensor_hash,
    tensor_hashes,
    write_logits,
    write_tensors,
)


def adapt(run: Run, method: Method | None = None) -> dict:
    """Adapts the model to the task as ``run`` asks; returns the record, which is also on disk.

    A finished run's record is returned as it is, but refused if recipe or rows (where at hand) have changed since. An
    interrupted run continues from its last checkpoint. Record and mask file appear at the end only, in
    ``run.results_dir``. Under ``accelerate launch`` every process calls this; the main one writes, all return it.

    Args:
        run: what is asked.
        method: one of your own, in place of ``run.method``; the record bears its name.

    Raises:
        ValueError: the run cannot be done as asked; the message names the culprit and the choices.
        OSError: data, model or results folder cannot be reached.
        FloatingPointError: the loss is no longer finite.
    """
    if method is not None:
        run = run.model_copy(update={"method": register(method).name})
    plan, paths = plan_for(run), paths_of(record_path(run))
    if (finished := find_record(run)) is not None:
        shutil.rmtree(paths.checkpoints, ignore_errors=True)  # a kill can come between the record and this
        return _unchanged(finished, plan, _data_at_hand(run))
    _check(run)
    processes = PartialState()
    with processes.main_process_first():  # what it fetches, the others find
        task = load_task(run.task, run.data_dir, run.max_train_examples)
    logits = read_logits(run, task)
    encoder = load_encoder(run.model)
    base = tensor_hashes(encoder.model)
    surroundings = environment(
        model_revision=encoder.revision, data_fingerprint=task.fingerprint, seed=run.seed, plan=asdict(plan)
    )
    with processes.main_process_first():
        _claim(paths, task, encoder, logits)
    job = prepare(run, plan, paths, task, encoder)
    outcome = _learn(taught(job, logits))
    metrics, answers = score(job, outcome)
    record = {
        "run": run.model_dump(),
        "metrics": metrics,
        "mask": None if outcome.masks is None else _mask_entry(job, outcome),
        "weights_intact": tensor_hashes(encoder.model) == base,
        "cost": _cost(outcome, job),
        "curve": outcome.fit.curve,
        "environment": surroundings,
    }
    lessons = predict(job.model, job.sentences, "train", job.settings) if run.method == "finetune" else None
    detach(encoder.model)
    if processes.is_main_process:
        # a mask of weights that nobody has helps nobody, nor does one without the head that read it
        if outcome.masks is not None and record["weights_intact"] and outcome.answer is None:
            record["cost"]["shipped_bytes"] = _write_mask(job, outcome, _card(job, encoder, metrics))
        if lessons is not None:
            write_logits(paths.logits, lessons, task)
        write_answers(paths.answers, answers, task)
        write_record(record, run)
        shutil.rmtree(paths.checkpoints, ignore_errors=True)
    processes.wait_for_everyone()
    return read_record(paths.record)


def prepare(run: Run, plan: Plan, paths: Paths, task: TaskData, encoder: Encoder) -> Job:
    """The job of ``run``: sentences tokenised, a fresh head made from the run's seed, settings from the plan.

    Raises:
        ValueError: ``max_length`` is more than the model has positions for.
    """
    most = most_tokens(encoder.model)
    if most is not None and run.max_length > most:
        raise ValueError(
            f"max_length must be at most {most}, the positions of model {run.model!r}, got {run.max_length}"
        )
    if plan.dropout >= 0:
        set_dropout(encoder.model, plan.dropout)
    set_seed(run.seed)
    pooling = encoder.pooling if plan.pooling == "own" else plan.pooling
    model = AdaptedModel.for_task(encoder.model, task.num_labels, run.head, pooling)
    if not task.labels:  # start a regression at the mean label, not at 0
        torch.nn.init.constant_(model.head.output.bias, float(np.mean(task.splits["train"]["label"])))
    splits = {name: tokenize(split, encoder.tokenizer, run.max_length) for name, split in task.splits.items()}
    sentences = Sentences(splits, encoder.tokenizer, task.metrics, task.primary)
    settings = Settings(
        folder=paths.checkpoints,
        epochs=plan.epochs,
        batch_size=plan.batch_size,
        seed=run.seed,
        schedule=plan.schedule,
        precision=run.precision,
        checkpoint_steps=run.checkpoint_steps,
    )
    tables = [name for name in maskable(encoder.model, run.scope) if component_of(name) == EMBED]
    rows = encoder.model.get_input_embeddings().num_embeddings
    return Job(run, model, task, sentences, settings, plan, paths, {name: sentences.seen(rows) for name in tables})


def score(job: Job, outcome: Outcome) -> tuple[dict, np.ndarray]:
    """The record's metrics, and the logits on the dev split, which is looked at here and nowhere before."""
    answer = outcome.answer or (lambda split: predict(job.model, job.sentences, split, job.settings))
    task, validation = job.task, {}
    dev = [name for name in task.splits if name.startswith("validation")]
    logits = {split: answer(split) for split in [*dev, "selection"]}
    for split in dev:
        validation |= task.metrics(logits[split], task.splits[split]["label"], split)
    selection = task.metrics(logits["selection"], task.splits["selection"]["label"])
    return {"validation": validation, "selection": selection, "primary": task.primary}, logits[dev[0]]


def _learn(job: Job) -> Outcome:
    """What the run's method makes of the job, or the ablation of its finished mask.

    Raises:
        ValueError: it left a mask or none, and the method says otherwise; nothing has been written yet.
    """
    outcome = ablate(job) if job.run.ablation else job.run.kind.function(job)
    if (said := job.run.kind.mask) != (outcome.masks is not None):
        raise ValueError(f"method {job.run.method!r} says mask={said} and left {'none' if said else 'a mask'}")
    return outcome


def _data_at_hand(run: Run) -> str | None:
    """The fingerprint of a finished run's data, where they are still there: a record can be read without them."""
    with suppress(FileNotFoundError):
        if Path(run.data_dir, run.task).exists():
            return load_task(run.task, run.data_dir, run.max_train_examples).fingerprint
    return None


def _unchanged(record: dict, plan: Plan, data: str | None) -> dict:
    """The record of a finished run; ValueError where the same fields would not be the same run today."""
    made = record["environment"]
    then = {"pooling": "cls", **made.get("plan", {})}  # the oldest records say nothing, old ones nothing of pooling
    changed = [
        f"{name} was {then[name]!r}, is {value!r}"
        for name, value in asdict(plan).items()
        if name in then and then[name] != value
    ]
    if data is not None and made["data_fingerprint"] not in (None, data):
        changed.append("the data have changed")
    if changed:
        path = record_path(Run(**record["run"]))
        raise ValueError(f"{path}: {'; '.join(changed)}: choose another results_dir, or delete the record")
    return record


def _check(run: Run) -> None:
    """Refuses what this machine, this folder or this run lacks, before anything is loaded.

    Raises:
        ValueError: no GPU for fp16, no peft for lora, nothing that an ablation could start from.
        OSError: the results folder cannot be written.
    """
    if run.method == "lora" and importlib.util.find_spec("peft") is None:
        raise ValueError("method='lora' needs the package peft: pip install peft, or the extra adaprune[methods]")
    if run.precision == "fp16" and not torch.accelerator.is_available():  # on a CPU it would quietly be fp32
        raise ValueError("precision='fp16' needs a GPU: use precision='bf16' or 'fp32' on a CPU")
    check_ablation(run)
    check_writable(run.results_dir)


def _claim(paths: Paths, task: TaskData, encoder: Encoder, logits: torch.Tensor | None) -> None:
    """Takes the checkpoint folder for this data, model, teacher and number of processes (see `training.claim`)."""
    origin: dict[str, Any] = {"data": task.fingerprint, "model": encoder.revision}
    origin["processes"] = PartialState().num_processes
    claim(paths.checkpoints, **origin, **({} if logits is None else {"teacher": tensor_hash(logits)}))


def _write_mask(job: Job, outcome: Outcome, card: dict) -> int:
    """Writes the mask file, and theta's order where the run keeps it; returns the file's bytes."""
    path = save_mask(job.paths.mask, outcome.masks, job.model.head.state_dict(), card, job.model.encoder)
    if outcome.thetas is not None:
        write_tensors(job.paths.theta, ranks(outcome.thetas, outcome.masks))
    return path.stat().st_size


def _mask_entry(job: Job, outcome: Outcome) -> dict:
    """The record's account of the mask; embedding rows unseen in training are counted apart."""
    entry = {"scope": job.run.scope, **summary(job.model.encoder, outcome.masks)}
    table = next((name for name in outcome.masks if component_of(name) == EMBED), None)
    if table is not None:
        seen = job.sentences.seen(outcome.masks[table].shape[0])
        for label, rows in {"seen_rows": seen, "unseen_rows": ~seen}.items():
            part = outcome.masks[table][rows]
            kept, total = int(part.sum()), part.numel()
            counts = {"sparsity": (total - kept) / total if total else 0.0, "kept": kept, "total": total}
            entry[label] = {"rows": int(rows.sum()), **counts}
    return entry


def _cost(outcome: Outcome, job: Job) -> dict:
    """What the run took; memory is the peak of the device, or of the whole process on a CPU."""
    device = next(job.model.parameters()).device
    if device.type == "cuda":
        memory, name = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_name(device)
    else:
        unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
        memory, name = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, device.type
    fit = outcome.fit
    return {
        "train_seconds": round(fit.seconds, 3),
        "steps": fit.steps,
        "examples_per_second": round(fit.examples / max(fit.seconds, 1e-3), 3),
        "peak_memory_bytes": memory,
        "device": name,
        "shipped_bytes": _shipped_bytes(outcome, job),
    }


def _shipped_bytes(outcome: Outcome, job: Job) -> int:
    """What a task without a mask file adds to a base model that is there: the head, and what was trained of weights."""
    head = [] if outcome.answer is not None else job.model.head.parameters()
    tensors = [*head, *(outcome.updates or ())]
    if not job.run.kind.weights_intact and outcome.updates is None:
        tensors += (value for name, value in job.model.encoder.named_parameters() if not name.endswith(".theta"))
    return sum(t.numel() * t.element_size() for t in tensors)


def _card(job: Job, encoder: Encoder, metrics: dict) -> dict:
    """What a stranger needs to know to use the mask."""
    run = job.run
    return {
        "task": run.task,
        "labels": list(job.task.labels),
        "metrics": metrics,
        "sparsity": run.sparsity,
        "scope": run.scope,
        "method": run.method,
        "recipe": run.recipe,
        "seed": run.seed,
        "model": encoder.id,
        "revision": encoder.revision,
        "heads": encoder.model.config.num_attention_heads,
        "pooling": job.model.head.pooling,
        "licence": encoder.licence,  # the base model's, which binds its mask too
        "versions": {name: version(name) for name in ("adaprune", "torch", "transformers", "safetensors")},
    }
