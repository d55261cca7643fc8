"""random: the paper's Rnd. A random mask of the requested sparsity, then the head is trained. Weights intact."""

import torch

from adaprune.methods.oneshot import cut, with_head
from adaprune.runs import Method
from adaprune.training import Job, Outcome


def random(job: Job) -> Outcome:
    """Keeps k connections, drawn without replacement from all in scope with the run's seed."""
    generator = torch.Generator().manual_seed(job.run.seed)
    scores = {name: torch.rand(weight.shape, generator=generator) for name, weight in job.weights.items()}
    return with_head(job, cut(job, scores))


RANDOM = Method(
    random, line="the paper's Rnd: a mask drawn at random, then the head", source="Gao, Colombo, Wang 2021",
    colour="#CC79A7", marker="v",
)  # fmt: skip
