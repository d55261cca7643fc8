"""features: feature extraction. Only the head is trained, on the whole frozen encoder. Weights intact."""

from adaprune.runs import Method
from adaprune.training import Job, Outcome, fit_head


def features(job: Job) -> Outcome:
    """Trains the head on the pre-trained encoder; the paper's lower line."""
    return Outcome(fit_head(job))


FEATURES = Method(
    features, line="only the head is trained, on the whole frozen encoder: the paper's lower line",
    source="Peters et al. 2019", mask=False, colour="#E69F00", marker="^",
)  # fmt: skip
