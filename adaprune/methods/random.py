"""random: the paper's Rnd. A mask drawn at random at the asked sparsity, then the head is trained. Weights intact."""

from __future__ import annotations

import torch

from adaprune.masks import keep_top, maskable, protect, set_masks
from adaprune.runs import Method
from adaprune.training import Job, Outcome, fit_head


def random(job: Job) -> Outcome:
    """Keeps k connections drawn without replacement from all in scope, by the run's seed."""
    generator = torch.Generator().manual_seed(job.run.seed)
    modules = maskable(job.model.encoder, job.run.scope)
    scores = {name: torch.rand(module.weight.shape, generator=generator) for name, module in modules.items()}
    masks = keep_top(protect(scores, job.seen, job.density), job.density)
    set_masks(job.model.encoder, masks)
    return Outcome(fit_head(job), masks)


RANDOM = Method(
    random, line="the paper's Rnd: a mask drawn at random, then the head", source="Gao, Colombo, Wang 2021",
    colour="#CC79A7", marker="v",
)  # fmt: skip
