"""wanda: one-shot pruning by weight times input norm (Sun, Liu, Bair, Kolter 2023). Weights intact."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from accelerate import PartialState
from torch import Tensor, nn

from adaprune.job import Job, Outcome
from adaprune.masks import maskable, set_masks
from adaprune.oneshot import calibration, cut_outputs
from adaprune.training import fit_head


def wanda(job: Job) -> Outcome:
    """Keeps for each output the inputs of the highest score, then trains the head.

        S_ij = |w_ij| ||x_j||_2,   compared within each output i

    with x_j input j over all tokens, padding left out, of up to 1,024 training sentences, in the unpruned encoder (the
    paper prunes one layer after the other and sees the inputs of pruned layers). Each output keeps
    density * (number of inputs) rounded down or up, exactly k in all; ties by position (`oneshot.cut_outputs`).
    Spends ``epochs`` in all, on the head; the scores take forward passes only.
    """
    modules = maskable(job.model.encoder, job.run.scope)
    start = time.monotonic()
    norms = input_norms(job, modules)
    masks = cut_outputs(job, {name: _score(modules[name], norms[name]) for name in modules})
    calibrated = time.monotonic() - start
    set_masks(job.model.encoder, masks)
    done = fit_head(job)
    return Outcome(replace(done, seconds=done.seconds + calibrated), masks)


@torch.no_grad()
def input_norms(job: Job, modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """||x_j||_2 of each module's inputs over the calibration tokens, shape (inputs,); a table's inputs are one-hot."""
    model = job.model.to(PartialState().device).eval()
    device = next(model.parameters()).device
    squares: dict[str, Tensor] = {}
    present: list[Tensor] = []  # the batch's attention mask

    def listen(name: str):
        def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0][present[0]]  # (tokens, inputs), or (tokens,) of word numbers
            new = x.double().square().sum(0)
            if isinstance(module, nn.Embedding):
                new = torch.bincount(x, minlength=module.num_embeddings).double()
            squares[name] = squares.get(name, 0) + new

        return add

    handles = [module.register_forward_pre_hook(listen(name)) for name, module in modules.items()]
    for batch, _ in calibration(job):
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        present[:] = [batch["attention_mask"].bool()]
        model(**batch)
    for handle in handles:
        handle.remove()
    return {name: square.sqrt().float() for name, square in squares.items()}


def _score(module: nn.Module, norm: Tensor) -> Tensor:
    """|w| times the norm of the input that it multiplies."""
    return module.weight.detach().abs() * (norm[:, None] if isinstance(module, nn.Embedding) else norm)
