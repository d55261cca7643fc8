"""Training theta, a head or weights in place, and what the model then answers: thin over transformers.Trainer.

The trainer is imported where it is used, because transformers takes seconds to load it, and most who import the package
train nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

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


def fit_weights(job: Job, held: Mapping[str, Tensor] | None = None, control: SparsityControl | None = None) -> Fit:
    """Trains encoder and head of ``job`` with AdamW (Loshchilov and Hutter 2019), weight decay 0.01 on matrices.

    Both with the plan's ``learning_rate``, in place.

    Args:
        job: the run; to train a copy with its own checkpoints, give ``replace(job, model=..., settings=...)``.
        held: weights whose zero entries stay 0, by name.
        control: see `fit`.
    """
    model = job.model
    model.encoder.requires_grad_(True)
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=job.plan.learning_rate)
    if held:
        hold_zeros(optimiser, list(held.values()))
    return fit(model, job.sentences, optimiser, job.settings, control)


def fit_added(job: Job, parameters: Sequence[Tensor], weight_decay: float = 0.0) -> Fit:
    """Trains the few ``parameters`` that a method adds or frees, and the head, with AdamW; all else stays as it is.

    ``parameters`` at the plan's ``learning_rate``, the head at its own with weight decay 0.01.
    """
    rates = job.plan.learning_rate, job.plan.head_learning_rate
    groups = [
        {"params": list(parameters), "lr": rates[0], "weight_decay": weight_decay},
        {"params": list(job.model.head.parameters()), "lr": rates[1], "weight_decay": 0.01},
    ]
    return fit(job.model, job.sentences, torch.optim.AdamW(groups), job.settings)


def hold_zeros(optimiser: torch.optim.Optimizer, weights: list[Tensor]) -> None:
    """Makes every step of ``optimiser`` keep zero entries of ``weights`` at 0.

    The zeros are the mask, so it needs no place in a checkpoint, and momentum cannot bring a pruned weight back.
    """
    zeros: list[Tensor] = []

    def remember(*_) -> None:
        zeros[:] = [weight.detach() == 0 for weight in weights]

    @torch.no_grad()
    def put_back(*_) -> None:
        for weight, zero in zip(weights, zeros, strict=True):
            weight.masked_fill_(zero, 0.0)

    optimiser.register_step_pre_hook(remember)
    optimiser.register_step_post_hook(put_back)


@torch.no_grad()
def put_zeros(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Sets the entries of ``weights`` that ``masks`` (True = kept) remove to 0, in place."""
    for name, mask in masks.items():
        weights[name].masked_fill_(~mask.to(weights[name].device), 0.0)


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
