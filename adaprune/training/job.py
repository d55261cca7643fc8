"""What a run passes to a method, and what it gets back: plain values without behaviour."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from adaprune.data import TaskData
from adaprune.masks import maskable
from adaprune.runs import Paths, Plan, Run


@dataclass(frozen=True)
class Settings:
    """How long and how to train; ``folder`` holds the checkpoints."""

    folder: Path
    epochs: float = 3.0
    batch_size: int = 32
    seed: int = 0
    schedule: str = "warmup_linear"
    precision: str = "auto"
    checkpoint_steps: int = 100


@dataclass(frozen=True)
class Sentences:
    """A task's tokenised splits, how to pad them, and how to score predictions."""

    splits: dict[str, datasets.Dataset]
    tokenizer: PreTrainedTokenizerBase
    metrics: Callable[[np.ndarray, np.ndarray], dict[str, float]]
    primary: str

    def collate(self, rows: list[dict]) -> dict[str, Tensor]:
        """A padded batch of tensors."""
        names = [*self.tokenizer.model_input_names, "labels", "teacher_logits"]
        kept = [{name: row[name] for name in names if name in row} for row in rows]
        return DataCollatorWithPadding(self.tokenizer)(kept)

    def seen(self, vocabulary: int) -> Tensor:
        """Which rows of a word-embedding table of this size occur in training: boolean, (vocabulary,)."""
        occurs = torch.zeros(vocabulary, dtype=torch.bool)
        for ids in self.splits["train"]["input_ids"]:
            occurs[ids] = True
        return occurs


@dataclass(frozen=True)
class Job:
    """One run, ready for its method: the model to adapt, the data, and how to train.

    ``task`` holds the texts as they are, ``sentences`` as the model reads them. ``plan`` holds the recipe's settings by
    name (`adaprune.runs.Plan`), ``paths`` the run's files. ``seen`` says which rows of an embedding table in scope
    occur in training.
    """

    run: Run
    model: nn.Module
    task: TaskData
    sentences: Sentences
    settings: Settings
    plan: Plan
    paths: Paths
    seen: dict[str, Tensor] = field(default_factory=dict)

    @property
    def density(self) -> float:
        """Fraction of the weights in scope to keep: 1 - sparsity."""
        return 1 - self.run.sparsity

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The weights in scope by name."""
        return {name: module.weight for name, module in maskable(self.model.encoder, self.run.scope).items()}


@dataclass(frozen=True)
class Fit:
    """What training produces besides the model: the logged curve and the cost."""

    curve: list[dict] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    examples: int = 0


@dataclass(frozen=True)
class Outcome:
    """What a method returns; the adapted weights or mask are in the job's model.

    ``masks`` are the final masks (name -> boolean tensor), or None for a method without masks; ``thetas`` is what they
    were cut from, if the run keeps it. ``updates`` are the trained weights that a task needs besides the head, if these
    are fewer than all weights of the encoder. ``answer`` gives the logits (rows, outputs) of a split if the job's model
    does not; then the head is not used, and only ``updates`` ship.
    """

    fit: Fit
    masks: dict[str, Tensor] | None = None
    thetas: dict[str, Tensor] | None = None
    updates: list[Tensor] | None = None
    answer: Callable[[str], np.ndarray] | None = None


def add_fits(*fits: Fit) -> Fit:
    """Combines consecutive fits: the sum of all costs, and the last fit's curve with continued step numbers.

    From earlier fits only the sparsity points are kept, because their losses and scores belong to another model.
    """
    curve: list[dict] = []
    steps, seconds = 0, 0.0
    for number, fit in enumerate(fits, 1):
        for point in fit.curve:
            kept = point if number == len(fits) else {key: point[key] for key in ("step", "sparsity") if key in point}
            if len(kept) > 1:
                moved = {"step": steps + point["step"]}
                if "elapsed" in point:
                    moved["elapsed"] = seconds + point["elapsed"]
                curve.append({**kept, **moved})
        steps, seconds = steps + fit.steps, seconds + fit.seconds
    return Fit(curve=curve, steps=steps, seconds=seconds, examples=sum(fit.examples for fit in fits))
