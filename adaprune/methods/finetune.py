"""finetune: everything is trained, nothing is masked; the paper's upper line. The weights do NOT stay intact."""

from adaprune.runs import FINETUNE_RATE, TUNED_WEIGHTS, Method
from adaprune.training import Job, Outcome, fit_weights


def finetune(job: Job) -> Outcome:
    """Trains encoder and head with AdamW; for students, `adapt` writes its training logits next to the record."""
    return Outcome(fit_weights(job))


_RATES = {"learning_rate": FINETUNE_RATE, "head_learning_rate": FINETUNE_RATE}
FINETUNE = Method(
    finetune, line="every weight is trained, nothing masked: the paper's upper line", source="Devlin et al. 2019",
    mask=False, weights_intact=False, tuned={**TUNED_WEIGHTS, **_RATES}, paper=_RATES, reads=("learning_rate",),
    colour="#000000", marker="s",
)  # fmt: skip
