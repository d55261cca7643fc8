"""A frozen encoder's vectors for each sentence, computed once, and the head that is trained on them."""

import time
from dataclasses import dataclass, replace

import torch
from accelerate import PartialState
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from adaprune.training.fitting import fit, predict
from adaprune.training.heads import AdaptationHead, loss_of, pooled
from adaprune.training.job import Fit, Job, Sentences, Settings


class _Reader(nn.Module):
    """Returns vectors instead of logits: (batch, width, L) for all layers, (batch, width) for the last one."""

    def __init__(self, encoder: nn.Module, pooling: str, last: bool):
        super().__init__()
        self.encoder, self.pooling, self.last = encoder, pooling, last

    def forward(self, labels=None, teacher_logits=None, **inputs: Tensor) -> SequenceClassifierOutput:
        states = self.encoder(**inputs, output_hidden_states=True, return_dict=True).hidden_states
        found = pooled(states[-1:] if self.last else states[1:], inputs.get("attention_mask"), self.pooling)
        return SequenceClassifierOutput(loss=found.new_zeros(()), logits=found[..., 0] if self.last else found)


def read(encoder: nn.Module, pooling: str, sentences: Sentences, split: str, settings: Settings, last: bool = False):
    """Each sentence's vectors from the frozen ``encoder`` with its current masks; an array in row order.

    (rows, width, L) for all layers or, with ``last``, (rows, width) for the last one.
    """
    encoder.requires_grad_(False).eval()
    return predict(_Reader(encoder, pooling, last), sentences, split, settings)


class _OnVectors(nn.Module):
    """A head that reads precomputed vectors, trained like an `AdaptedModel`."""

    def __init__(self, head: AdaptationHead):
        super().__init__()
        self.head = head

    def forward(
        self, vectors: Tensor, labels: Tensor | None = None, teacher_logits: Tensor | None = None
    ) -> SequenceClassifierOutput:
        logits = self.head.judge(vectors)
        return SequenceClassifierOutput(loss=loss_of(logits, labels, teacher_logits), logits=logits)


@dataclass(frozen=True)
class _Read(Sentences):
    """Sentences that have been read: a batch holds their vectors, found by the number of their split and their row."""

    vectors: tuple[Tensor, ...] = ()

    def collate(self, rows: list[dict]) -> dict[str, Tensor]:
        batch = {"vectors": torch.stack([self.vectors[row["split"]][row["place"]] for row in rows])}
        for name in ("labels", "teacher_logits"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        return batch


def fit_head(job: Job) -> Fit:
    """Trains only the head, on what the frozen encoder currently computes, with AdamW as for every fixed mask.

    Nothing below the head changes, so each sentence goes through the encoder only once, not once per epoch. The vectors
    of all sentences stay in memory meanwhile: rows x width x L x 4 bytes, L the number of layers.
    """
    start, model, splits, vectors = time.monotonic(), job.model, {}, []
    for name in ("train", "copies", "selection"):
        if (rows := job.sentences.splits.get(name)) is None:
            continue
        for column, numbers in {"split": [len(vectors)] * len(rows), "place": range(len(rows))}.items():
            rows = rows.add_column(column, list(numbers), new_fingerprint=f"{rows._fingerprint}-{column}")
        splits[name] = rows
        found = read(model.encoder, model.head.pooling, job.sentences, name, job.settings)
        vectors.append(torch.from_numpy(found))
    known = _Read(splits, job.sentences.tokenizer, job.sentences.metrics, job.sentences.primary, tuple(vectors))
    optimiser = torch.optim.AdamW(model.head.parameters(), lr=job.plan.head_learning_rate, weight_decay=0.01)
    reading = time.monotonic() - start
    done = fit(_OnVectors(model.head.to(PartialState().device)), known, optimiser, job.settings)
    return replace(done, seconds=done.seconds + reading)
