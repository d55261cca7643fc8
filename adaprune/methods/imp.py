"""imp: iterative magnitude pruning with rewinding (Frankle and Carbin 2019; Chen et al. 2020 for BERT)."""

import copy
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from adaprune.methods.oneshot import cut, with_head
from adaprune.runs import FINETUNE_RATE, TUNED_WEIGHTS, Method
from adaprune.training import Fit, Job, Outcome, Result, Settings, add_fits, fit_weights, put_zeros, stage


def imp(job: Job) -> Outcome:
    """Finds the mask in rounds of training and pruning; applies it to the original weights. Weights intact.

    Each round trains a copy of the masked encoder and of the head from their start, removes the smallest trained |w|,
    and rewinds. A round removes 20 % of the remaining connections:

        s_r = 1 - 0.8^r;   the last round cuts to exactly k = round((1 - sparsity) n)

    Then a new head is trained. Takes (R + 1) ``epochs`` in total, where R is the number of rounds: 4 at a sparsity of
    0.5 and 11 at 0.9.
    """
    masks, fits = _rounds(job)
    return with_head(job, masks, *fits)


def imp_finetune(job: Job) -> Outcome:
    """The lottery ticket: trains the original weights under the mask of `imp`. The weights do NOT stay intact.

    Takes (R + 1) ``epochs`` in total.
    """
    masks, fits = _rounds(job)
    put_zeros(job.weights, masks)
    return Outcome(add_fits(*fits, fit_weights(job, job.weights)), masks)


def sparsities(target: float) -> list[float]:
    """The sparsity after each round, ending with ``target`` itself; empty if nothing is removed.

    >>> [round(s, 6) for s in sparsities(0.5)]
    [0.2, 0.36, 0.488, 0.5]
    """
    found: list[float] = []
    while target:
        reached = 1 - 0.8 ** (len(found) + 1)
        if reached > target - 1e-9:
            return [*found, target]
        found.append(reached)
    return found


def _rounds(job: Job) -> tuple[dict[str, Tensor], list[Fit]]:
    """The final masks, and the cost of each round."""
    masks = {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in job.weights.items()}
    fits = []
    for number, sparsity in enumerate(sparsities(job.run.sparsity), 1):
        masks, done = stage(job.settings, f"round-{number}", partial(_round, job, masks, 1 - sparsity))
        fits.append(done)
    return masks, fits


def _round(job: Job, masks: dict[str, Tensor], density: float, settings: Settings) -> Result:
    """One round: the masks after training a copy under ``masks`` and cutting it to ``density``."""
    trained = replace(job, model=copy.deepcopy(job.model), settings=settings)
    put_zeros(trained.weights, masks)
    done = fit_weights(trained, trained.weights)
    # removed weights score below all others, even an original 0, so that masks only shrink from round to round
    scores = {name: w.detach().abs().cpu().masked_fill(~masks[name], -1.0) for name, w in trained.weights.items()}
    return cut(job, scores, density), done


_ROUNDS = {**TUNED_WEIGHTS, "steps": 0}  # each round has the recipe's epochs, which makes many in total
_RATES = {"learning_rate": FINETUNE_RATE, "head_learning_rate": FINETUNE_RATE}
IMP = Method(
    imp, line="magnitudes of a copy, trained and pruned in rounds, from the start again after each",
    source="Frankle and Carbin 2019; Chen et al. 2020", tuned={**_ROUNDS, "learning_rate": FINETUNE_RATE},
    paper={"learning_rate": FINETUNE_RATE}, reads=("learning_rate", "head_learning_rate"), colour="#0B2FAD",
    marker="X",
)  # fmt: skip
IMP_FINETUNE = Method(
    imp_finetune, line="the lottery ticket: weights trained under imp's mask",
    source="Frankle and Carbin 2019; Chen et al. 2020", weights_intact=False, tuned={**_ROUNDS, **_RATES},
    paper=_RATES, reads=("learning_rate",), colour="#053758", marker=(4, 1, 45),
)  # fmt: skip
