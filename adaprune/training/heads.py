"""The task head p of the paper, and an encoder with a head on top."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput

Kind = Literal["mlp", "linear"]
Pooling = Literal["cls", "mean"]


class AdaptationHead(nn.Module):
    """Predicts from one vector per layer; the parameters p of the paper.

        z = sum_l softmax(a)_l h_l,    y = V relu(U z + b) + c        (paper, experimental set-up)

    where ``h_l`` is a sentence's vector after Transformer layer l = 1 ... L: the first token's (``cls``, the paper's)
    or the mean over all tokens except padding (``mean``). The embedding layer is not used, because its [CLS] is the
    same for every sentence. With kind ``linear``, y = V z + c.

    Args:
        layers: L, the number of Transformer layers of the encoder.
        width: size of a hidden vector, and of the ReLU layer.
        outputs: number of classes, or 1 for regression.
        kind: ``mlp``, the paper's, or ``linear``, without the ReLU layer.
        pooling: ``cls`` or ``mean``.

    Raises:
        ValueError: an unknown kind or pooling, or no outputs.
    """

    def __init__(self, layers: int, width: int, outputs: int, kind: Kind = "mlp", pooling: Pooling = "cls"):
        super().__init__()
        for name, value, known in (("kind", kind, get_args(Kind)), ("pooling", pooling, get_args(Pooling))):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if outputs < 1:
            raise ValueError(f"outputs must be at least 1, got {outputs}")
        self.mix = nn.Parameter(torch.zeros(layers))
        self.hidden = nn.Linear(width, width) if kind == "mlp" else None
        self.output = nn.Linear(width, outputs)
        self.pooling = pooling

    def forward(self, layers: tuple[Tensor, ...], attention_mask: Tensor | None = None) -> Tensor:
        """Logits, shape (batch, outputs), from L tensors of shape (batch, tokens, width)."""
        return self.judge(pooled(layers, attention_mask, self.pooling))

    def judge(self, vectors: Tensor) -> Tensor:
        """Logits from each sentence's L vectors, shape (batch, width, L)."""
        mixed = vectors @ self.mix.softmax(-1).to(vectors.dtype)
        return self.output(mixed if self.hidden is None else torch.relu(self.hidden(mixed)))


def pooled(layers: tuple[Tensor, ...], attention_mask: Tensor | None, pooling: Pooling) -> Tensor:
    """One vector per sentence and layer, (batch, width, L): the first token's, or the mean of all except padding."""
    if pooling == "cls":
        return torch.stack([layer[:, 0] for layer in layers], dim=-1)
    if attention_mask is None:
        return torch.stack([layer.mean(1) for layer in layers], dim=-1)
    present = attention_mask[..., None].to(layers[0].dtype)
    return torch.stack([(layer * present).sum(1) / present.sum(1).clamp(min=1) for layer in layers], dim=-1)


class AdaptedModel(nn.Module):
    """An encoder and a head: f(x; w0 * m, p) if the encoder is masked.

    One output means regression with mean squared error; more outputs mean classes with cross-entropy.
    Works for every encoder that returns all hidden states: BERT, RoBERTa, DistilBERT, ELECTRA, MPNet ...
    """

    def __init__(self, encoder: nn.Module, head: AdaptationHead):
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.config = encoder.config

    device = property(lambda self: next(self.encoder.parameters()).device)
    dtype = property(lambda self: next(self.encoder.parameters()).dtype)

    @classmethod
    def for_task(cls, encoder: nn.Module, outputs: int, kind: Kind = "mlp", pooling: Pooling = "cls") -> AdaptedModel:
        """``encoder`` with a new head of this kind and pooling for ``outputs`` classes (1 = regression)."""
        config = encoder.config
        return cls(encoder, AdaptationHead(config.num_hidden_layers, config.hidden_size, outputs, kind, pooling))

    @staticmethod
    def name_labels(config: PretrainedConfig, labels: Sequence[str]) -> None:
        """Gives a ``config`` these labels, in place; without any, for a regression, it has one output, ``score``."""
        config.id2label = dict(enumerate(labels)) or {0: "score"}
        config.label2id = {label: number for number, label in config.id2label.items()}
        config.problem_type = "single_label_classification" if labels else "regression"

    def train(self, mode: bool = True) -> AdaptedModel:
        """Training mode; an encoder without trained parameters stays in evaluation mode, without dropout."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.encoder.parameters()):
            self.encoder.eval()
        return self

    def forward(
        self, labels: Tensor | None = None, teacher_logits: Tensor | None = None, **inputs: Tensor
    ) -> SequenceClassifierOutput:
        """Logits of shape (batch, outputs), and the mean loss if ``labels`` (batch,) are given.

        With ``teacher_logits`` (batch, outputs) half of the loss is ``distillation_losses``, see ``loss_of``.
        """
        states = self.encoder(**inputs, output_hidden_states=True, return_dict=True).hidden_states
        logits = self.head(states[1:], inputs.get("attention_mask"))
        return SequenceClassifierOutput(loss=loss_of(logits, labels, teacher_logits), logits=logits)


def loss_of(logits: Tensor, labels: Tensor | None, teacher_logits: Tensor | None = None) -> Tensor | None:
    """The mean loss of a batch: of each row the task's or, with a teacher, half of it and half of the teacher's.

    A row whose label is missing (``missing_label``) learns from its teacher alone. None without labels.
    """
    if labels is None:
        return None
    losses = task_losses(logits, labels)
    if teacher_logits is not None:
        missing = labels.isnan() if labels.is_floating_point() else labels == missing_label(classes=True)
        half = torch.where(missing, 0.0, 0.5)
        losses = half * losses + (1 - half) * distillation_losses(logits, teacher_logits)
    return losses.mean()


def missing_label(classes: bool) -> float:
    """What stands for a label that a row does not have: -100 among classes, NaN among numbers."""
    return -100 if classes else math.nan


def task_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Squared error for one output, cross-entropy for more, of each row (batch,), in float32; 0 without a label."""
    logits = logits.float()
    if logits.shape[-1] > 1:
        return nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=missing_label(classes=True))
    labels = labels.float()
    found = logits.squeeze(-1)
    return (found - torch.where(labels.isnan(), found.detach(), labels)) ** 2


def distillation_losses(logits: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """How far the logits of each row are from a teacher's, both (batch, outputs), in float32 (Hinton et al. 2015).

        T^2 KL(softmax(t / T) || softmax(z / T)),   shape (batch,)

    With one output, a regression, it is (z - t)^2.
    """
    logits, teacher = logits.float(), teacher.float()
    if logits.shape[-1] == 1:
        return (logits - teacher).squeeze(-1) ** 2
    student, target = ((values / temperature).log_softmax(-1) for values in (logits, teacher))
    return temperature**2 * nn.functional.kl_div(student, target, reduction="none", log_target=True).sum(-1)
