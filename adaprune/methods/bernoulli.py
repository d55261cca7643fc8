"""bernoulli: a new mask is drawn at each step, with learned probabilities (Zhou et al. 2019). Weights intact."""

import math

import torch
from torch import Tensor, nn

from adaprune.masks import MaskedEmbedding, MaskedLinear, attach
from adaprune.methods.learning import LEARNED, SCORES, learn, start
from adaprune.runs import Method
from adaprune.training import Job, Outcome

SPREAD = 0.01  # spread of the start, so that no two scores are equal


class _Sampled:
    """A masked layer that draws a new mask in each forward pass of training."""

    def compared(self) -> tuple[Tensor, float]:
        """Theta + logit(u) with u ~ U(0, 1), which exceeds 0 with probability sigmoid(theta).

        The draw is kept for backward. It comes from torch's own generator, which checkpoints save.
        """
        if self.training:
            return self.theta + torch.rand_like(self.theta).logit(), 0.0
        return super().compared()


class _SampledLinear(_Sampled, MaskedLinear):
    pass


class _SampledEmbedding(_Sampled, MaskedEmbedding):
    pass


def attach_sampled(
    encoder: nn.Module, thetas: dict[str, Tensor], per_matrix: bool = False, recovery: bool = True
) -> dict[str, nn.Parameter]:
    """`masks.attach`, but in training m ~ Bernoulli(sigmoid(theta)) with a new draw in each forward pass."""
    parameters = attach(encoder, thetas, per_matrix, recovery)
    for module in encoder.modules():
        if isinstance(module, MaskedLinear):
            module.__class__ = _SampledLinear
        elif isinstance(module, MaskedEmbedding):
            module.__class__ = _SampledEmbedding
    return parameters


def bernoulli(job: Job) -> Outcome:
    """Learns the probability of each connection and keeps the most probable ones. Weights intact.

        m ~ Bernoulli(sigmoid(s)) in training,   g_s = dL/dm sigmoid'(s),   s_0 ~ N(logit(density), 0.01^2)

    (Zhou et al. 2019, section 5, "supermasks".) Evaluation uses the k largest s. In the paper, the sparsity results
    from s; here the start has the requested sparsity in expectation, and the last cut is exact. Our choices: the start,
    Adam.
    """
    generator = torch.Generator().manual_seed(job.run.seed)
    density = min(job.density, 1 - 1e-6)
    mean = math.log(density / (1 - density))
    thetas = {
        name: torch.empty(weight.shape).normal_(mean, SPREAD, generator=generator)
        for name, weight in job.weights.items()
    }
    return learn(job, start(job, thetas), attach=attach_sampled)


# No temperature: the slope has to be that of the sigmoid that masks are drawn with.
_SETTINGS = {**SCORES, "learning_rate": 5e-2, "surrogate": "sampled", "fixed": True}
BERNOULLI = Method(
    bernoulli, line="masks drawn with learned probabilities", source="Zhou et al. 2019", tuned=_SETTINGS,
    reads=tuple(name for name in LEARNED if name != "temperature"), colour="#FEA4F3", marker="8",
)  # fmt: skip
