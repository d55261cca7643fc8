"""smp: Static Model Pruning (Jiang et al. 2022): learns only masks, from scores with a penalty. Weights intact."""

from adaprune.methods.learning import LEARNED, SCORES, learn, start
from adaprune.runs import Method
from adaprune.training import Job, Outcome


def smp(job: Job) -> Outcome:
    """Learns scores straight through; the share of each matrix depends on its mean score.

        m_l = 1[S_l among the v_l n_l largest],   S_0 = 0,   loss + lambda_t sum sigmoid(S) / n_0
        v_l = L v_t s_l / sum s,   s_l = mean sigmoid(S_l)    within each of the six kinds of matrices (SMP-S)

    with n_0 of `soft_movement` (Jiang et al. 2022, arXiv 2210.06210). v_t falls and lambda_t rises to 400 by the cubic
    schedule, over a share of all steps, so that small tasks work too. ``allocation="equal"`` is SMP-L: v_l = v_t.
    Excess over 1 goes to the other matrices (in the paper it is lost), and the total is exact. Our choices: the common
    head instead of the frozen language-model head with label words, sigmoid(S) undivided at all sparsities, and a
    warm-up of the rate.
    """
    return learn(job, start(job))


_SETTINGS = {**SCORES, "learning_rate": 2e-2, "penalty": 400.0, "allocation": "scores"}
SMP = Method(
    smp, line="scores with a penalty, which also share out the matrices", source="Jiang et al. 2022",
    tuned=_SETTINGS, reads=LEARNED, colour="#25CBD0", marker="*",
)  # fmt: skip
