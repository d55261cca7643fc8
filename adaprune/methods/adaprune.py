"""adaprune: the mask is learned with the head, the weights stay as they are (Gao, Colombo, Wang 2021)."""

from __future__ import annotations

import torch

from adaprune.job import Job, Outcome
from adaprune.learning import learn
from adaprune.masks import maskable
from adaprune.theta import initial_theta


def adaprune(job: Job) -> Outcome:
    """Learns theta and head together by Algorithm 1, then keeps exactly the k largest theta. Weights intact.

        m* = 1[theta among the k largest],   k = round((1 - sparsity) n)

    Raises:
        ValueError: the plan cannot reach the asked sparsity (see `SparsityControl.check`).
    """
    weights = {name: module.weight for name, module in maskable(job.model.encoder, job.run.scope).items()}
    generator = torch.Generator().manual_seed(job.run.seed)
    return learn(job, initial_theta(weights, job.plan.initial_theta, generator))
