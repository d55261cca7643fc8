"""snip: one-shot pruning by connection sensitivity (Lee, Ajanthan, Torr 2019). Weights intact."""

from adaprune.methods.oneshot import cut, sensitivities_with_head, with_head
from adaprune.runs import Method
from adaprune.training import Job, Outcome


def snip(job: Job) -> Outcome:
    """Keeps the k connections that the loss is most sensitive to, then trains the head.

        s_i = |dL/dm_i| at m = 1  =  |w_i dL/dw_i|

    where L is the mean loss of up to 1,024 training sentences, without dropout. The gradients of a new head would not
    show what the task needs, so a copy of it is first trained on the frozen encoder, for at most one epoch. The final
    head starts anew under the mask, as for all fixed masks. Takes ``epochs`` + min(1, ``epochs``) epochs in total.
    """
    scores, first = sensitivities_with_head(job)
    return with_head(job, cut(job, scores), first)


SNIP = Method(
    snip, line="one-shot, the size of a weight times its gradient", source="Lee, Ajanthan, Torr 2019",
    colour="#FE7F61", marker="H",
)  # fmt: skip
