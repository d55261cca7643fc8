"""Describes the data before training: rows and labels, lengths of texts, tokens that the tokenizer knows."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from adaprune.data.tasks import TaskData

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

ENOUGH = 10_000  # rows of a split, evenly spaced, for measuring lengths
LOOKED_AT = 2000  # training rows in which unknown tokens are counted
MANY, MOST = 0.3, 0.9  # shares of unknown tokens: a warning, a refusal


def rows_read(task: TaskData) -> pd.DataFrame:
    """Rows per split and per class or, for a regression, the least, mean and greatest value."""
    found = {}
    for split, rows in task.splits.items():
        labels = np.asarray(rows["label"])
        if task.labels:
            counts = np.bincount(labels, minlength=task.num_labels).tolist()
            said = dict(zip(task.labels, counts, strict=True))
        else:
            said = {"least": labels.min(), "mean": labels.mean(), "greatest": labels.max()}
        found[split] = {"rows": len(rows), **said}
    return pd.DataFrame.from_dict(found, orient="index")


def texts_read(task: TaskData, tokenizer: PreTrainedTokenizerBase, max_length: int) -> pd.DataFrame:
    """Per split: ``median`` and ``longest`` in tokens, and the shares ``cut`` and ``unknown``.

    ``cut``: rows longer than ``max_length``, which lose their end. ``unknown``: tokens that the tokenizer does not
    know, see `data.unknown_share`. Uses at most 10,000 rows, evenly spaced.
    """
    found = {}
    for split, rows in task.splits.items():
        places = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), ENOUGH)).astype(int))
        some = rows.select(places)
        texts = [list(some[name]) for name in ("text", "text_pair") if name in some.column_names]
        ids = tokenizer(*texts, verbose=False)["input_ids"]
        lengths = np.array([len(row) for row in ids])
        found[split] = {
            "median": int(np.median(lengths)), "longest": int(lengths.max()),
            "cut": float((lengths > max_length).mean()), "unknown": unknown_share(tokenizer, ids),
        }  # fmt: skip
    return pd.DataFrame.from_dict(found, orient="index")


def examples(task: TaskData, count: int = 3, width: int = 160) -> pd.DataFrame:
    """The first training rows, long texts cut to ``width`` letters, labels by name."""
    rows = task.splits["train"].select(range(min(count, len(task.splits["train"])))).to_pandas()
    names = [name for name in ("text", "text_pair") if name in rows]
    rows[names] = rows[names].map(lambda text: text if len(text) <= width else f"{text[: width - 3]}...")
    if task.labels:
        rows["label"] = [task.labels[number] for number in rows["label"]]
    return rows


def unknown_share(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Sequence[int]]) -> float:
    """The share of unknown tokens in ``rows`` of token numbers, not counting special tokens.

    A text without any tokens counts as one unknown token.
    """
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    unknown = total = 0
    for ids in rows:
        content = [number for number in ids if number not in special]
        total += max(1, len(content))
        unknown += content.count(tokenizer.unk_token_id) if content else 1
    return unknown / total


def check_known(tokenizer: PreTrainedTokenizerBase, train: datasets.Dataset, model: str) -> float:
    """The `unknown_share` of the first rows of ``train``; warns if it is large.

    Raises:
        ValueError: nearly all tokens are unknown, so that a mask could learn nothing from these texts.
    """
    share = unknown_share(tokenizer, train.select(range(min(LOOKED_AT, len(train))))["input_ids"])
    said = f"the tokenizer of model {model!r} knows {1 - share:.0%} of the tokens of the training texts"
    if share >= MOST:
        raise ValueError(f"{said}: are they in another language or script? choose a model of theirs")
    if share >= MANY:
        warnings.warn(f"{said}; the rest is unknown to it: a model of their language may do better", stacklevel=2)
    return share
