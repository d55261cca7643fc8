"""gmp: gradual magnitude pruning (Zhu and Gupta 2018), the paper's MP; `gmp_finetune` also keeps its weights."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import nn

from adaprune.masks import SparsityControl, cubic_sparsity
from adaprune.methods.oneshot import cut, with_head
from adaprune.runs import FINETUNE_RATE, TUNED_WEIGHTS, Method
from adaprune.training import Job, Outcome, Result, fit_weights, put_zeros, stage, steps_in

CUTS = 50  # at most; one every few hundred steps in a long run


def gmp(job: Job) -> Outcome:
    """Finds the mask on a copy that trains while it is pruned; applies it to the original weights. Weights intact.

        s_t = s_f (1 - (1 - t / t_1)^3),   t_1 = reach * steps;   the copy's k largest |w| stay

    Then a new head is trained. Takes 2 ``epochs`` in total: ``epochs`` for the copy and ``epochs`` for the head.
    """
    masks, found = stage(
        job.settings, "copy", lambda settings: _prune(replace(job, model=copy.deepcopy(job.model), settings=settings))
    )
    return with_head(job, masks, found)


def gmp_finetune(job: Job) -> Outcome:
    """Trains encoder and head while they are pruned, and keeps them. The weights do NOT stay intact.

    The schedule is that of `gmp`. Takes ``epochs`` in total.
    """
    masks, done = _prune(job)
    return Outcome(done, masks)


def _prune(job: Job) -> Result:
    """Trains the job's model and zeroes its smallest weights by the schedule; returns masks that keep exactly k."""
    weights = job.weights
    steps = steps_in(len(job.sentences.splits["train"]), job.settings)
    end = max(1, round(job.plan.reach * steps))
    control = GradualMagnitude(weights, partial(cut, job), job.run.sparsity, end)
    done = fit_weights(job, weights, control)
    masks = cut(job, {name: weight.detach().abs() for name, weight in weights.items()})
    put_zeros(weights, masks)
    return masks, done


class GradualMagnitude(SparsityControl):
    """Zeroes more and more of the smallest weights, by the cubic schedule of Zhu and Gupta (2018).

    Makes an exact cut every ``end // 50`` steps, the last at ``end``. What is 0 stays 0 (see `hold_zeros`).

    Args:
        weights: name -> the weights that are trained.
        cut: scores and a density -> masks.
        target, end: the sparsity to reach, and the step by which it is reached.
    """

    def __init__(self, weights: dict[str, nn.Parameter], cut: Callable[[dict, float], dict], target: float, end: int):
        super().__init__("cubic", target, end)
        self.weights, self.cut = weights, cut
        self.interval, self.now = max(1, end // CUTS), 0.0

    def update(self, step: int, thetas=(), threshold=None) -> bool:
        """Cuts after ``step`` if a cut is due. Depends only on the weights, so a resumed run agrees."""
        last = self.end if step >= self.end else step - step % self.interval
        self.now = cubic_sparsity(last, 0, self.end, self.target)
        if step == last and self.target:
            scores = {name: weight.detach().abs() for name, weight in self.weights.items()}
            put_zeros(self.weights, self.cut(scores, 1 - self.now))
        return False

    def sparsity(self, thetas=(), threshold=None) -> float:
        """The sparsity of the last cut. Zeros do not measure it: an embedding's padding row is 0 from the start."""
        return self.now


_OF_THE_COPY = {"learning_rate": 3e-4}
_RATES = {"learning_rate": FINETUNE_RATE, "head_learning_rate": FINETUNE_RATE}
GMP = Method(
    gmp, line="the paper's MP: magnitudes of a copy that is trained and pruned gradually", source="Zhu and Gupta 2018",
    tuned={**TUNED_WEIGHTS, **_OF_THE_COPY}, paper=_OF_THE_COPY,
    reads=("learning_rate", "head_learning_rate", "reach"), colour="#086528", marker="P",
)  # fmt: skip
GMP_FINETUNE = Method(
    gmp_finetune, line="weights trained while they are pruned gradually", source="Zhu and Gupta 2018",
    weights_intact=False, tuned={**TUNED_WEIGHTS, **_RATES}, paper=_RATES, reads=("learning_rate", "reach"),
    colour="#644605", marker=(4, 1, 0),  # a star with four points, not rotated
)  # fmt: skip
