"""Training a model in place, and what it then answers: thin over transformers.Trainer.

The trainer is imported where it is used, because transformers takes seconds to load it, and most who import the package
train nothing.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from adaprune.masks import AdaPrune, SparsityControl
from adaprune.training.checkpoints import last_whole
from adaprune.training.job import Fit, Job, Outcome, Sentences, Settings, steps_in
from adaprune.training.precision import products_of

POINTS = 40  # of the learning curve
TOGETHER = 16  # batches of predictions that wait on the device


def fit(
    model: nn.Module,
    sentences: Sentences,
    optimiser: torch.optim.Optimizer,
    settings: Settings,
    control: SparsityControl | None = None,
) -> Fit:
    """Trains ``model`` in place, continuing from the last checkpoint in ``settings.folder`` if there is one.

    The selection split is scored after each epoch or, if there are many, about 20 times (``LOOKS`` of the trainer). At
    the end, the state with the best primary metric on it is restored (the last one, if several are equal). If the model
    is being pruned, only states within 0.005 of the target sparsity compete. Theta is updated inside backward if that
    gives the same result: with one process and without fp16 loss scaling.

    Raises:
        FloatingPointError: the loss is not finite; the message names the step and the last good checkpoint.
        ValueError: a damaged checkpoint.
        OSError: a checkpoint cannot be written.
    """
    from adaprune.training.trainer import PruningTrainer, arguments_of

    settings.folder.mkdir(parents=True, exist_ok=True)
    steps = steps_in(len(sentences.splits["train"]), settings)
    arguments = arguments_of(settings, logging_steps=max(1, steps // POINTS))
    trainer = PruningTrainer(model, arguments, sentences, optimiser, settings, control)
    in_backward = arguments.world_size == 1 and not arguments.fp16
    handles = optimiser.step_in_backward() if isinstance(optimiser, AdaPrune) and in_backward else []
    with trainer.accelerator.main_process_first():  # only it removes what a kill left behind
        start = last_whole(settings.folder)
    with products_of(settings.precision):
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    for handle in handles:
        handle.remove()
    trainer.restore_best()
    return Fit(
        curve=trainer.curve(),
        steps=trainer.state.global_step,
        seconds=trainer.elapsed(),
        examples=trainer.state.global_step * arguments.train_batch_size * arguments.world_size,
    )


def predict(model: nn.Module, sentences: Sentences, split: str, settings: Settings) -> np.ndarray:
    """Logits (rows, outputs) for a split, in its row order; batches contain texts of similar length."""
    from adaprune.training.trainer import Trainer, arguments_of, show_progress

    data = sentences.splits[split]
    order = np.argsort(data["length"][:], kind="stable")
    # one array a batch, moved off the device now and then: the Trainer would copy all earlier ones with each new one
    arguments = arguments_of(settings, eval_do_concat_batches=False, eval_accumulation_steps=TOGETHER)
    trainer = show_progress(Trainer(model, arguments, data_collator=sentences.collate))
    with products_of(settings.precision):
        batches = trainer.predict(data.select(order)).predictions
    logits = np.empty((len(order), *batches[0].shape[1:]), batches[0].dtype)
    for rows in np.split(order, np.cumsum([len(batch) for batch in batches[:-1]])):
        logits[rows] = batches.pop(0)  # so that the result is in memory once and not twice
    return logits


def score(job: Job, outcome: Outcome) -> tuple[dict, np.ndarray]:
    """The record's metrics, and the logits on the dev split, which is used here for the first time."""
    answer = outcome.answer or (lambda split: predict(job.model, job.sentences, split, job.settings))
    task, validation = job.task, {}
    dev = [name for name in task.splits if name.startswith("validation")]
    logits = {split: answer(split) for split in [*dev, "selection"]}
    for split in dev:
        validation |= task.metrics(logits[split], task.splits[split]["label"], split)
    selection = task.metrics(logits["selection"], task.splits["selection"]["label"])
    return {"validation": validation, "selection": selection, "primary": task.primary}, logits[dev[0]]
