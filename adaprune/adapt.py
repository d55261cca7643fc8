"""One run from its parameters to its record: load, adapt by the method, evaluate, save. Wiring only."""

from __future__ import annotations

import importlib.util
import resource
import shutil
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from transformers import set_seed

from adaprune.ablations import ablate, check_ablation
from adaprune.data import TaskData, load_task, tokenize
from adaprune.deploy import save_mask
from adaprune.masks import EMBED, component_of, detach, maskable, ranks, summary, theta_path
from adaprune.methods import METHODS
from adaprune.runs import (
    Run,
    check_writable,
    environment,
    find_record,
    mask_path,
    plan_for,
    read_record,
    record_path,
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
    evaluate,
    kept_rows,
    lessons,
    load_encoder,
    most_tokens,
    predict,
    read_logits,
    set_dropout,
    tensor_hash,
    tensor_hashes,
    together,
    write_logits,
    write_tensors,
)


def adapt(run: Run) -> dict:
    """Adapts the model to the task as ``run`` asks; returns the record, which is also on disk.

    A finished run's record is returned as it is, but refused if recipe or rows (where at hand) have changed since. An
    interrupted run continues from its last checkpoint. Record and mask file appear at the end only, in
    ``run.results_dir``. Under ``accelerate launch`` every process calls this; the main one writes, all return it.

    Raises:
        ValueError: the run cannot be done as asked; the message names the culprit and the choices.
        OSError: data, model or results folder cannot be reached.
        FloatingPointError: the loss is no longer finite.
    """
    if (finished := _finished(run)) is not None:
        return finished
    _check_machine(run)
    check_ablation(run)
    check_writable(run.results_dir)
    processes = PartialState()
    with processes.main_process_first():  # what it fetches, the others find
        task = load_task(run.task, run.data_dir, run.max_train_examples)
    logits = read_logits(run, task)
    encoder = load_encoder(run.model)
    surroundings = environment(
        model_revision=encoder.revision, data_fingerprint=task.fingerprint, seed=run.seed, plan=asdict(plan_for(run))
    )
    base = tensor_hashes(encoder.model)
    job = prepare(run, task, encoder)
    with processes.main_process_first():
        origin = {"data": task.fingerprint, "model": encoder.revision, "processes": processes.num_processes}
        origin |= {} if logits is None else {"teacher": tensor_hash(logits)}
        claim(job.settings.folder, **origin)
    whole, (rows, scoring) = job, kept_rows(job)
    job = lessons(job, rows, logits)
    outcome = ablate(job) if run.ablation else METHODS[run.method](job)
    outcome = replace(outcome, fit=together(*scoring, outcome.fit))
    metrics = score(job, task)
    taught = predict(job.model, whole.sentences, "train", job.settings) if run.method == "finetune" else None
    record = {
        "run": run.model_dump(),
        "metrics": metrics,
        "mask": None if outcome.masks is None else _mask_entry(job, outcome),
        "weights_intact": tensor_hashes(encoder.model) == base,
        "cost": _cost(outcome, job),
        "curve": outcome.fit.curve,
        "environment": surroundings,
    }
    detach(encoder.model)
    if PartialState().is_main_process:
        if outcome.masks is not None and record["weights_intact"]:  # a mask of weights that nobody has helps nobody
            card = _card(run, task, encoder, metrics)
            path = save_mask(mask_path(run), outcome.masks, job.model.head.state_dict(), card, encoder.model)
            record["cost"]["shipped_bytes"] = path.stat().st_size
            if outcome.thetas is not None:
                write_tensors(theta_path(record_path(run)), ranks(outcome.thetas, outcome.masks))
        if taught is not None:
            write_logits(record_path(run), taught, task)
        write_record(record, run)
        shutil.rmtree(job.settings.folder, ignore_errors=True)
    PartialState().wait_for_everyone()
    return read_record(record_path(run))


