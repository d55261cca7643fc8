"""wanda: one-shot pruning by weight times input norm (Sun, Liu, Bair, Kolter 2023). Weights intact."""

import time

from adaprune.methods.oneshot import activations, cut_outputs, with_head
from adaprune.runs import Method
from adaprune.training import Fit, Job, Outcome


def wanda(job: Job) -> Outcome:
    """Keeps the inputs with the highest scores for each output, then trains the head.

        S_ij = |w_ij| ||x_j||_2,   compared within each output i

    where x_j is input j over all tokens except padding of up to 1,024 training sentences, in the unpruned encoder (the
    paper prunes layer by layer and sees the inputs of pruned layers). Each output keeps density * (number of inputs),
    rounded down or up, exactly k in total; ties by position (`oneshot.cut_outputs`). Takes ``epochs`` in total, for the
    head; the scores need only forward passes.
    """
    start = time.monotonic()
    masks = cut_outputs(job, activations(job))
    return with_head(job, masks, Fit(seconds=time.monotonic() - start))


WANDA = Method(
    wanda, line="one-shot, the size of a weight times the norm of its input", source="Sun, Liu, Bair, Kolter 2023",
    colour="#CDD406", marker="d",
)  # fmt: skip
