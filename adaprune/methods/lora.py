"""lora: low-rank updates of all linear layers (Hu et al. 2022), with peft. The weights do NOT stay intact."""

from adaprune.masks import maskable
from adaprune.runs import TUNED_WEIGHTS, Method
from adaprune.training import Job, Outcome, fit_added

RANK, SCALE = 8, 2  # the default r, and alpha / r


def lora(job: Job) -> Outcome:
    """Trains A, B and the head with AdamW, then adds the product to the weights; masks nothing. Ships A and B.

        W = W_0 + (alpha / r) B A,   B (out, r) = 0 and A (r, in) random at the start,   alpha = 2 r

    r is the run's ``rank``, or 8. Needs the package peft (extra ``methods``).
    """
    from peft import LoraConfig, LoraModel

    model, rank = job.model, job.run.rank or RANK
    names = [name.removesuffix(".weight") for name in maskable(model.encoder)]
    adapted = LoraModel(model.encoder, LoraConfig(r=rank, lora_alpha=SCALE * rank, target_modules=names), "default")
    low_rank = [parameter for parameter in model.encoder.parameters() if parameter.requires_grad]
    learned = fit_added(job, low_rank, weight_decay=0.01)
    adapted.merge_and_unload()
    return Outcome(learned, updates=low_rank)


LORA = Method(
    lora, line="low-rank updates of the weights, by peft", source="Hu et al. 2022", mask=False,
    weights_intact=False, tuned={**TUNED_WEIGHTS, "learning_rate": 1e-3}, paper={"learning_rate": 1e-3},
    needs="peft", reads=("learning_rate", "head_learning_rate", "rank"), colour="#11F3C1", marker=(6, 1, 0),
)  # fmt: skip
