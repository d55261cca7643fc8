"""One run, from its parameters to its record, in the eight steps of ARCHITECTURE.md. Wiring only."""

import importlib.util
import logging
import os
import resource
import shutil
import sys
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from importlib.metadata import version

import numpy as np
import torch
from accelerate import PartialState
from transformers import set_seed

from adaprune.ablations import ablate, check_ablation
from adaprune.data import KNOWN_TASKS, TaskData, check_known, expanded, load_task, public, tokenize
from adaprune.deploy import save_mask
from adaprune.masks import EMBED, component_of, detach, maskable, ranks, summary
from adaprune.methods import Method, register
from adaprune.runs import (
    Paths,
    Plan,
    Run,
    check_writable,
    environment,
    epochs_of,
    find_record,
    paths_of,
    plan_for,
    read_record,
    write_answers,
    write_record,
)
from adaprune.training import (
    MINILM,
    AdaptedModel,
    Encoder,
    Job,
    Outcome,
    Sentences,
    Settings,
    alone,
    batches_in,
    check_origin,
    load_encoder,
    local_files,
    local_revision,
    most_tokens,
    predict,
    read_logits,
    score,
    set_dropout,
    tensor_hash,
    tensor_hashes,
    with_teacher,
    write_logits,
    write_tensors,
)


def adapt(run: Run, method: Method | None = None) -> dict:
    """Adapts the model to the task with the settings of ``run``; returns the record, which is also on disk.

    If the run is already finished, its record is returned, or refused if the recipe, the base model or the rows (if
    available) have changed since. An interrupted run continues from its last checkpoint. The record and the mask file
    appear only at the end. Under ``accelerate launch`` every process calls this; the main one writes, and all return
    it.

    Args:
        method: a method of your own, instead of ``run.method``; the record has its name.

    Raises:
        ValueError: the run cannot be done with these settings; the message names the setting and the choices.
        OSError: data, model or results folder cannot be reached.
        FloatingPointError: the loss is no longer finite.
    """
    if method is not None:
        run = run.model_copy(update={"method": register(method).name})
    plan, paths = plan_for(run), paths_of(run)
    if (finished := find_record(run)) is not None:
        return _unchanged(finished, run, plan, paths)
    _check(run, paths)
    processes = PartialState()
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1  # processes of one launch share the work
    with nullcontext() if together else alone(paths.checkpoints):
        if (finished := find_record(run)) is not None:  # another process has made it meanwhile
            return _unchanged(finished, run, plan, paths)
        return _made(run, plan, paths, processes)


def _made(run: Run, plan: Plan, paths: Paths, processes: PartialState) -> dict:
    """Makes and writes the record of a run that is not finished; returns the record."""
    with processes.main_process_first():  # the others find what it downloads
        task = load_task(run.task, run.data_dir, run.max_train_examples)
    logits = read_logits(run, task)
    encoder = load_encoder(run.model)
    taught = None if logits is None else tensor_hash(logits)
    origin = {"data": task.fingerprint, "model": encoder.revision, "model_files": encoder.files, "teacher": taught}
    with processes.main_process_first():
        check_origin(paths.checkpoints, **origin, processes=processes.num_processes)
    base = tensor_hashes(encoder.model)
    job = prepare(run, plan, paths, task, encoder)
    model = {"model_revision": encoder.revision, "model_files": encoder.files}
    surroundings = environment(**model, data_fingerprint=task.fingerprint, seed=run.seed, plan=asdict(job.plan))
    outcome = _learn(with_teacher(job, logits))
    masks, intact = outcome.masks, _intact(run, base, tensor_hashes(encoder.model))
    metrics, answers = score(job, outcome)
    lessons = predict(job.model, job.sentences, "train", job.settings) if run.method == "finetune" else None
    record = {
        "run": run.model_dump(),
        "metrics": metrics,
        "weights_intact": intact,
        "cost": _cost(outcome, job, intact),
        "mask": None if masks is None else {"scope": run.scope, **summary(encoder.model, masks, job.seen)},
        "curve": outcome.fit.curve,
        "environment": surroundings,
    }
    detach(encoder.model)
    if processes.is_main_process:
        # a mask is useless over weights that nobody else has, or without its head
        if masks is not None and intact and outcome.answer is None:
            record["cost"]["shipped_bytes"] = _write_mask(job, encoder, outcome, metrics)
        if lessons is not None:
            write_logits(paths.logits, lessons, task)
        write_answers(paths.answers, answers, task, scored=task.name in KNOWN_TASKS)
        write_record(record, run)
        shutil.rmtree(paths.checkpoints, ignore_errors=True)
    processes.wait_for_everyone()
    return read_record(paths.record)


def prepare(run: Run, plan: Plan, paths: Paths, task: TaskData, encoder: Encoder) -> Job:
    """The job of ``run``: tokenised sentences, a new head from the run's seed, settings from the plan.

    Raises:
        ValueError: ``max_length`` is more than the model has positions for.
    """
    most = most_tokens(encoder.model)
    if most is not None and run.max_length > most:
        raise ValueError(
            f"max_length must be at most {most}, the positions of model {run.model!r}, got {run.max_length}"
        )
    batches = batches_in(len(task.splits["train"]), plan.batch_size)
    plan = replace(plan, epochs=epochs_of(plan, run.sparsity, batches))
    if plan.dropout >= 0:
        set_dropout(encoder.model, plan.dropout)
    set_seed(run.seed)
    pooling = encoder.pooling if plan.pooling == "own" else plan.pooling
    model = AdaptedModel.for_task(encoder.model, task.num_labels, plan.head, pooling)
    if not task.labels:  # start a regression at the mean label, not at 0
        torch.nn.init.constant_(model.head.output.bias, float(np.mean(task.splits["train"]["label"])))
    splits = {name: tokenize(split, encoder.tokenizer, run.max_length) for name, split in task.splits.items()}
    check_known(encoder.tokenizer, splits["train"], run.model)
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


