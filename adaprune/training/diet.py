"""Which training rows a run learns from, and what it is told of them (Fayyaz et al. 2022, BERT on a Data Diet)."""

from __future__ import annotations

import copy
import time
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from adaprune.runs import FINETUNE_RATE
from adaprune.training.heads import AdaptedModel
from adaprune.training.job import Fit, Job, Sentences, Settings
from adaprune.training.stages import Result, stage
from adaprune.training.trainer import predict
from adaprune.training.weights import fit_weights


def kept_rows(job: Job) -> tuple[list[int] | None, list[Fit]]:
    """The training rows that stay, in their order, and what finding them took; None where all stay.

    round(data_keep * rows) stay: drawn by the seed (``random``), or those of the lowest score after one epoch of
    fine-tuning a copy on all rows (``el2n``, ``grand``), so that the hardest go; ties by position. (Published scores
    are means over several starts; here it is one.) That epoch comes on top of the method's own.
    """
    run, train = job.run, job.sentences.splits["train"]
    if run.data_keep == 1:
        return None, []
    count = round(run.data_keep * len(train))
    if run.data_score == "random":
        order, fits = torch.randperm(len(train), generator=torch.Generator().manual_seed(run.seed)), []
    else:
        tensors, done = stage(replace(job.settings, epochs=1.0), "data-scores", lambda settings: _scored(job, settings))
        order, fits = tensors["scores"].argsort(stable=True), [done]
    return sorted(order[:count].tolist()), fits


def lessons(job: Job, rows: list[int] | None, logits: Tensor | None) -> Job:
    """The job with a teacher's ``logits`` of all training rows beside them, and then only ``rows`` of those.

    Raises:
        ValueError: too few rows are left, or rows of one class only.
    """
    train = job.sentences.splits["train"]
    if logits is not None:
        train = train.add_column("teacher_logits", logits.tolist(), new_fingerprint=f"{train._fingerprint}-taught")
    if rows is not None:
        train = train.select(rows, new_fingerprint=f"{train._fingerprint}-diet")
        if len(set(train["labels"])) < 2:
            raise ValueError(f"data_keep={job.run.data_keep:g} leaves {len(rows)} training rows of one label: raise it")
    sentences = replace(job.sentences, splits={**job.sentences.splits, "train": train})
    seen = {name: sentences.seen(len(words)) for name, words in job.seen.items()}
    return replace(job, sentences=sentences, seen=seen)


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """EL2N of each row: || softmax(z) - onehot(y) ||_2 (Paul et al. 2021); |z - y| of a regression.

    Args:
        logits: (rows, outputs).
        labels: (rows,).
    """
    if logits.shape[1] == 1:
        return (logits[:, 0] - labels).abs()
    return (logits.softmax(1) - torch.nn.functional.one_hot(labels, logits.shape[1])).norm(dim=1)


def grand(model: AdaptedModel, sentences: Sentences) -> Tensor:
    """GraNd of each training row: || dl/dw ||_2 over all weights (Paul et al. 2021), without dropout.

    One backward pass a row: several times as slow as an epoch of training.
    """
    model.eval()
    device = next(model.parameters()).device
    scores = []
    for row in sentences.splits["train"]:
        batch = {name: tensor.to(device) for name, tensor in sentences.collate([row]).items()}
        model.zero_grad()
        model(**batch).loss.backward()
        squares = [
            parameter.grad.double().square().sum() for parameter in model.parameters() if parameter.grad is not None
        ]
        scores.append(float(torch.stack(squares).sum().sqrt()))
    return torch.tensor(scores)


def _scored(job: Job, settings: Settings) -> Result:
    """Scores of all training rows by a copy that has been fine-tuned for one epoch."""
    model = copy.deepcopy(job.model)
    done, start = fit_weights(job, model, settings, FINETUNE_RATE), time.monotonic()
    if job.run.data_score == "grand":
        scores = grand(model, job.sentences)
    else:
        logits = torch.from_numpy(predict(model, job.sentences, "train", settings)).float()
        scores = el2n(logits, torch.from_numpy(np.array(job.sentences.splits["train"]["labels"])))
    return {"scores": scores}, replace(done, seconds=done.seconds + time.monotonic() - start)
