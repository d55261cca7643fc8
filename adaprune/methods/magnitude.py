"""magnitude: one-shot magnitude pruning, then the head is trained. Weights intact."""

from adaprune.methods.oneshot import cut, with_head
from adaprune.runs import Method
from adaprune.training import Job, Outcome


def magnitude(job: Job) -> Outcome:
    """Keeps the k connections with the largest |w| in scope, whatever the task (Han et al. 2015, without retraining).

        s_i = |w_i|

    The run's ``allocation`` decides whether there is one cut over all matrices (the default), or each matrix keeps the
    same share (``equal``). Takes ``epochs`` in total, for the head.

    Raises:
        ValueError: any other ``allocation``.
    """
    if job.plan.allocation not in ("", "equal"):
        raise ValueError(f"allocation of magnitude is 'global' (one cut) or 'equal', got {job.run.allocation!r}")
    return with_head(job, cut(job, {name: weight.detach().abs() for name, weight in job.weights.items()}))


MAGNITUDE = Method(
    magnitude, line="one-shot magnitude pruning, whatever the task, then the head", source="Han et al. 2015",
    reads=("head_learning_rate", "allocation"), colour="#D55E00", marker="D",
)  # fmt: skip
