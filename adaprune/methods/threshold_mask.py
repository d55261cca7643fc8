"""threshold_mask: masking instead of fine-tuning (Zhao et al. 2020), scores against a threshold. Weights intact."""

import torch
from torch import Tensor

from adaprune.masks import keep_top
from adaprune.methods.learning import LEARNED, SCORES, learn, start
from adaprune.runs import Method
from adaprune.training import Job, Outcome

THRESHOLD = 1e-2  # tau
REACH = 2e-2  # a: the lowest start of a score is -a


def threshold_mask(job: Job) -> Outcome:
    """Learns scores straight through, m = 1[S > tau], from a random start at the sparsity itself. Weights intact.

        S_0 ~ U(-a, (a + tau) / q - a),   so that a share q = sparsity starts masked;   tau = 0.01, a = 0.02

    (Zhao et al. 2020, arXiv 2004.12406.) In the paper, tau is fixed and the sparsity drifts; here tau follows theta's
    quantile, so that the sparsity stays at q.
    """
    generator = torch.Generator().manual_seed(job.run.seed)
    shapes = {name: weight.shape for name, weight in job.weights.items()}
    return learn(job, start(job, uniform_scores(shapes, job.run.sparsity, generator)))


def uniform_scores(shapes: dict[str, torch.Size], q: float, generator: torch.Generator) -> dict[str, Tensor]:
    """S_0 - tau: uniform as above, such that exactly round((1 - q) n) of all exceed tau.

    (Relative to tau, so that rounding moves no score across it.)
    """
    kept = keep_top({name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}, 1 - q)
    below = THRESHOLD + REACH
    above = below * (1 - q) / q if q else below  # with q = 0 nothing is masked, whatever the scores
    drawn = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    return {name: torch.where(kept[name], above * (1 - u), -below * u) for name, u in drawn.items()}


_SETTINGS = {**SCORES, "learning_rate": 1e-3, "fixed": True}
THRESHOLD_MASK = Method(
    threshold_mask, line="random scores, one threshold", source="Zhao et al. 2020", tuned=_SETTINGS, reads=LEARNED,
    colour="#1D94B2", marker="h",
)  # fmt: skip
