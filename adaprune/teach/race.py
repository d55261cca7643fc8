"""Turns a reader's own score into a method, so that it can be raced against the others."""

from collections.abc import Callable

from torch import Tensor

from adaprune.masks import maskable
from adaprune.methods import Method, cut, input_norms, with_head
from adaprune.training import Job, Outcome


def by_score(score: Callable[[Tensor, Tensor], Tensor]) -> Method:
    """One-shot pruning by ``score``: the highest scores over all matrices are kept, then the head is trained.

        s_ij = score(W, n)_ij,   n_j = ||x_j||_2 of input j over the calibration tokens

    ``score`` takes a weight (outputs, inputs) and its inputs' norms (inputs,), and returns one number per weight. The
    method is named after it.
    """

    def one_shot(job: Job) -> Outcome:
        norms = input_norms(job, maskable(job.model.encoder, job.run.scope))
        return with_head(job, cut(job, {name: score(w.detach(), norms[name]) for name, w in job.weights.items()}))

    one_shot.__name__ = score.__name__
    return Method(one_shot, line="one-shot, with a score of your own")
