"""finetune: everything is trained, nothing masked; the paper's upper line. The weights do NOT stay intact."""

from __future__ import annotations

from adaprune.training import Job, Outcome, fit_weights


def finetune(job: Job) -> Outcome:
    """Trains encoder and head with AdamW; `adapt` writes its logits on train beside the record, for pupils."""
    return Outcome(fit_weights(job, job.model, job.settings, job.plan.learning_rate))
