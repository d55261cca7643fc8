"""adaprune: the mask is learned with the head, the weights stay as they are (Gao, Colombo, Wang 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from adaprune.counting import EMBED, component_of
from adaprune.heads import AdaptedModel
from adaprune.job import Job, Outcome
from adaprune.masks import attach, check_minimum, keep_top, maskable, set_masks, threshold_of
from adaprune.optim import AdaPrune
from adaprune.recipes import Plan
from adaprune.schedules import SparsityControl
from adaprune.theta import initial_theta, protect
from adaprune.training import fit, steps_in


def adaprune(job: Job) -> Outcome:
    """Learns theta and head together by Algorithm 1, then keeps exactly the k largest theta. Weights intact.

        m* = 1[theta among the k largest],   k = round((1 - sparsity) n)

    Raises:
        ValueError: the plan cannot reach the asked sparsity (see `SparsityControl.check`).
    """
    run, plan, encoder = job.run, job.plan, job.model.encoder
    weights = {name: module.weight for name, module in maskable(encoder, run.scope).items()}
    generator = torch.Generator().manual_seed(run.seed)
    thetas = protect(initial_theta(weights, plan.initial_theta, generator), job.seen, job.density)
    check_minimum(thetas, job.density, run.minimum_kept)
    steps = steps_in(len(job.sentences.splits["train"]), job.settings)
    end = max(1, round(plan.reach * steps))
    control = SparsityControl(plan.control, run.sparsity, end, recovery=run.recovery)
    control.check(thetas.values(), steps, plan.penalty, plan.learning_rate if plan.step_rule != "sgd" else 0.0)
    parameters = attach(encoder, thetas)
    optimiser = optimiser_for(job.model, parameters, plan, run.recovery)
    learned = fit(job.model, job.sentences, optimiser, job.settings, control)
    masks = keep_top(parameters, job.density, run.minimum_kept)
    set_masks(encoder, masks)
    return Outcome(learned, masks)


def optimiser_for(model: AdaptedModel, thetas: dict[str, Tensor], plan: Plan, recovery: bool = True) -> AdaPrune:
    """AdaPrune over the attached ``thetas`` and the head, as ``plan`` has it.

    Theta of word embeddings is stepped without a first moment: a row is seen now and then, and its average would be
    of batches long gone. The groups of theta share one threshold, which moves once a step.
    """
    masked = {"masked": True, "threshold": threshold_of(model.encoder), "lr": plan.learning_rate}
    tables = [theta for name, theta in thetas.items() if component_of(name) == EMBED]
    matrices = [theta for name, theta in thetas.items() if component_of(name) != EMBED]
    groups = [
        {**masked, "params": matrices, "penalty": plan.penalty if plan.control == "penalty" else 0.0},
        {"params": list(model.head.parameters()), "lr": plan.head_learning_rate},
    ]
    if tables:
        groups.append({**masked, "params": tables, "betas": (0.0, 0.999)})
    return AdaPrune(groups, rule=plan.step_rule, temperature=plan.temperature, recovery=recovery)
