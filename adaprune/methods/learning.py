"""Learning a mask with any method: from the start of theta to the exact cut."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor, nn

from adaprune.masks import (
    EMBED,
    AdaPrune,
    ControlOfUnits,
    SparsityControl,
    attach,
    component_of,
    initial_theta,
    maskable,
    protect,
    set_masks,
    shares,
    sum_over_units,
    theta_in_order,
    threshold_of,
)
from adaprune.methods.oneshot import cut
from adaprune.methods.scores import Scores
from adaprune.runs import METHODS, Plan
from adaprune.training import AdaptedModel, Job, Outcome, fit, last_whole, steps_in, write_tensors

# The fields of a run that methods ending in `learn` read.
LEARNED = (
    "learning_rate", "head_learning_rate", "initial_theta", "penalty", "temperature", "reach", "recovery", "allocation",
    "keep",
)  # fmt: skip
# Settings of the methods that learn scores in another way than the paper, under both recipes. Their rates and rules are
# as published where that suits hundreds of steps (movement and SMP: 1e-2 and 2e-2, lambda 400); those of gmp, smp and
# movement are the best of what was tried on a selection split (results/quick_tuning).
SCORES = {
    "scores": True, "initial_theta": "own", "surrogate": "identity", "control": "cubic", "step_rule": "adam",
    "penalty": 0.0,
}  # fmt: skip
# lambda of the penalty is as published, for BERT-base, whose scores bear lambda / 84,934,656 each. Here every score
# does, whatever the encoder: divided by an encoder's own number of weights, a small one would bear eight times that.
BERT_BASE = 84_934_656
THETA_RATE = 1e-4  # the learning rate that suits the mean of 0.01 of the ``magnitude`` start
SNAPSHOTS = 8  # at least, masks saved during training, evenly spaced


def start(job: Job, own: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The scores that a method starts with: its ``own`` or, with ``initial_theta="magnitude"``, in the order of |w|.

    Its own scores are 0 if none are given. If they are all equal, the start is |w| itself, as for theta but scaled to
    the method's own learning rate:

        s_i = 0.01 (rate / 1e-4) |w_i| / mean |w|

    Otherwise its own values are assigned in the order of |w|. (Starts from |w|: Mallya et al. 2018, Radiya-Dixit and
    Wang 2020, Zhao et al. 2020.)
    """
    kind, own = job.plan.initial_theta, own or {name: torch.zeros_like(weight) for name, weight in job.weights.items()}
    if kind == "own":  # else "magnitude", as `plan_for` has checked
        return own
    if any(value.min() != value.max() for value in own.values()):
        return theta_in_order({name: weight.detach().abs() for name, weight in job.weights.items()}, own)
    scaled = METHODS[job.run.method].tuned.get("learning_rate", job.plan.learning_rate) / THETA_RATE
    return {name: theta * scaled for name, theta in initial_theta(job.weights, kind, torch.Generator()).items()}


def learn(job: Job, thetas: dict[str, Tensor], reflect: bool = False, attach: Callable = attach) -> Outcome:
    """Trains ``thetas`` and the head by the job's plan, then keeps exactly k = round(density n).

    The k largest theta of all are kept or, under ``plan.allocation``, the largest of each matrix; with
    ``pattern="units"``, round(density n) of all heads and of all FFN neurons. The threshold starts at 0 for adaprune;
    for other scores it starts where the schedule puts it before the first step.

    Args:
        thetas: name -> theta_0, of weights or of units (see `masks.attach`).
        reflect: theta stands for |s| (see `Scores`).
        attach: attaches the thetas to the encoder, like `masks.attach`.

    Raises:
        ValueError: the plan cannot reach the requested sparsity (see `SparsityControl`).
    """
    run, plan, encoder = job.run, job.plan, job.model.encoder
    thetas = protect(thetas, job.seen, job.density, each=bool(plan.allocation))
    steps = steps_in(len(job.sentences.splits["train"]), job.settings)
    end = max(1, round(plan.reach * steps))
    parameters = attach(encoder, thetas, bool(plan.allocation), run.recovery)
    control = _control(job, parameters, steps, end)
    if plan.scores:
        control.update(0, parameters.values(), threshold_of(encoder))
    if plan.weight_learning_rate:
        encoder.requires_grad_(True)
    optimiser = optimiser_for(job.model, parameters, plan, ramp=end, reflect=reflect)
    learned = fit(job.model, job.sentences, optimiser, job.settings, control)
    masks = cut(job, parameters)
    kept = {name: theta.detach().cpu() for name, theta in parameters.items()} if "theta" in run.keep else None
    set_masks(encoder, masks)
    return Outcome(learned, masks, thetas=kept)


