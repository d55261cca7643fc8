"""gmp: gradual magnitude pruning (Zhu and Gupta 2018). The paper's MP, and with its weights kept a context row."""

from __future__ import annotations

import copy
from functools import partial

from adaprune.masks import check_minimum, maskable, set_masks
from adaprune.methods.oneshot import cut
from adaprune.training import (
    AdaptedModel,
    GradualMagnitude,
    Job,
    Outcome,
    Result,
    Settings,
    fit_head,
    fit_weights,
    put_zeros,
    stage,
    steps_in,
    together,
)


def gmp(job: Job) -> Outcome:
    """Finds the mask on a copy that trains while it is pruned; puts it over the original weights. Weights intact.

        s_t = s_f (1 - (1 - t / t_1)^3),   t_1 = reach * steps;   the copy's k largest |w| stay

    Then the head is trained, a fresh one. Spends 2 ``epochs`` in all: one time the copy's, one time the head's.
    """
    masks, found = stage(job.settings, "copy", lambda settings: _prune(job, copy.deepcopy(job.model), settings))
    set_masks(job.model.encoder, masks)
    return Outcome(together(found, fit_head(job)), masks)


def gmp_finetune(job: Job) -> Outcome:
    """Trains encoder and head while they are pruned, and keeps them. The weights do NOT stay intact.

    The schedule is that of `gmp`. Spends ``epochs`` in all.
    """
    masks, done = _prune(job, job.model, job.settings)
    return Outcome(done, masks)


def _prune(job: Job, model: AdaptedModel, settings: Settings) -> Result:
    """Trains ``model`` and zeroes its smallest weights by the schedule; returns the masks, exactly k in all."""
    weights = {name: module.weight for name, module in maskable(model.encoder, job.run.scope).items()}
    check_minimum(weights, job.density, job.run.minimum_kept)
    steps = steps_in(len(job.sentences.splits["train"]), settings)
    end = max(1, round(job.plan.reach * steps))
    control = GradualMagnitude(weights, partial(cut, job), job.run.sparsity, end)
    done = fit_weights(job, model, settings, job.plan.learning_rate, weights, control)
    masks = cut(job, {name: weight.detach().abs() for name, weight in weights.items()})
    put_zeros(weights, masks)
    return masks, done
