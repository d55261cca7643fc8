"""adaprune: the mask is learned with the head, the weights stay as they are (Gao, Colombo, Wang 2021)."""

import time
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from adaprune.masks import SCORED, component_of, initial_theta, sum_over_units, theta_in_order
from adaprune.methods.learning import LEARNED, learn
from adaprune.methods.oneshot import activations, sensitivities_with_head
from adaprune.runs import Method
from adaprune.training import Fit, Job, Outcome, add_fits


def adaprune(job: Job) -> Outcome:
    """Learns theta and the head together by Algorithm 1, then keeps exactly the k largest theta. Weights intact.

        m* = 1[theta among the k largest],   k = round((1 - sparsity) n)

    The plan says where theta starts: from the weights alone (`initial_theta`), or in the order of |w| ||x||
    (``activation``) or of |w dL/dw| (``gradient``, which takes up to one more epoch, for a head). With
    ``pattern="units"`` each theta stands for an attention head or an FFN neuron: |w| is then the norm of all its
    weights, other scores are summed over them, and means are taken over heads and over neurons separately.

    Raises:
        ValueError: the plan cannot reach the requested sparsity (see `SparsityControl.check`).
    """
    kind, before, start = job.plan.initial_theta, [], time.monotonic()
    by_weights, scores = "magnitude" if kind in SCORED else kind, None
    if kind == "gradient":
        scores, first = sensitivities_with_head(job)
        before = [first]
    elif kind == "activation":
        scores = activations(job)
        before = [Fit(seconds=time.monotonic() - start)]  # the time includes calibration
    generator = torch.Generator().manual_seed(job.run.seed)
    if job.run.pattern == "units":
        thetas = _of_units(job.weights, job.model.config.num_attention_heads, by_weights, generator, scores)
    else:
        thetas = initial_theta(job.weights, by_weights, generator)
        thetas = thetas if scores is None else theta_in_order(scores, thetas)
    outcome = learn(job, thetas)
    return replace(outcome, fit=add_fits(*before, outcome.fit))


def _of_units(
    weights: Mapping[str, Tensor],
    heads: int,
    kind: str,
    generator: torch.Generator,
    scores: Mapping[str, Tensor] | None,
) -> dict[str, Tensor]:
    """theta_0 of units: from the norms of their weights, or in the order of the scores summed over them."""
    squares = sum_over_units({name: weight.detach().square() for name, weight in weights.items()}, heads)
    summed = None if scores is None else sum_over_units(scores, heads)
    thetas: dict[str, Tensor] = {}
    for part in ("attention_output", "ffn_out"):
        norms = {name: square.sqrt() for name, square in squares.items() if component_of(name) == part}
        values = initial_theta(norms, kind, generator)
        thetas |= values if summed is None else theta_in_order(summed, values)
    return thetas


ADAPRUNE = Method(
    adaprune, line="theta and head are learned together by Algorithm 1, the weights stay",
    source="Gao, Colombo, Wang 2021", reads=(*LEARNED, "pattern"), colour="#0072B2", marker="o",
)  # fmt: skip
