"""What a run passes to a method, and what it gets back; how the one is made, and the other is read."""

from __future__ import annotations

import importlib.util
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import transformers  # loads its parts when they are used
from accelerate import PartialState
from torch import Tensor, nn
from tqdm import tqdm

from adaprune.data import TaskData, check_known, public, tokenize
from adaprune.masks import EMBED, check_keeps, component_of, maskable
from adaprune.runs import Paths, Plan, Run, epochs_of
from adaprune.training.encoders import Encoder, most_tokens, set_dropout, tensor_hashes
from adaprune.training.heads import AdaptedModel
from adaprune.training.precision import lacks_bf16, precision_for

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Settings:
    """How long and how to train; ``folder`` holds the checkpoints."""

    folder: Path
    epochs: float = 3.0
    batch_size: int = 32
    seed: int = 0
    schedule: str = "warmup_linear"
    precision: str = "auto"
    checkpoint_steps: int = 100


@dataclass(frozen=True)
class Sentences:
    """A task's tokenised splits, how to pad them, and how to score predictions.

    Beside the task's own splits there is ``copies`` if a teacher teaches on them (`teachers.with_teacher`).
    """

    splits: dict[str, datasets.Dataset]
    tokenizer: transformers.PreTrainedTokenizerBase
    metrics: Callable[[np.ndarray, np.ndarray], dict[str, float]]
    primary: str

    def collate(self, rows: list[dict]) -> dict[str, Tensor]:
        """A padded batch of tensors."""
        names = [*self.tokenizer.model_input_names, "labels", "teacher_logits"]
        kept = [{name: row[name] for name in names if name in row} for row in rows]
        return transformers.DataCollatorWithPadding(self.tokenizer)(kept)

    def taught(self) -> datasets.Dataset:
        """The training rows, and after them their copies, if there are any."""
        if "copies" not in self.splits:
            return self.splits["train"]
        from datasets import concatenate_datasets

        return concatenate_datasets([self.splits["train"], self.splits["copies"]])

    def seen(self, vocabulary: int) -> Tensor:
        """Which rows of a word-embedding table of this size training reads, copies too: boolean, (vocabulary,)."""
        occurs = torch.zeros(vocabulary, dtype=torch.bool)
        for ids in self.taught()["input_ids"]:
            occurs[ids] = True
        return occurs


