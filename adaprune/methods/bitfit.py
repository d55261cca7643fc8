"""bitfit: only biases are trained (Ben Zaken et al. 2022). The weights do NOT stay intact."""

from adaprune.runs import TUNED_WEIGHTS, Method
from adaprune.training import Job, Outcome, fit_added


def bitfit(job: Job) -> Outcome:
    """Trains every bias of the encoder, including those of its layer norms, and the head, with AdamW.

    Raises:
        ValueError: the family has no biases.
    """
    biases = [parameter for name, parameter in job.model.encoder.named_parameters() if name.endswith("bias")]
    if not biases:
        family = job.model.encoder.config.model_type
        raise ValueError(f"method 'bitfit' trains biases, and model {job.run.model!r} (family {family}) has none")
    for bias in biases:
        bias.requires_grad_(True)
    return Outcome(fit_added(job, biases), updates=biases)


BITFIT = Method(
    bitfit, line="only the biases are trained", source="Ben Zaken et al. 2022", mask=False, weights_intact=False,
    tuned={**TUNED_WEIGHTS, "learning_rate": 1e-3}, paper={"learning_rate": 1e-3},
    reads=("learning_rate", "head_learning_rate"), colour="#6C8507", marker=(6, 2, 0),
)  # fmt: skip
