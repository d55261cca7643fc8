"""ia3: rescales keys, values and FFN activations (Liu et al. 2022), with peft. The weights do NOT stay intact."""

from adaprune.masks import component_of, maskable
from adaprune.runs import TUNED_WEIGHTS, Method
from adaprune.training import Job, Outcome, fit_added


def ia3(job: Job) -> Outcome:
    """Trains one factor per key, value and FFN unit, and the head, with AdamW; ships the factors.

        k = l_k * (W_k x),   v = l_v * (W_v x),   y = W_out (l_ff * h),   l = 1 at the start

    At the end the factors are multiplied into the weights. Needs the package peft (extra ``methods``).

    Raises:
        ValueError: keys, values or FFN units of the family have no matrix of their own.
    """
    from peft import IA3Config, IA3Model

    model = job.model
    names = {name.removesuffix(".weight"): component_of(name) for name in maskable(model.encoder)}
    if lacking := [part for part in ("key", "value", "ffn_out") if part not in names.values()]:
        raise ValueError(
            f"method 'ia3' rescales keys, values and FFN units, and model {job.run.model!r} (family "
            f"{model.encoder.config.model_type}) has no matrix of its own for {', '.join(lacking)}: use method 'lora'"
        )
    scaled = [name for name, part in names.items() if part in ("key", "value", "ffn_out")]
    inside = [name for name, part in names.items() if part == "ffn_out"]
    adapted = IA3Model(model.encoder, IA3Config(target_modules=scaled, feedforward_modules=inside), "default")
    factors = [parameter for parameter in model.encoder.parameters() if parameter.requires_grad]
    learned = fit_added(job, factors)  # weight decay would pull them to 0, away from the original model
    adapted.merge_and_unload()
    return Outcome(learned, updates=factors)


IA3 = Method(
    ia3, line="keys, values and FFN activations rescaled, by peft", source="Liu et al. 2022", mask=False,
    weights_intact=False, tuned={**TUNED_WEIGHTS, "learning_rate": 3e-3}, paper={"learning_rate": 3e-3},
    needs="peft", reads=("learning_rate", "head_learning_rate"), colour="#142AF3", marker=(6, 1, 30),
)  # fmt: skip
