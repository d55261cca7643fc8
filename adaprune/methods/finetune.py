"""finetune: everything is trained, nothing masked; the paper's upper line. The weights do NOT stay intact."""

from __future__ import annotations

import torch

from adaprune.job import Job, Outcome
from adaprune.training import fit


def finetune(job: Job) -> Outcome:
    """Trains encoder and head with AdamW (Loshchilov and Hutter 2019), weight decay 0.01 on matrices."""
    model = job.model
    model.encoder.requires_grad_(True)
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
        lr=job.plan.learning_rate,
    )
    return Outcome(fit(model, job.sentences, optimiser, job.settings))
