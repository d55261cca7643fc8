"""The trainer: transformers.Trainer, and what it does not do.

A threshold moves after each step; batches are grouped by length in an order that a resumed run repeats; checkpoints
hold only what is trained; a loss that is not finite stops the run; one bar shows it all. Only `fitting` imports this
module, and only where it is used, as transformers.Trainer takes seconds to load.
"""

from __future__ import annotations

import math
import shutil
import time
from functools import partial
from pathlib import Path

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalPrediction

from adaprune.data import GroupedByLength
from adaprune.masks import slanted_triangular, thetas_of, threshold_of, warmup_linear
from adaprune.training.checkpoints import facts_of, last_whole, load_trained, save_trained, seal
from adaprune.training.job import Sentences, Settings, bar, steps_in
from adaprune.training.precision import half_of

SCHEDULES = {"warmup_linear": warmup_linear, "slanted_triangular": slanted_triangular}
LOOKS = 20  # evaluations on the selection split; more would pick the luckiest state on a small split
AT_TARGET = 0.005  # a state can be the best one only if its sparsity is this close to the target


def arguments_of(settings: Settings, **more) -> TrainingArguments:
    """TrainingArguments for ``settings``; half precision if requested, or if the device has it.

    bf16 without CUDA runs on the CPU. Several GPUs are used only through ``accelerate launch``, never through
    DataParallel, whose copies of a layer do not share theta.
    """
    half = half_of(settings.precision)
    arguments = TrainingArguments(
        output_dir=str(settings.folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=64,
        use_cpu=half == "bf16" and not torch.cuda.is_available(),
        bf16=half == "bf16",
        fp16=half == "fp16",
        save_strategy="steps" if settings.checkpoint_steps else "no",
        save_steps=max(1, settings.checkpoint_steps),
        save_total_limit=2,
        logging_nan_inf_filter=False,
        seed=settings.seed,
        remove_unused_columns=False,
        disable_tqdm=True,  # `show_progress` has the bars
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",  # the curve is in the record
        **more,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


class _EachStep(TrainerCallback):
    """Moves the threshold after each step, tells the sampler the epoch, and continues an interrupted run."""

    def __init__(self, trainer: PruningTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.before = state.log_history[-1]["elapsed"] if state.log_history else 0.0
        best = self.trainer.best_file
        if args.should_save and best.exists() and int(facts_of(best)["step"]) > state.global_step:
            best.unlink()  # from steps that will be repeated

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer.sampler.epoch = math.floor((state.epoch or 0) + 1e-6)

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.pruning is not None:
            threshold = self.trainer.threshold()
            if self.trainer.pruning.update(state.global_step, self.trainer.thetas, threshold):
                control.should_training_stop = True
        # Evaluated here and not after the epoch, so that a checkpoint of this step includes the evaluation.
        over = control.should_training_stop or state.global_step == state.max_steps
        epoch, every = round(state.epoch), math.ceil(args.num_train_epochs / LOOKS)
        control.should_evaluate = over or (epoch % every == 0 and math.isclose(state.epoch, epoch, abs_tol=1e-9))


class PruningTrainer(Trainer):
    """transformers.Trainer with a sparsity control, small checkpoints and a memory of the best state."""

    def __init__(self, model, arguments, sentences: Sentences, optimiser, settings: Settings, pruning):
        schedule = partial(SCHEDULES[settings.schedule], total=steps_in(len(sentences.splits["train"]), settings))
        super().__init__(
            model,
            arguments,
            data_collator=sentences.collate,
            train_dataset=sentences.taught(),
            eval_dataset=sentences.splits["selection"],
            compute_metrics=self._metrics,
            optimizers=(optimiser, LambdaLR(optimiser, schedule)),
        )
        self.model_accepts_loss_kwargs = False  # the loss is the mean over a batch of any size
        self.sentences, self.pruning, self.folder = sentences, pruning, settings.folder
        self.thetas = list(thetas_of(model).values()) if pruning is not None else []
        self.started, self.before = time.monotonic(), 0.0
        self.best_file = settings.folder / "best.safetensors"
        self.add_callback(_EachStep(self))
        show_progress(self)

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        return self.sentences.metrics(prediction.predictions, prediction.label_ids)

    def _get_train_sampler(self, train_dataset=None):
        rows, lengths = len(self.sentences.splits["train"]), self.train_dataset["length"][:]
        self.sampler = GroupedByLength(lengths, self.args.train_batch_size, self.args.seed, rows)
        return self.sampler

    def _get_eval_sampler(self, eval_dataset):
        return torch.utils.data.SequentialSampler(eval_dataset)

    def compute_loss(self, model, inputs, *args, **kwargs):
        """The loss; raises an error if it is not finite, before backward, so that nothing learns from it."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        value = loss[0] if isinstance(loss, tuple) else loss
        if not torch.isfinite(value):
            led_here = self.folder / f"checkpoint-{self.state.global_step}"  # one more step from there is not finite
            shutil.rmtree(led_here, ignore_errors=True)
            raise FloatingPointError(
                f"the loss is {value.item()} at step {self.state.global_step + 1}: lower the learning rate. "
                f"Last good checkpoint: {last_whole(self.folder) or 'none'}"
            )
        return loss

    def _clip_grad_norm(self, model):
        """Clips all gradients except theta's, which may be sparse, or already freed in backward."""
        thetas = {id(theta) for theta in thetas_of(self.model).values()}
        others = [parameter for parameter in self.model.parameters() if id(parameter) not in thetas]
        return self.accelerator.clip_grad_norm_(others, self.args.max_grad_norm)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the seconds and, while a mask is learned, its sparsity to every point of the curve."""
        logs["elapsed"] = self.elapsed()
        if self.pruning is not None:
            logs["sparsity"] = self.sparsity()
        super().log(logs, start_time)

    def threshold(self) -> torch.Tensor:
        """What theta is compared with; empty if weights are pruned and there is no theta."""
        return threshold_of(self.model) if self.thetas else torch.empty(0, dtype=torch.float64)

    def sparsity(self) -> float:
        """The current sparsity of what is being pruned."""
        return self.pruning.sparsity(self.thetas, self.threshold())

    def elapsed(self) -> float:
        """Seconds spent on this run, including those before an interruption."""
        return self.before + time.monotonic() - self.started

    def curve(self) -> list[dict]:
        """The logged points: step, epoch, loss, sparsity, seconds, and metrics on the selection split."""
        kept = {"step", "epoch", "loss", "learning_rate", "sparsity", "elapsed"}
        costs = ("runtime", "per_second", "model_preparation_time")
        return [
            {
                key.replace("eval_", "selection_"): value
                for key, value in point.items()
                if key in kept or (key.startswith("eval_") and not key.endswith(costs))
            }
            for point in self.state.log_history
            if "step" in point
        ]

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Saves only what is trained, never the frozen weights; the Trainer calls this in every process."""
        if self.args.should_save:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            save_trained(self.model, Path(output_dir) / "model.safetensors")

    def _save_checkpoint(self, model, trial) -> None:
        folder = self.folder / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk with a RuntimeError
            if str(error).endswith("choose another results_dir"):  # said by `save_trained`, with the file
                raise
            raise OSError(f"cannot write {folder} ({error}): make room or choose another results_dir") from error
        self.accelerator.wait_for_everyone()  # all processes have written their random state
        if self.args.should_save:
            seal(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        load_trained(self.model, Path(resume_from_checkpoint) / "model.safetensors")

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Scores the selection split and keeps the best state so far, if it has the target sparsity."""
        metrics = super().evaluate(*args, **kwargs)
        score = metrics[f"eval_{self.sentences.primary}"]
        competes = self.pruning is None or abs(self.sparsity() - self.pruning.target) <= AT_TARGET
        if not (competes and self.args.should_save):
            return metrics
        # of equal scores, which are common on a small split, the state that was trained longer
        if score >= (float(facts_of(self.best_file)["score"]) if self.best_file.exists() else -math.inf):
            levels = " ".join(level.hex() for level in self.threshold().flatten().tolist())
            facts = {"score": repr(score), "step": str(self.state.global_step), "threshold": levels}
            save_trained(self.model, self.best_file, **facts)
        return metrics

    def restore_best(self) -> None:
        """Restores the best state of the model; the last state stays if none competed."""
        self.accelerator.wait_for_everyone()
        if self.best_file.exists():
            facts = load_trained(self.model, self.best_file)
            levels = [float.fromhex(level) for level in facts["threshold"].split()]
            self.threshold().view(-1).copy_(torch.tensor(levels, dtype=torch.float64))


def show_progress(trainer: Trainer) -> Trainer:
    """Gives ``trainer`` a bar instead of transformers' own display; its arguments must set ``disable_tqdm``."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Bars())
    return trainer


class _Bars(ProgressCallback):
    """A bar for training, and a temporary one for each evaluation; only the main process shows them."""

    def __init__(self):
        super().__init__()
        self.shown: dict[str, str] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.current_step = state.global_step
        if state.is_world_process_zero:
            self.training_bar = bar(total=state.max_steps, initial=self.current_step, desc="training", unit="step")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None:
            kept = {"loss": "loss", "sparsity": "sparsity", "eval_loss": "selection loss"}
            self.shown |= {label: f"{logs[name]:.3f}" for name, label in kept.items() if name in logs}
            self.training_bar.set_postfix(self.shown, refresh=False)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if state.is_world_process_zero:
            if self.prediction_bar is None:
                self.prediction_bar = bar(total=len(eval_dataloader), desc="evaluating", unit="batch", leave=False)
            self.prediction_bar.update()
