"""Fixed masks: calibration sentences, scores from activations and gradients, cuts, and training the head."""

import copy
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from accelerate import PartialState
from torch import Tensor, nn

from adaprune.masks import (
    EMBED,
    attach,
    component_of,
    counts,
    keep_each,
    keep_top,
    keep_units,
    maskable,
    masks_of_units,
    protect,
    set_masks,
)
from adaprune.training import AdaptedModel, Fit, Job, Outcome, Result, Settings, add_fits, fit_head, stage

CALIBRATION = 1024  # training sentences


def calibration(job: Job) -> Iterator[tuple[dict[str, Tensor], float]]:
    """Batches of at most 1,024 training sentences, drawn with the run's seed; each with its share of the drawn rows."""
    train = job.sentences.splits["train"]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(job.run.seed))
    drawn = order[:CALIBRATION].tolist()
    for start in range(0, len(drawn), job.settings.batch_size):
        rows = [train[i] for i in drawn[start : start + job.settings.batch_size]]
        yield job.sentences.collate(rows), len(rows) / len(drawn)


def activations(job: Job) -> dict[str, Tensor]:
    """|w_ij| ||x_j||_2 for every weight in scope (Sun et al. 2023); x_j is input j over the calibration tokens."""
    norms = input_norms(job, maskable(job.model.encoder, job.run.scope))
    norms = {name: norm[:, None] if component_of(name) == EMBED else norm for name, norm in norms.items()}
    return {name: weight.detach().abs() * norms[name] for name, weight in job.weights.items()}


@torch.no_grad()
def input_norms(job: Job, modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """||x_j||_2 of each module's inputs over the calibration tokens, (inputs,); a table's inputs are one-hot."""
    model = job.model.to(PartialState().device).eval()
    device = next(model.parameters()).device
    squares: dict[str, Tensor] = {}
    present: list[Tensor] = []  # the batch's attention mask

    def listen(name: str):
        def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = _tokens(inputs[0], present[0])  # (tokens, inputs), or (tokens,) of word numbers
            if isinstance(module, nn.Embedding):
                new = torch.bincount(x, minlength=module.num_embeddings)
            else:
                new = x.float().square().sum(0)
            squares[name] = squares.get(name, 0) + new.cpu().double()  # Apple GPUs have no float64

        return add

    handles = [module.register_forward_pre_hook(listen(name)) for name, module in modules.items()]
    for batch, _ in calibration(job):
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        present[:] = [batch["attention_mask"].bool()]
        model(**batch)
    for handle in handles:
        handle.remove()
    return {name: square.sqrt().float() for name, square in squares.items()}


def _tokens(x: Tensor, present: Tensor) -> Tensor:
    """The entries of a module's input that are not padding, one after another; ``present`` is (batch, tokens).

    ``x`` can have the layout (batch, tokens, ...), (tokens, batch, ...) or (batch * tokens, ...). Any other input does
    not consist of tokens (DeBERTa's relative positions) or has no padding, so all of it counts.
    """
    for mask in (present, present.t(), present.flatten()):
        if x.shape[: mask.ndim] == mask.shape:
            return x[mask]
    return x.reshape(-1, x.shape[-1])


def sensitivities_with_head(job: Job) -> Result:
    """`sensitivities` with a head that knows the task: a copy of the head is trained first, for at most one epoch.

    (The gradients of a new head would not show what the task needs.) The job's own model is unchanged; done once.
    """

    def work(settings: Settings) -> Result:
        warm = replace(job, model=copy.deepcopy(job.model), settings=settings)
        done, start = fit_head(warm), time.monotonic()
        scores = sensitivities(warm)
        return scores, replace(done, seconds=done.seconds + time.monotonic() - start)

    return stage(replace(job.settings, epochs=min(1.0, job.settings.epochs)), "sensitivities", work)


def sensitivities(job: Job) -> dict[str, Tensor]:
    """|w dL/dw| for every weight in scope; leaves masks of ones attached to the job's encoder."""
    model: AdaptedModel = job.model.to(PartialState().device)
    thetas = attach(model.encoder, {name: torch.ones_like(weight) for name, weight in job.weights.items()})
    model.eval()
    for batch, share in calibration(job):
        batch = {name: tensor.to(next(model.parameters()).device) for name, tensor in batch.items()}
        (share * model(**batch).loss).backward()
    return {name: theta.grad.to_dense().abs() for name, theta in thetas.items()}


def cut(job: Job, scores: Mapping[str, Tensor], density: float | None = None) -> dict[str, Tensor]:
    """The masks that keep the highest scores: exactly k = round(density n), with the run's density by default.

    There is one cut over all matrices or, under the plan's ``allocation``, one per matrix. Embedding rows that do not
    occur in training are kept (see `masks.protect`). With scores of units, round(density n) of all heads and of all FFN
    neurons are kept.
    """
    density, kind = job.density if density is None else density, job.plan.allocation
    if job.run.pattern == "units":
        return masks_of_units(keep_units(scores, density), job.weights)
    scores = protect(scores, job.seen, density, each=bool(kind))
    return keep_each(scores, counts(scores, density, kind)) if kind else keep_top(scores, density)


def cut_outputs(job: Job, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks that keep the same share of every output's inputs, exactly k = round(density n) in total.

    Outputs are the rows of a matrix, and the columns of an embedding table (a table multiplies one-hot words). Each
    keeps density * (its inputs), rounded down or up: the outputs up to r together keep round(density * their inputs),
    so that rounding is spread evenly. Equal scores are kept in order of position.
    """
    total = sum(score.numel() for score in scores.values())
    k, before, masks = round(job.density * total), 0, {}
    for name, score in protect(scores, job.seen, job.density, each=True).items():
        table = component_of(name) == EMBED
        score = (score.t() if table else score).detach().cpu()
        ends = before + score.shape[1] * torch.arange(score.shape[0] + 1)
        before = int(ends[-1])
        quota = ((2 * k * ends + total) // (2 * total)).diff()
        order = score.argsort(dim=1, descending=True, stable=True)
        kept = torch.zeros(score.shape, dtype=torch.bool)
        kept.scatter_(1, order, torch.arange(score.shape[1]) < quota[:, None])
        masks[name] = kept.t().contiguous() if table else kept
    return masks


def with_head(job: Job, masks: dict[str, Tensor], *before: Fit) -> Outcome:
    """Applies fixed ``masks`` to the job's weights and trains a head; ``before`` is the cost of finding the masks."""
    set_masks(job.model.encoder, masks)
    return Outcome(add_fits(*before, fit_head(job)), masks)
