"""adaprune: the mask is learned with the head, the weights stay as they are (Gao, Colombo, Wang 2021)."""

import time
from dataclasses import replace

import torch

from adaprune.masks import SCORED, initial_theta, theta_in_order
from adaprune.methods.learning import LEARNED, learn
from adaprune.methods.oneshot import activations, sensitivities_with_head
from adaprune.runs import Method
from adaprune.training import Fit, Job, Outcome, together


def adaprune(job: Job) -> Outcome:
    """Learns theta and head together by Algorithm 1, then keeps exactly the k largest theta. Weights intact.

        m* = 1[theta among the k largest],   k = round((1 - sparsity) n)

    Theta starts as the plan has it: by the weights alone (`initial_theta`), or in the order of |w| ||x||
    (``activation``) or of |w dL/dw| (``gradient``, which spends up to one epoch more, on a head).

    Raises:
        ValueError: the plan cannot reach the asked sparsity (see `SparsityControl.check`).
    """
    kind, before, start = job.plan.initial_theta, [], time.monotonic()
    generator = torch.Generator().manual_seed(job.run.seed)
    thetas = values = initial_theta(job.weights, "magnitude" if kind in SCORED else kind, generator)
    if kind == "gradient":
        scores, first = sensitivities_with_head(job)
        before, thetas = [first], theta_in_order(scores, values)
    elif kind == "activation":
        thetas = theta_in_order(activations(job), values)
        before = [Fit(seconds=time.monotonic() - start)]  # calibration is part of the seconds
    outcome = learn(job, thetas)
    return replace(outcome, fit=together(*before, outcome.fit))


ADAPRUNE = Method(
    adaprune, line="theta and head are learned together by Algorithm 1, the weights stay",
    source="Gao, Colombo, Wang 2021", reads=(*LEARNED, "temperature"), colour="#0072B2", marker="o",
)  # fmt: skip
