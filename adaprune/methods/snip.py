"""snip: one-shot pruning by connection sensitivity (Lee, Ajanthan, Torr 2019). Weights intact."""

from __future__ import annotations

import copy
import time
from dataclasses import replace

import torch
from accelerate import PartialState
from torch import Tensor

from adaprune.heads import AdaptedModel
from adaprune.job import Job, Outcome, Settings
from adaprune.masks import attach, maskable, set_masks
from adaprune.oneshot import calibration, cut
from adaprune.stages import Result, stage, together
from adaprune.training import fit_head


def snip(job: Job) -> Outcome:
    """Keeps the k connections to which the loss is most sensitive, then trains the head.

        s_i = |dL/dm_i| at m = 1  =  |w_i dL/dw_i|

    with L the mean loss of up to 1,024 training sentences, without dropout. A fresh head says nothing about a
    pre-trained encoder, so a copy of it is trained first, for one epoch at most, on the frozen encoder; the head that
    stays starts fresh under the mask, as for all fixed masks. Spends ``epochs`` + min(1, ``epochs``) epochs in all.
    """

    def score(settings: Settings) -> Result:
        warm = replace(job, model=copy.deepcopy(job.model), settings=settings)
        done, start = fit_head(warm), time.monotonic()
        masks = cut(job, sensitivities(warm))
        return masks, replace(done, seconds=done.seconds + time.monotonic() - start)

    short = replace(job.settings, epochs=min(1.0, job.settings.epochs))
    masks, first = stage(short, "sensitivities", score)
    set_masks(job.model.encoder, masks)
    return Outcome(together(first, fit_head(job)), masks)


def sensitivities(job: Job) -> dict[str, Tensor]:
    """|w dL/dw| of every weight in scope; leaves masks of ones attached to the job's encoder."""
    model: AdaptedModel = job.model.to(PartialState().device)
    weights = {name: module.weight for name, module in maskable(model.encoder, job.run.scope).items()}
    thetas = attach(model.encoder, {name: torch.ones_like(weight) for name, weight in weights.items()})
    model.eval()
    for batch, share in calibration(job):
        batch = {name: tensor.to(next(model.parameters()).device) for name, tensor in batch.items()}
        (share * model(**batch).loss).backward()
    return {name: theta.grad.to_dense().abs() for name, theta in thetas.items()}