@dataclass(frozen=True)
class Job:
    """One run, ready for its method: the model to adapt, the data, and how to train.

    ``task`` holds the texts as they are, ``sentences`` as the model reads them. ``plan`` holds the recipe's settings by
    name (`adaprune.runs.Plan`), ``paths`` the run's files. ``seen`` says which rows of an embedding table in scope
    occur in training.
    """

    run: Run
    model: nn.Module
    task: TaskData
    sentences: Sentences
    settings: Settings
    plan: Plan
    paths: Paths
    seen: dict[str, Tensor] = field(default_factory=dict)

    @property
    def density(self) -> float:
        """Fraction of the weights in scope to keep: 1 - sparsity."""
        return 1 - self.run.sparsity

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The weights in scope by name."""
        return {name: module.weight for name, module in maskable(self.model.encoder, self.run.scope).items()}


@dataclass(frozen=True)
class Fit:
    """What training produces besides the model: the logged curve and the cost."""

    curve: list[dict] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    examples: int = 0


@dataclass(frozen=True)
class Outcome:
    """What a method returns; the adapted weights or mask are in the job's model.

    ``masks`` are the final masks (name -> boolean tensor), or None for a method without masks; ``thetas`` is what they
    were cut from, if the run keeps it. ``updates`` are the trained weights that a task needs besides the head, if these
    are fewer than all weights of the encoder. ``answer`` gives the logits (rows, outputs) of a split if the job's model
    does not; then the head is not used, and only ``updates`` ship.
    """

    fit: Fit
    masks: dict[str, Tensor] | None = None
    thetas: dict[str, Tensor] | None = None
    updates: list[Tensor] | None = None
    answer: Callable[[str], np.ndarray] | None = None


def add_fits(*fits: Fit) -> Fit:
    """Combines consecutive fits: the sum of all costs, and the last fit's curve with continued step numbers.

    From earlier fits only the sparsity points are kept, because their losses and scores belong to another model.
    """
    curve: list[dict] = []
    steps, seconds = 0, 0.0
    for number, fit in enumerate(fits, 1):
        for point in fit.curve:
            kept = point if number == len(fits) else {key: point[key] for key in ("step", "sparsity") if key in point}
            if len(kept) > 1:
                moved = {"step": steps + point["step"]}
                if "elapsed" in point:
                    moved["elapsed"] = seconds + point["elapsed"]
                curve.append({**kept, **moved})
        steps, seconds = steps + fit.steps, seconds + fit.seconds
    return Fit(curve=curve, steps=steps, seconds=seconds, examples=sum(fit.examples for fit in fits))


def batches_in(examples: int, batch_size: int) -> int:
    """Number of optimiser steps in one pass over ``examples``, divided among the processes."""
    return math.ceil(examples / (batch_size * PartialState().num_processes))


def steps_in(examples: int, settings: Settings) -> int:
    """Number of optimiser steps for ``settings`` on ``examples``."""
    return math.ceil(settings.epochs * batches_in(examples, settings.batch_size))


def check_machine(run: Run) -> None:
    """ValueError if the machine lacks a package or a GPU that the run needs; a warning if it will be very slow."""
    if (package := run.kind.needs) and importlib.util.find_spec(package) is None:
        raise ValueError(f"method={run.method!r} needs the package {package}: pip install {package}")
    if run.precision == "fp16" and not torch.accelerator.is_available():  # on a CPU it would silently be fp32
        raise ValueError("precision='fp16' needs a GPU: use precision='bf16' or 'fp32' on a CPU")
    if run.precision == "bf16" and lacks_bf16():
        warnings.warn(
            "precision='bf16' on this CPU, which has no instructions for it: products are computed in float32 and "
            "rounded, so the scores are those of bfloat16, and 'fp32' is faster",
            stacklevel=3,
        )


def prepare(run: Run, plan: Plan, paths: Paths, task: TaskData, encoder: Encoder) -> Job:
    """The job of ``run``: tokenised sentences, a new head from the run's seed, settings from the plan.

    Raises:
        ValueError: ``max_length`` is more than the model has positions for, the sparsity keeps nothing, or the model
            cannot compute in half precision.
    """
    check_keeps(encoder.model, run.scope, run.sparsity, run.pattern == "units")
    most = most_tokens(encoder.model)
    if most is not None and run.max_length > most:
        raise ValueError(
            f"max_length must be at most {most}, the positions of model {run.model!r}, got {run.max_length}"
        )
    if plan.dropout >= 0:
        set_dropout(encoder.model, plan.dropout)
    transformers.set_seed(run.seed)
    pooling = encoder.pooling if plan.pooling == "own" else plan.pooling
    model = AdaptedModel.for_task(encoder.model, task.num_labels, plan.head, pooling)
    if not task.labels:  # start a regression at the mean label, not at 0
        torch.nn.init.constant_(model.head.output.bias, float(np.mean(task.splits["train"]["label"])))
    batches = batches_in(len(task.splits["train"]), plan.batch_size)
    plan = replace(plan, epochs=epochs_of(plan, run.sparsity, batches))
    splits = {name: tokenize(split, encoder.tokenizer, run.max_length) for name, split in task.splits.items()}
    check_known(encoder.tokenizer, splits["train"], run.model)
    sentences = Sentences(splits, encoder.tokenizer, task.metrics, task.primary)
    settings = Settings(
        folder=paths.checkpoints,
        epochs=plan.epochs,
        batch_size=plan.batch_size,
        seed=run.seed,
        schedule=plan.schedule,
        precision=precision_for(run.precision, encoder.model.config.model_type),
        checkpoint_steps=run.checkpoint_steps,
    )
    tables = [name for name in maskable(encoder.model, run.scope) if component_of(name) == EMBED]
    rows = encoder.model.get_input_embeddings().num_embeddings
    return Job(run, model, task, sentences, settings, plan, paths, {name: sentences.seen(rows) for name in tables})


def is_intact(job: Job, before: dict[str, str]) -> bool:
    """Whether every tensor of the checkpoint has its hash of ``before``; warns if not although the method promised."""
    after = tensor_hashes(job.model.encoder)
    changed = [name for name in before if after.get(name) != before[name]]
    if changed and job.run.kind.weights_intact and not job.run.noise:
        logging.getLogger(__name__).warning(
            "method %r says weights_intact=True and has changed %d tensors, %s first: no mask file is written",
            job.run.method,
            len(changed),
            changed[0],
        )
    return not changed


def cost_of(job: Job, outcome: Outcome, intact: bool) -> dict:
    """The cost of the run; memory is the peak of the device since the run began or, on a CPU, of the whole process."""
    device = next(job.model.parameters()).device
    if device.type == "cuda":
        memory, name = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_name(device)
    else:
        memory, name = _peak_of_process(), device.type
    fit = outcome.fit
    return {
        "train_seconds": round(fit.seconds, 3),
        "steps": fit.steps,
        "examples_per_second": round(fit.examples / max(fit.seconds, 1e-3), 3),
        "peak_memory_bytes": memory,
        "device": name,
        "shipped_bytes": _shipped_bytes(job, outcome, intact),
    }


def _peak_of_process() -> int | None:
    """Bytes; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _shipped_bytes(job: Job, outcome: Outcome, intact: bool) -> int:
    """What a task without a mask file adds to an existing base model: the head and the trained weights."""
    head = [] if outcome.answer is not None else job.model.head.parameters()
    tensors = [*head, *(outcome.updates or ())]
    if not intact and outcome.updates is None:
        tensors += (value for name, value in job.model.encoder.named_parameters() if not name.endswith(".theta"))
    return sum(t.numel() * t.element_size() for t in tensors)


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


def bar(iterable: Iterable | None = None, **settings) -> tqdm:
    """A bar on one line. Outside a terminal each refresh is a new line, so there it refreshes every 5 seconds."""
    return tqdm(iterable, position=0, mininterval=0.1 if sys.stderr.isatty() else 5.0, **settings)
