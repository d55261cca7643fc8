"""snip: one-shot pruning by connection sensitivity (Lee, Ajanthan, Torr 2019). Weights intact."""

from adaprune.methods.oneshot import cut, sensitivities_with_head, with_head
from adaprune.runs import Method
from adaprune.training import Job, Outcome


def snip(job: Job) -> Outcome:
    """Keeps the k connections to which the loss is most sensitive, then trains the head.

        s_i = |dL/dm_i| at m = 1  =  |w_i dL/dw_i|

    with L the mean loss of up to 1,024 training sentences, without dropout. A fresh head says nothing about a
    pre-trained encoder, so a copy of it is trained first, for one epoch at most, on the frozen encoder; the head that
    stays starts fresh under the mask, as for all fixed masks. Spends ``epochs`` + min(1, ``epochs``) epochs in all.
    """
    scores, first = sensitivities_with_head(job)
    return with_head(job, cut(job, scores), first)


SNIP = Method(
    snip, line="one-shot, the size of a weight times its gradient", source="Lee, Ajanthan, Torr 2019",
    colour="#FE7F61", marker="H",
)  # fmt: skip
