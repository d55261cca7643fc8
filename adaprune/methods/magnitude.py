"""magnitude: one-shot magnitude pruning, one cut through all layers, then the head is trained. Weights intact."""

from __future__ import annotations

from adaprune.job import Job, Outcome
from adaprune.masks import keep_top, maskable, set_masks
from adaprune.theta import protect
from adaprune.training import fit_head


def magnitude(job: Job) -> Outcome:
    """Keeps the k connections with the largest |w| in scope, whatever the task (Han et al. 2015, without retraining).

    s_i = |w_i|
    """
    modules = maskable(job.model.encoder, job.run.scope)
    scores = {name: module.weight.detach().abs() for name, module in modules.items()}
    masks = keep_top(protect(scores, job.seen, job.density), job.density, job.run.minimum_kept)
    set_masks(job.model.encoder, masks)
    return Outcome(fit_head(job), masks)
