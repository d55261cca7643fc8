"""magnitude: one-shot magnitude pruning, then the head is trained. Weights intact."""

from __future__ import annotations

from adaprune.masks import maskable, set_masks
from adaprune.methods.oneshot import cut, cut_layers
from adaprune.runs import Method
from adaprune.training import Job, Outcome, fit_head


def magnitude(job: Job) -> Outcome:
    """Keeps the k connections with the largest |w| in scope, whatever the task (Han et al. 2015, without retraining).

        s_i = |w_i|

    By the run's ``allocation`` one cut goes through all matrices together (the default), or each keeps the same share
    (``equal``). Spends ``epochs`` in all, on the head.

    Raises:
        ValueError: another ``allocation``.
    """
    if job.plan.allocation not in ("", "equal"):
        raise ValueError(f"allocation of magnitude is 'global' (one cut) or 'equal', got {job.run.allocation!r}")
    modules = maskable(job.model.encoder, job.run.scope)
    scores = {name: module.weight.detach().abs() for name, module in modules.items()}
    masks = (cut_layers if job.plan.allocation == "equal" else cut)(job, scores)
    set_masks(job.model.encoder, masks)
    return Outcome(fit_head(job), masks)


MAGNITUDE = Method(
    magnitude, line="one-shot magnitude pruning, whatever the task, then the head", source="Han et al. 2015",
    reads=("head_learning_rate", "allocation"), colour="#D55E00", marker="D",
)  # fmt: skip
