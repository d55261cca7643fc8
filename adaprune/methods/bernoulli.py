"""bernoulli: the mask is drawn anew at each step, its probabilities are learned (Zhou et al. 2019). Weights intact."""

from __future__ import annotations

import math

import torch

from adaprune.masks import maskable
from adaprune.methods.learning import learn
from adaprune.training import Job, Outcome

SPREAD = 0.01  # of the start, so that no two scores are equal


def bernoulli(job: Job) -> Outcome:
    """Learns the probability of each connection; the most probable ones stay. Weights intact.

        m ~ Bernoulli(sigmoid(s)) in training,   g_s = dL/dm sigmoid'(s),   s_0 ~ N(logit(density), 0.01^2)

    (Zhou et al. 2019, section 5, "supermasks".) Evaluation uses the k largest s. Published sparsity is what comes of
    s; here the start has the asked one in expectation, and the last cut is exact. Chosen here: the start, and Adam.
    """
    generator = torch.Generator().manual_seed(job.run.seed)
    density = min(job.density, 1 - 1e-6)
    mean = math.log(density / (1 - density))
    modules = maskable(job.model.encoder, job.run.scope)
    thetas = {
        name: torch.empty(module.weight.shape).normal_(mean, SPREAD, generator=generator)
        for name, module in modules.items()
    }
    return learn(job, thetas)
