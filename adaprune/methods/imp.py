"""imp: iterative magnitude pruning with rewinding (Frankle and Carbin 2019; Chen et al. 2020 for BERT)."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor

from adaprune.masks import check_minimum, maskable, set_masks
from adaprune.methods.oneshot import cut
from adaprune.training import Fit, Job, Outcome, Result, Settings, fit_head, fit_weights, put_zeros, stage, together


def imp(job: Job) -> Outcome:
    """Finds the mask in rounds of training and pruning; puts it over the original weights. Weights intact.

    A round trains a copy of the masked encoder and of the head from their start, removes the smallest trained |w|, and
    rewinds. By ``imp_rule`` a round removes 20 % of the ``remaining`` or 10 % of the ``original`` connections:

        s_r = 1 - 0.8^r,   or   s_r = 0.1 r;   the last round cuts to exactly k = round((1 - sparsity) n)

    Then the head is trained, a fresh one. Spends (R + 1) ``epochs`` in all, R = the number of rounds: 4 at a sparsity
    of 0.5 and 11 at 0.9 by the first rule, 5 and 9 by the second.
    """
    masks, fits = _rounds(job)
    set_masks(job.model.encoder, masks)
    return Outcome(together(*fits, fit_head(job)), masks)


def imp_finetune(job: Job) -> Outcome:
    """The lottery ticket: trains the original weights under the mask of `imp`. The weights do NOT stay intact.

    Spends (R + 1) ``epochs`` in all.
    """
    masks, fits = _rounds(job)
    weights = _weights(job)
    put_zeros(weights, masks)
    last = fit_weights(job, job.model, job.settings, job.plan.learning_rate, weights)
    return Outcome(together(*fits, last), masks)


def sparsities(target: float, rule: str) -> list[float]:
    """The sparsity after each round, the last one ``target`` itself; none where nothing is removed.

    >>> [round(s, 6) for s in sparsities(0.5, "remaining")], sparsities(0.25, "original")
    ([0.2, 0.36, 0.488, 0.5], [0.1, 0.2, 0.25])
    """
    found: list[float] = []
    while target:
        number = len(found) + 1
        reached = 1 - 0.8**number if rule == "remaining" else number / 10
        if reached > target - 1e-9:
            return [*found, target]
        found.append(reached)
    return found


def _rounds(job: Job) -> tuple[dict[str, Tensor], list[Fit]]:
    """The final masks, and what each round took."""
    weights = _weights(job)
    check_minimum(weights, job.density, job.run.minimum_kept)
    masks = {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}
    fits = []
    for number, sparsity in enumerate(sparsities(job.run.sparsity, job.run.imp_rule), 1):
        masks, done = stage(job.settings, f"round-{number}", partial(_round, job, masks, 1 - sparsity))
        fits.append(done)
    return masks, fits


def _round(job: Job, masks: dict[str, Tensor], density: float, settings: Settings) -> Result:
    """One round: what is left after training a copy under ``masks`` and cutting it to ``density``."""
    trained = copy.deepcopy(job.model)
    weights = {name: module.weight for name, module in maskable(trained.encoder, job.run.scope).items()}
    put_zeros(weights, masks)
    done = fit_weights(job, trained, settings, job.plan.learning_rate, weights)
    # what is gone scores below any weight, an original 0 included: masks of later rounds lie within earlier ones
    scores = {name: w.detach().abs().cpu().masked_fill(~masks[name], -1.0) for name, w in weights.items()}
    return cut(job, scores, density), done


def _weights(job: Job) -> dict[str, torch.nn.Parameter]:
    return {name: module.weight for name, module in maskable(job.model.encoder, job.run.scope).items()}
