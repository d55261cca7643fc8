"""Progress of a run: one bar with loss, sparsity and score, the same in a terminal, a notebook and a log."""

import sys
from collections.abc import Iterable

from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer


def show_progress(trainer: Trainer) -> Trainer:
    """Gives ``trainer`` a bar instead of transformers' own display; its arguments must set ``disable_tqdm``."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Bars())
    return trainer


def bar(iterable: Iterable | None = None, **settings) -> tqdm:
    """A bar on one line. Outside a terminal each refresh is a new line, so there it refreshes every 5 seconds."""
    return tqdm(iterable, position=0, mininterval=0.1 if sys.stderr.isatty() else 5.0, **settings)


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
