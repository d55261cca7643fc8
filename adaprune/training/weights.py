"""Training the weights themselves: of a copy, for scores that come from trained weights, or permanently."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from adaprune.masks import SparsityControl
from adaprune.training.fitting import fit
from adaprune.training.job import Fit, Job


def fit_weights(job: Job, held: Mapping[str, Tensor] | None = None, control: SparsityControl | None = None) -> Fit:
    """Trains encoder and head of ``job`` with AdamW (Loshchilov and Hutter 2019), weight decay 0.01 on matrices.

    Both with the plan's ``learning_rate``, in place.

    Args:
        job: the run; to train a copy with its own checkpoints, give ``replace(job, model=..., settings=...)``.
        held: weights whose zero entries stay 0, by name.
        control: see `training.fit`.
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
