"""One run, from its parameters to its record, in the eight steps of ARCHITECTURE.md. Wiring only."""

import os
import shutil
from contextlib import nullcontext
from dataclasses import asdict

import numpy as np
import torch
from accelerate import PartialState

from adaprune.ablations import ablate, check_ablation, source_mask
from adaprune.data import KNOWN_TASKS, load_task
from adaprune.deploy import save_mask
from adaprune.masks import detach, ranks, summary
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
    write_answers,
    write_record,
)
from adaprune.training import (
    Job,
    Outcome,
    alone,
    card_of,
    check_machine,
    check_origin,
    check_unchanged,
    cost_of,
    is_intact,
    lessons_of,
    load_encoder,
    prepare,
    read_logits,
    read_teacher,
    score,
    sources_of,
    tensor_hashes,
    with_teacher,
    write_logits,
    write_tensors,
)


def adapt(run: Run, method: Method | None = None) -> dict:
    """Adapts the model to the task with the settings of ``run``; returns the record, which is also on disk.

    If the run is already finished, its record is returned, or refused if the recipe or (if available) the base model,
    the rows, the teacher or the ablated mask have changed since. An interrupted run continues from its last checkpoint.
    The record and the mask file appear only at the end. Under ``accelerate launch`` every process calls this; the main
    one writes, and all return it.

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
    if (finished := find_record(run, paths.record)) is not None:
        return check_unchanged(finished, run, plan, paths, source_mask(run, paths))
    check_ablation(run, paths)
    check_machine(run)
    teacher = read_teacher(run, paths.teacher)
    check_writable(paths.record.parent)
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1  # processes of one launch share the work
    with nullcontext() if together else alone(paths.checkpoints):  # while it waits, another process may make the record
        return find_record(run, paths.record) or _made(run, plan, paths, teacher)


def _made(run: Run, plan: Plan, paths: Paths, teacher: dict | None) -> dict:
    """Makes and writes the record of a run that is checked and not finished; returns the record."""
    surroundings, processes = environment(), PartialState()
    if processes.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(processes.device)

    # load data
    with processes.main_process_first():  # the others find what it downloads
        task = load_task(run.task, run.data_dir, run.max_train_examples)
    logits = None if teacher is None else read_logits(teacher, paths.teacher, task)

    # load the model
    encoder = load_encoder(run.model)
    base = tensor_hashes(encoder.model)
    model = {"model_revision": encoder.revision, "model_files": encoder.files}
    sources = sources_of(paths.teacher, source_mask(run, paths))
    origin = {"data": task.fingerprint, "model": encoder.revision, "model_files": encoder.files}
    origin |= {"teacher": sources.get("teacher_logits"), "mask": sources.get("ablated_mask")}
    with processes.main_process_first():
        check_origin(paths.checkpoints, **origin, processes=processes.num_processes)

    # plan
    job = with_teacher(prepare(run, plan, paths, task, encoder), logits)

    # learn
    learn = ablate if run.ablation else run.kind.function
    outcome = learn(job)
    if (said := run.kind.mask) != (outcome.masks is not None):
        raise ValueError(f"method {run.method!r} says mask={said} and left {'none' if said else 'a mask'}")

    # evaluate
    masks, intact, plan = outcome.masks, is_intact(job, base), asdict(job.plan)
    metrics, answers = score(job, outcome)
    lessons = lessons_of(job) if run.method == "finetune" else None
    cost, card = cost_of(job, outcome, intact), card_of(job, encoder, metrics)
    made_of = {"data_fingerprint": task.fingerprint, "seed": run.seed, "plan": plan}
    record = {
        "run": run.model_dump(),
        "metrics": metrics,
        "weights_intact": intact,
        "cost": cost,
        "mask": None if masks is None else {"scope": run.scope, **summary(encoder.model, masks, job.seen)},
        "curve": outcome.fit.curve,
        "environment": surroundings | model | sources | made_of,
    }
    detach(encoder.model)
    if processes.is_main_process:
        _write(job, outcome, record, card, answers, lessons)
    processes.wait_for_everyone()
    return find_record(run, paths.record)


def _write(job: Job, outcome: Outcome, record: dict, card: dict, answers: np.ndarray, lessons: np.ndarray | None):
    """Writes the files of a run: the mask first, the record last; then the checkpoints go."""
    paths, encoder = job.paths, job.model.encoder
    # a mask is useless over weights that nobody else has, or without its head
    if outcome.masks is not None and record["weights_intact"] and outcome.answer is None:
        file = save_mask(paths.mask, outcome.masks, job.model.head.state_dict(), card, encoder)
        record["cost"]["shipped_bytes"] = file.stat().st_size
        if outcome.thetas is not None:
            write_tensors(paths.theta, ranks(outcome.thetas, outcome.masks))
    if lessons is not None:
        write_logits(paths.logits, lessons, job.task)
    write_answers(paths.answers, answers, job.task, scored=job.task.name in KNOWN_TASKS)
    write_record(record, job.run, paths.record)
    shutil.rmtree(paths.checkpoints, ignore_errors=True)