def _learn(job: Job) -> Outcome:
    """Runs the run's method, or the ablation of its mask; ValueError if a mask is missing or unexpected."""
    outcome = ablate(job) if job.run.ablation else job.run.kind.function(job)
    if (said := job.run.kind.mask) != (outcome.masks is not None):
        raise ValueError(f"method {job.run.method!r} says mask={said} and left {'none' if said else 'a mask'}")
    return outcome


def _intact(run: Run, before: dict[str, str], after: dict[str, str]) -> bool:
    """Whether every tensor of the checkpoint is unchanged; warns if it is not although the method promised it."""
    changed = [name for name in before if after.get(name) != before[name]]
    if changed and run.kind.weights_intact and not run.noise:
        logging.getLogger(__name__).warning(
            "method %r says weights_intact=True and has changed %d tensors, %s first: no mask file is written",
            run.method,
            len(changed),
            changed[0],
        )
    return not changed


def _unchanged(record: dict, run: Run, plan: Plan, paths: Paths) -> dict:
    """The record of a finished run; ValueError if the same fields would give a different run today.

    The data are compared if they are still available; a record can be read without them.
    """
    shutil.rmtree(paths.checkpoints, ignore_errors=True)  # a kill can come between the record and this
    made = record["environment"]
    # The oldest records have no plan, old ones no pooling, and a head only if it was not the paper's.
    then = {"pooling": "cls", "head": record["run"]["head"] or "mlp", **made.get("plan", {})}
    if run.kind.reads:  # it trains something, and records older than the rule of steps used the recipe's epochs
        then.setdefault("steps", 0)
    if plan.steps:  # then the epochs depend on the rows
        then.pop("epochs", None)
    changed = [
        f"{name} was {then[name]!r}, is {value!r}"
        for name, value in asdict(plan).items()
        if name in then and then[name] != value
    ]
    with suppress(FileNotFoundError):
        before, now = made["model_revision"], None if run.model == MINILM else local_revision(run.model)
        if now and str(before).startswith("sha256:") and before != now:
            changed.append(f"the weights of model {run.model!r} have changed (they were {before}, are {now})")
        before, now = made.get("model_files"), local_files(run.model)  # records from before 0.2 do not say
        if now and before and before != now:
            changed.append(f"config.json or tokenizer of model {run.model!r} have changed ({before}; now {now})")
    with suppress(FileNotFoundError):
        if (expanded(run.data_dir or ".") / expanded(run.task)).exists():
            data = load_task(run.task, run.data_dir, run.max_train_examples).fingerprint
            if made["data_fingerprint"] not in (None, data):
                changed.append("the data have changed")
    if changed:
        raise ValueError(f"{paths.record}: {'; '.join(changed)}: choose another results_dir, or delete the record")
    return record


def _check(run: Run, paths: Paths) -> None:
    """Checks, before anything is loaded, that machine, folder and run have what is needed: ValueError or OSError."""
    if run.method in ("lora", "ia3") and importlib.util.find_spec("peft") is None:
        raise ValueError(
            f"method={run.method!r} needs the package peft: pip install peft, or the extra adaprune[methods]"
        )
    if run.precision == "fp16" and not torch.accelerator.is_available():  # on a CPU it would silently be fp32
        raise ValueError("precision='fp16' needs a GPU: use precision='bf16' or 'fp32' on a CPU")
    check_ablation(run)
    check_writable(paths.record.parent)


def _cost(outcome: Outcome, job: Job, intact: bool) -> dict:
    """The cost of the run; memory is the peak of the device or, on a CPU, of the whole process."""
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
        "shipped_bytes": _shipped_bytes(outcome, job, intact),
    }


def _shipped_bytes(outcome: Outcome, job: Job, intact: bool) -> int:
    """What a task without a mask file adds to an existing base model: the head and the trained weights."""
    head = [] if outcome.answer is not None else job.model.head.parameters()
    tensors = [*head, *(outcome.updates or ())]
    if not intact and outcome.updates is None:
        tensors += (value for name, value in job.model.encoder.named_parameters() if not name.endswith(".theta"))
    return sum(t.numel() * t.element_size() for t in tensors)


def _write_mask(job: Job, encoder: Encoder, outcome: Outcome, metrics: dict) -> int:
    """Writes the mask file, and theta's order if the run keeps it; returns the file's size in bytes."""
    card = card_of(job, encoder, metrics)
    path = save_mask(job.paths.mask, outcome.masks, job.model.head.state_dict(), card, encoder.model)
    if outcome.thetas is not None:
        write_tensors(job.paths.theta, ranks(outcome.thetas, outcome.masks))
    return path.stat().st_size


def card_of(job: Job, encoder: Encoder, metrics: dict) -> dict:
    """What others need to know to use a mask of this job."""
    run = job.run
    return {
        "task": public(run.task),
        "labels": list(job.task.labels),
        "columns": [name for name in ("text", "text_pair") if name in job.task.splits["train"].column_names],
        "max_length": run.max_length,
        "metrics": metrics,
        "sparsity": run.sparsity,
        "scope": run.scope,
        "method": run.method,
        "recipe": run.recipe,
        "seed": run.seed,
        "model": public(encoder.id),
        "revision": encoder.revision,
        "model_files": encoder.files,
        "heads": encoder.model.config.num_attention_heads,
        "pooling": job.model.head.pooling,
        "licence": encoder.licence,  # the base model's, which also applies to its mask
        "versions": {name: version(name) for name in ("adaprune", "torch", "transformers", "safetensors")},
    }
