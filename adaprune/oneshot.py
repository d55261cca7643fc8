"""One-shot pruning: which sentences the scores are computed on, and how scores are cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from adaprune.allocation import counts
from adaprune.counting import EMBED, component_of
from adaprune.job import Job
from adaprune.masks import keep_each, keep_top
from adaprune.theta import protect

CALIBRATION = 1024  # training sentences


def calibration(job: Job) -> Iterator[tuple[dict[str, Tensor], float]]:
    """Batches of at most 1,024 training sentences drawn by the run's seed; each with its share of all drawn."""
    train = job.sentences.splits["train"]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(job.run.seed))
    drawn = order[:CALIBRATION].tolist()
    for start in range(0, len(drawn), job.settings.batch_size):
        rows = [train[i] for i in drawn[start : start + job.settings.batch_size]]
        yield job.sentences.collate(rows), len(rows) / len(drawn)


def cut(job: Job, scores: Mapping[str, Tensor], density: float | None = None) -> dict[str, Tensor]:
    """The masks that keep the highest scores of all matrices together: exactly k = round(density n).

    Embedding rows that training never shows are kept (see `theta.protect`), and in each matrix the run's
    ``minimum_kept``. ``density`` is the run's where none is given.
    """
    density = job.density if density is None else density
    return keep_top(protect(_here(scores), job.seen, density), density, job.run.minimum_kept)


def cut_layers(job: Job, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks that keep the same share of every matrix, exactly k = round(density n) in all."""
    scores = protect(_here(scores), job.seen, job.density, each=True)
    return keep_each(scores, counts(scores, job.density, "equal", job.run.minimum_kept))


def cut_outputs(job: Job, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks that keep the same share of every output's inputs, exactly k = round(density n) in all.

    Outputs are the rows of a matrix, and the columns of an embedding table (a table multiplies one-hot words). Each
    keeps density * (its inputs) rounded down or up: up to and with output r, round(density * inputs so far) stay, so
    that the rounding is spread evenly. Equal scores are kept in order of position.

    Raises:
        ValueError: a matrix would keep fewer than the run's ``minimum_kept``.
    """
    total = sum(score.numel() for score in scores.values())
    k, before, masks = round(job.density * total), 0, {}
    for name, score in protect(_here(scores), job.seen, job.density, each=True).items():
        table = component_of(name) == EMBED
        score = score.t() if table else score
        ends = before + score.shape[1] * torch.arange(score.shape[0] + 1)
        before = int(ends[-1])
        quota = ((2 * k * ends + total) // (2 * total)).diff()
        order = score.argsort(dim=1, descending=True, stable=True)
        kept = torch.zeros(score.shape, dtype=torch.bool)
        kept.scatter_(1, order, torch.arange(score.shape[1]) < quota[:, None])
        masks[name] = kept.t().contiguous() if table else kept
        if int(quota.sum()) < min(job.run.minimum_kept, score.numel()):
            raise ValueError(
                f"{name} keeps {int(quota.sum())} connections at a sparsity of {job.run.sparsity:g}, minimum_kept is "
                f"{job.run.minimum_kept}: lower one of them"
            )
    return masks


def _here(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: score.detach().cpu() for name, score in scores.items()}