def _control(job: Job, parameters: dict[str, nn.Parameter], steps: int, end: int) -> SparsityControl:
    """The control that moves the threshold, checked before the first step; with snapshots if requested."""
    run, plan = job.run, job.plan
    allocate = partial(shares, parameters, kind=plan.allocation) if plan.allocation else None
    initial = run.sparsity if plan.fixed else 0.0
    control = SparsityControl(
        plan.control, run.sparsity, end, recovery=run.recovery, initial=initial, allocate=allocate
    )
    if run.pattern == "units":
        control = _of_units(control, job, parameters)
    control.check(parameters.values(), steps, plan.penalty, plan.learning_rate if plan.step_rule != "sgd" else 0.0)
    if "snapshots" not in run.keep:
        return control
    control = Snapshots(control, list(parameters), job.paths.snapshots, max(1, steps // SNAPSHOTS))
    if PartialState().is_main_process and last_whole(job.settings.folder) is None:  # nothing to continue
        control.clear()
    return control


def _of_units(control: SparsityControl, job: Job, thetas: dict[str, nn.Parameter]) -> ControlOfUnits:
    """The control that heads and FFN neurons follow, each with its own threshold and number of weights."""
    modules = maskable(job.model.encoder)
    ones = {name: torch.ones_like(module.weight) for name, module in modules.items()}
    sizes = sum_over_units(ones, job.model.config.num_attention_heads)
    return ControlOfUnits(
        control,
        kinds=[modules[name].threshold.data_ptr() for name in thetas],
        sizes=[int(sizes[name][0]) for name in thetas],
        counts=[theta.numel() for theta in thetas.values()],
    )


class Snapshots:
    """A control that also saves the mask at regular steps: ``<folder>/<step>.safetensors``, booleans by name."""

    def __init__(self, control: SparsityControl, names: list[str], folder: Path, every: int):
        self.control, self.names, self.folder, self.every = control, names, folder, every

    def __getattr__(self, name: str):
        return getattr(self.control, name)

    def clear(self) -> None:
        """Removes the snapshots of an earlier run of the same name, which may have other steps."""
        for pattern in ("[0-9]*.*", ".*.tmp"):  # the latter: of a kill while writing
            for file in self.folder.glob(pattern):
                file.unlink()

    def update(self, step: int, thetas: Iterable[Tensor], threshold: Tensor) -> bool:
        """Moves the threshold as the control does; returns whether training should stop."""
        stop = self.control.update(step, thetas, threshold)
        if step and step % self.every == 0 and PartialState().is_main_process:
            kept = self.control.kept(thetas, threshold)
            masks = {name: mask.cpu() for name, mask in zip(self.names, kept, strict=True)}
            write_tensors(self.folder / f"{step}.safetensors", masks)
        return stop


def optimiser_for(
    model: AdaptedModel,
    thetas: dict[str, Tensor],
    plan: Plan,
    ramp: int = 1,
    reflect: bool = False,
) -> AdaPrune:
    """The optimiser of the attached ``thetas``, the head and, if the plan trains them, the weights.

    Theta of word embeddings is stepped without a first moment: a row is seen only now and then, so its average would
    come from batches long ago. Groups of theta that share a threshold get its penalty once. Scores of methods other
    than adaprune get the penalty lambda / 84,934,656 times sum sigmoid(s), which reaches its full size after ``ramp``
    steps. adaprune's head uses theta's step rule; the head of other methods uses Adam.
    """
    modules = maskable(model.encoder, "encoder+embeddings")
    tables = [name for name in thetas if component_of(name) == EMBED]
    rule = "adam" if plan.scores else plan.step_rule
    groups: list[dict] = [{"params": list(model.head.parameters()), "lr": plan.head_learning_rate, "rule": rule}]
    if plan.weight_learning_rate:
        weights = [weight for name, weight in model.encoder.named_parameters() if not name.endswith(".theta")]
        groups.append({"params": weights, "lr": plan.weight_learning_rate, "rule": rule})
    parts: dict[tuple, list[str]] = {}
    for name in thetas:
        level = modules[name].threshold.data_ptr()
        parts.setdefault((level, name if plan.scores else name in tables), []).append(name)
    gamma = plan.penalty if plan.control == "penalty" else 0.0
    sharing = [level for level, _ in parts]  # a threshold bears its penalty once, with the last group that shares it
    for place, part in enumerate(parts.values()):
        group = {
            "params": [thetas[name] for name in part],
            "masked": True,
            "threshold": modules[part[0]].threshold,
            "lr": plan.learning_rate,
            "penalty": 0.0 if sharing[place] in sharing[place + 1 :] else gamma,
            "betas": (0.0, 0.999) if part[0] in tables else (0.9, 0.999),
        }
        if plan.scores:
            group |= {"shrink": plan.penalty / BERT_BASE, "ramp": ramp, "reflect": reflect}
        groups.append(group)
    if plan.surrogate == "sigmoid" and not plan.scores:
        return AdaPrune(groups, rule=plan.step_rule, temperature=plan.temperature)
    for group in groups:
        group["surrogate"] = plan.surrogate
    return Scores(groups, rule=plan.step_rule, temperature=plan.temperature)
