"""edge_popup: each matrix uses its highest-scored share from the first step on (Ramanujan et al. 2020)."""

import math

import torch

from adaprune.methods.learning import LEARNED, SCORES, learn, start
from adaprune.runs import Method
from adaprune.training import Job, Outcome


def edge_popup(job: Job) -> Outcome:
    """Learns scores over the frozen weights and keeps a constant share of each matrix. Weights intact.

        m = 1[|S| among the density n largest of its matrix],   g_S = sign(S) dL/dm,   S_0 ~ U(-1, 1) / sqrt(fan_in)

    (Ramanujan et al. 2020; Kaiming-uniform with a = sqrt(5).) theta = |S| is stored. Our choice: Adam.
    """
    generator = torch.Generator().manual_seed(job.run.seed)
    thetas = {}
    for name, weight in job.weights.items():
        scores = torch.empty(weight.shape)
        thetas[name] = torch.nn.init.kaiming_uniform_(scores, a=math.sqrt(5), generator=generator).abs()
    return learn(job, start(job, thetas), reflect=True)


_SETTINGS = {**SCORES, "learning_rate": 1e-3, "allocation": "equal", "fixed": True}
EDGE_POPUP = Method(
    edge_popup, line="random scores, a constant share of each matrix", source="Ramanujan et al. 2020",
    tuned=_SETTINGS, reads=LEARNED, colour="#CD22C4", marker="p",
)  # fmt: skip
