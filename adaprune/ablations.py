"""Ablations of a finished mask: does the score depend on this mask, and on these weights? (paper, Table 3)."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from adaprune.deploy import load_mask
from adaprune.masks import set_masks
from adaprune.methods import METHODS
from adaprune.runs import Paths, Run
from adaprune.training import Job, Outcome, fit_head


def shuffled(masks: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The masks with the entries of each matrix in random order: only the number kept per matrix stays the same."""
    generator = torch.Generator().manual_seed(seed)
    return {n: m.flatten()[torch.randperm(m.numel(), generator=generator)].view(m.shape) for n, m in masks.items()}


@torch.no_grad()
def perturb(encoder: nn.Module, sigma: float, seed: int) -> None:
    """Multiplies every parameter of ``encoder``, including biases and norms, by its own N(1, sigma), in place."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in encoder.parameters():
        parameter.mul_(1 + sigma * torch.randn(parameter.shape, generator=generator).to(parameter.device))


def check_ablation(run: Run, paths: Paths) -> None:
    """ValueError if ``run`` is an ablation of a mask that is not in its ``results_dir``."""
    if (path := source_mask(run, paths)) and not path.is_file():
        raise ValueError(f"{path} is missing: adapt the run without ablation first, with the same results_dir")


def source_mask(run: Run, paths: Paths) -> Path | None:
    """The file of the mask that ``run`` is an ablation of; None if there is none."""
    return paths.mask.with_name(f"{run.ablation_of.name}.safetensors") if run.ablation and run.kind.mask else None


def ablate(job: Job) -> Outcome:
    """Takes the finished mask of `source`, possibly shuffles it or perturbs the weights, and trains a new head.

    With ``probe`` or ``zero_shot`` there is no head: these methods read the masked encoder.

    ``ablation="head"`` without noise is the baseline of the others: the same mask and weights, with the head trained in
    the same way. A method without a mask gives the dense encoder. With noise, the weights are not the checkpoint's.

    Raises:
        ValueError: the mask was made for another base.
    """
    run, encoder, masks = job.run, job.model.encoder, None
    if path := source_mask(run, job.paths):
        masks = load_mask(path, base=encoder).masks
        masks = shuffled(masks, run.seed) if run.ablation == "shuffle" else masks
    if run.noise:
        perturb(encoder, run.noise, run.seed)
    if masks is not None:
        set_masks(encoder, masks)
    if run.ablation in ("probe", "zero_shot"):
        return replace(METHODS[run.ablation].function(job), masks=masks)
    return Outcome(fit_head(job), masks)
