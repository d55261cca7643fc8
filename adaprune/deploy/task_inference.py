"""Guesses which task a text belongs to: by SupSup's one gradient over the stored masks, or by asking every task."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from adaprune.deploy.serving import MaskedEncoder
from adaprune.masks import maskable


@torch.inference_mode(False)
@torch.enable_grad()
def task_scores(served: MaskedEncoder, tasks: Sequence[str] | None = None, **inputs: Tensor) -> dict[str, float]:
    """How strongly a batch points to each task, from one gradient; the highest score is the guess.

        -dH(softmax(f(x; w0 * sum_i a_i m_i, sum_i a_i p_i))) / da_i   at a_i = 1 / k       (Wortsman et al. 2020)

    This is SupSup's rule: it looks for the task whose mask would make the output more confident. Here the heads p_i
    also differ by task. H is the mean entropy over the batch, whose rows are assumed to belong to one task. Scores
    depend on the head: a head that is confident about everything always wins, see `called`. Gradients are taken in
    ``torch.no_grad`` and ``torch.inference_mode`` too.

    Raises:
        ValueError: fewer than two tasks, or tasks that differ in their number of classes or kind of head.
    """
    chosen = {name: served.task(name) for name in tasks or served.tasks}
    outputs = {name: task.config.num_labels for name, task in chosen.items()}
    if len(chosen) < 2 or len(set(outputs.values())) > 1 or 1 in outputs.values():
        raise ValueError(f"give at least two tasks with one number of classes, 2 or more; classes by task: {outputs}")
    kinds = {n: ("linear" if task.head.hidden is None else "mlp", task.head.pooling) for n, task in chosen.items()}
    if len(set(kinds.values())) > 1:
        raise ValueError(f"give tasks whose heads are of one kind and pooling; by task: {kinds}")
    share = 1 / len(chosen)
    scope = {name for task in chosen.values() for name in task.places}
    modules = maskable(served.encoder, "encoder+embeddings").items()
    base = {name: module.weight for name, module in modules if name in scope}
    mixed = {
        name: (w0 * sum(task.kept(name, w0) for task in chosen.values()) * share).requires_grad_()
        for name, w0 in base.items()
    }
    heads = {name: dict(task.head.named_parameters()) for name, task in chosen.items()}
    first = next(iter(chosen.values())).head
    head = {
        p: sum(own[p] for own in heads.values()).mul(share).requires_grad_() for p in dict(first.named_parameters())
    }
    inputs = {name: _usable(value) for name, value in inputs.items()}
    asked = {**inputs, "output_hidden_states": True, "return_dict": True}
    masked = {id(w0) for w0 in base.values()}
    others = {n: _usable(t) for n, t in served.encoder.named_parameters() if t.is_inference() and id(t) not in masked}
    whole = {**others, **mixed}
    states = torch.func.functional_call(served.encoder, whole, kwargs=asked).hidden_states
    sure = torch.func.functional_call(first, head, (states[1:], inputs.get("attention_mask"))).log_softmax(-1)
    entropy = -(sure.exp() * sure).sum(-1).mean()
    slopes = torch.autograd.grad(entropy, [*mixed.values(), *head.values()])
    by_weight, by_head = dict(zip(mixed, slopes, strict=False)), dict(zip(head, slopes[len(mixed) :], strict=True))
    return {
        name: -sum(float((by_weight[n] * w0 * task.kept(n, w0)).sum()) for n, w0 in base.items())
        - sum(float((by_head[p] * heads[name][p]).sum()) for p in head)
        for name, task in chosen.items()
    }


def _usable(value: Tensor) -> Tensor:
    """A copy if it was made in inference mode, whose tensors no gradient can go through or past."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def task_entropies(served: MaskedEncoder, tasks: Sequence[str] | None = None, **inputs: Tensor) -> dict[str, Tensor]:
    """How uncertain each task's own model is about each text, relative to the maximum: task -> (batch,), 0 to 1.

        H(softmax(f(x; w0 * m_i, p_i))) / log(classes)

    Takes one pass per task. The tasks may differ in their number of classes.

    Raises:
        ValueError: a regression, which has no entropy, or fewer than two tasks.
    """
    chosen = {name: served.task(name) for name in tasks or served.tasks}
    outputs = {name: task.config.num_labels for name, task in chosen.items()}
    if len(chosen) < 2 or 1 in outputs.values():
        raise ValueError(f"give at least two tasks with 2 classes or more; classes by task: {outputs}")
    rows, found = len(inputs["input_ids"]), {}
    for name, classes in outputs.items():
        sure = served(**inputs, tasks=[name] * rows).logits.log_softmax(-1)
        found[name] = -(sure.exp() * sure).sum(-1) / math.log(classes)
    return found


def called(scores: pd.DataFrame) -> pd.Series:
    """The task that each row points to, with each task's scores normalised: argmax_i (s_i - mean_i) / std_i.

    Args:
        scores: one row per text or group and one column per task; higher means more likely (for entropies, use their
            negative). Mean and spread are over the rows, so these must come from all tasks; labels are not used.
    """
    spread = scores.std(ddof=0)
    return ((scores - scores.mean()) / spread.where(spread > 0, 1)).idxmax(axis=1)
