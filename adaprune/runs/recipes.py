"""The two recipes as plain settings: ``paper``, as published where it can be, and ``tuned``, ours."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

from adaprune.runs.method import METHODS, SELECTIVE, Plan
from adaprune.runs.run import Run, default_of

PAPER_EPOCHS = {"mnli": 2.0, "sst2": 3.0, "stsb": 5.0}  # other tasks: 3, our choice


# As printed: batch, alpha, beta, gamma's order, t_s, schedule, normal start with mean 0.01. Chosen, because the
# printed settings cannot reach the sparsities (paper notes, points 1 and 2): an Adam-type step for theta and p, a
# standard deviation of 0.001 where a variance is printed, and a gamma that is fed back until the target stands.
# A run's own ``penalty`` is that fixed gamma of Algorithm 1, and is refused where it cannot arrive.
PAPER = Plan(
    epochs=3.0,
    batch_size=8,
    learning_rate=2e-5,
    head_learning_rate=2e-5,
    schedule="slanted_triangular",
    initial_theta="normal",
    step_rule="adam",
    control="feedback",
    reach=1.0,
    penalty=2e-7,
)

# Theta starts as the weights' magnitude, so that the first cut is magnitude pruning and learning moves it. The sparsity
# stands after 0.4 of the steps, so that the rest can repair what the cut broke; there is no dropout, as pruning is
# noise enough; batches are small, because a mask needs many steps. All chosen on the selection split of STS-B
# (results/recipe_study). The head is linear: level with the paper's on five tasks, and 3 kB instead of 0.6 MB
# (results/heads). Pupils learn from corrupted copies too, because masks at 0.9 overfit without them. How long follows
# from rows and sparsity, `epochs_of`: at 0.5 more than 1,500 steps bring little, at 0.9 the score still rises from
# 2,500 steps to 5,000 (results/steps).
TUNED = Plan(
    epochs=3.0,
    batch_size=16,
    learning_rate=1e-4,
    head_learning_rate=1e-3,
    schedule="warmup_linear",
    initial_theta="magnitude",
    step_rule="adafactor",
    control="cubic",
    reach=0.4,
    penalty=2e-7,
    steps=1500,
    dropout=0.0,
    pooling="own",
    head="linear",
    copies="words and splices",
)

# Settings of methods that train weights, beside TUNED: smaller batches bring them nothing (results/recipe_study), and
# without dropout a fine-tuned teacher is overfitted and teaches less (results/recipe_trials). Of twice the batch half
# the steps: as many epochs as a mask's.
TUNED_WEIGHTS = {"batch_size": 32, "steps": 750, "dropout": -1.0}

MOST_EPOCHS = 40  # of few rows: a bound on the cost, which no score chose

FINETUNE_RATE = 1e-4  # of weights and head, for `finetune`


def plan_for(run: Run) -> Plan:
    """The recipe's settings for ``run``, overridden by those of its method and of the run itself.

    Raises:
        ValueError: a field that the run's method does not read, and the message names the methods that do; a start
            that its method cannot take; an ablation of what cannot have one.
    """
    _check_ablation(run)
    method, paper = METHODS[run.method], run.recipe == "paper"
    plan = replace(PAPER, epochs=PAPER_EPOCHS.get(run.task, PAPER.epochs)) if paper else TUNED
    plan = replace(plan, **(method.paper if paper else method.tuned))
    changed = {name: value for name, value in run if value != default_of(name)}
    for name, value in changed.items():
        if name in SELECTIVE and name not in method.reads:
            readers = ", ".join(other.name for other in METHODS.values() if name in other.reads)
            raise ValueError(
                f"{name}={value!r} would change nothing in method {run.method!r}: leave it out, or choose a method "
                f"that reads it ({readers})"
            )
    for name in ("scope", "allocation", "keep"):
        if run.pattern == "units" and name in changed:
            raise ValueError(
                f"{name}={changed[name]!r} is for single weights: leave it out with pattern='units', which removes "
                "whole heads and FFN neurons, the same share of each"
            )
    plan = replace(plan, **{name: changed[name] for name in asdict(plan) if name in changed})
    if plan.scores and plan.initial_theta not in ("own", "magnitude"):
        raise ValueError(
            f"initial_theta of {run.method} is '' (its own start) or 'magnitude', got {plan.initial_theta!r}"
        )
    plan = replace(plan, copies=plan.copies if run.teacher else "")
    if "epochs" in changed:
        plan = replace(plan, steps=0)
    if "temperature" in changed and plan.surrogate == "identity":  # scores have a slope of 1 unless one is asked for
        plan = replace(plan, surrogate="sigmoid")
    if plan.allocation == "global":
        plan = replace(plan, allocation="")
    if "reach" in changed:
        plan = replace(plan, fixed=False)  # a run that asks for a schedule begins dense
    if "penalty" in changed and not plan.scores:
        if not paper:
            raise ValueError(
                f"penalty={run.penalty!r} would change nothing under recipe 'tuned', whose sparsity follows a "
                "schedule: it is the gamma of Algorithm 1, for recipe='paper'"
            )
        plan = replace(plan, control="penalty")  # Algorithm 1 to the letter: gamma as given, and stop at the target
    return plan


def _check_ablation(run: Run) -> None:
    """ValueError for noise without an ablation, of a method that trains weights, and for a shuffle without a mask."""
    if run.noise and not run.ablation:
        raise ValueError(f"noise={run.noise:g} is of an ablation: set ablation too, say to 'head'")
    if run.ablation and (not run.kind.weights_intact or (run.ablation == "shuffle" and not run.kind.mask)):
        lack = "mask" if run.kind.weights_intact else "mask of the checkpoint's own weights"
        raise ValueError(f"ablation={run.ablation!r} needs a {lack}, method {run.method!r} has none")


def epochs_of(plan: Plan, sparsity: float, batches: int) -> float:
    """Passes over a training set of ``batches`` batches: the recipe's, or more if those give too few steps.

        epochs = max(plan.epochs, min(40, ceil(plan.steps h / batches))),   h = max(1, log2(1 / (1 - sparsity)))

    h is the number of halvings that leave a share 1 - sparsity of the weights: 1 up to 0.5, 2.3 at 0.8, 3.3 at 0.9,
    5.1 at 0.97. The rule is ours (results/steps); a dense method counts as sparsity 0.

    >>> [epochs_of(TUNED, sparsity, batches=200) for sparsity in (0.0, 0.5, 0.9)]
    [8.0, 8.0, 25.0]
    """
    least = math.ceil(plan.steps * max(1.0, -math.log2(1 - sparsity)) / batches)
    return max(plan.epochs, float(min(MOST_EPOCHS, least)))