def prepare(run: Run, task: TaskData, encoder: Encoder) -> Job:
    """The job of ``run``: recipe filled in, sentences tokenised, a fresh head made from the run's seed.

    Raises:
        ValueError: ``max_length`` is more than the model has positions for, or see `plan_for`.
    """
    plan, most = plan_for(run), most_tokens(encoder.model)
    if most is not None and run.max_length > most:
        raise ValueError(
            f"max_length must be at most {most}, the positions of model {run.model!r}, got {run.max_length}"
        )
    if plan.dropout >= 0:
        set_dropout(encoder.model, plan.dropout)
    set_seed(run.seed)
    model = AdaptedModel.for_task(encoder.model, task.num_labels, run.head)
    if not task.labels:  # start a regression at the mean label, not at 0
        torch.nn.init.constant_(model.head.output.bias, float(np.mean(task.splits["train"]["label"])))
    splits = {name: tokenize(split, encoder.tokenizer, run.max_length) for name, split in task.splits.items()}
    sentences = Sentences(splits, encoder.tokenizer, task.metrics, task.primary)
    settings = Settings(
        folder=Path(run.results_dir) / ".checkpoints" / run.name,
        epochs=plan.epochs,
        batch_size=plan.batch_size,
        gradient_accumulation=run.gradient_accumulation,
        seed=run.seed,
        schedule=plan.schedule,
        precision=run.precision,
        checkpoint_steps=run.checkpoint_steps,
        report_to=run.report_to,
    )
    tables = [name for name in maskable(encoder.model, run.scope) if component_of(name) == EMBED]
    rows = encoder.model.get_input_embeddings().num_embeddings
    seen = {} if run.prune_unseen else {name: sentences.seen(rows) for name in tables}
    return Job(run, model, sentences, settings, plan, seen)


def score(job: Job, task: TaskData) -> dict:
    """The record's metrics: the selection split, and the dev split, looked at here and nowhere before."""
    validation: dict[str, float] = {}
    for split in (name for name in task.splits if name.startswith("validation")):
        metrics = evaluate(job.model, job.sentences, split, job.settings)
        suffix = split.removeprefix("validation")
        validation.update({name + suffix: value for name, value in metrics.items()})
    selection = evaluate(job.model, job.sentences, "selection", job.settings)
    return {"validation": validation, "selection": selection, "primary": task.primary}


def _finished(run: Run) -> dict | None:
    """The run's record, if it has one; ValueError where the same fields would not be the same run today."""
    record = find_record(run)
    if record is None:
        return None
    plan, made = asdict(plan_for(run)), record["environment"]
    then = made.get("plan", {})  # older records do not say
    changed = [f"{n} was {then[n]!r}, is {value!r}" for n, value in plan.items() if n in then and then[n] != value]
    with suppress(FileNotFoundError):  # a record can be read without its data
        if Path(run.data_dir, run.task).exists():
            data = load_task(run.task, run.data_dir, run.max_train_examples).fingerprint
            changed += ["the data have changed"] if made["data_fingerprint"] not in (None, data) else []
    if changed:
        raise ValueError(f"{record_path(run)}: {'; '.join(changed)}: choose another results_dir, or delete the record")
    return record


def _check_machine(run: Run) -> None:
    """ValueError where the machine lacks what ``run`` asks for: a reporter's package, a GPU for fp16."""
    name = run.report_to
    if name != "none" and importlib.util.find_spec(name) is None:
        raise ValueError(f"report_to={name!r} needs the package {name}: pip install {name}, or use report_to='none'")
    if run.method == "lora" and importlib.util.find_spec("peft") is None:
        raise ValueError("method='lora' needs the package peft: pip install peft, or the extra adaprune[methods]")
    if run.precision == "fp16" and not torch.accelerator.is_available():  # on a CPU it would quietly be fp32
        raise ValueError("precision='fp16' needs a GPU: use precision='bf16' or 'fp32' on a CPU")


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
        "examples_per_second": round(fit.examples / fit.seconds, 3),
        "peak_memory_bytes": memory,
        "device": name,
        "shipped_bytes": _shipped_bytes(outcome, job),
    }


def _shipped_bytes(outcome: Outcome, job: Job) -> int:
    """What a task without a mask file adds to a base model that is there: the head, and what was trained of weights."""
    tensors = [*job.model.head.parameters(), *(outcome.updates or ())]
    if not job.run.kind.weights_intact and outcome.updates is None:
        tensors += (value for name, value in job.model.encoder.named_parameters() if not name.endswith(".theta"))
    return sum(t.numel() * t.element_size() for t in tensors)


def _card(run: Run, task: TaskData, encoder: Encoder, metrics: dict) -> dict:
    """What a stranger needs to know to use the mask."""
    return {
        "task": run.task,
        "labels": list(task.labels),
        "metrics": metrics,
        "sparsity": run.sparsity,
        "scope": run.scope,
        "method": run.method,
        "recipe": run.recipe,
        "seed": run.seed,
        "model": encoder.id,
        "revision": encoder.revision,
        "heads": encoder.model.config.num_attention_heads,
        "licence": encoder.licence,  # the base model's, which binds its mask too
        "versions": {name: version(name) for name in ("adaprune", "torch", "transformers", "safetensors")},
    }
