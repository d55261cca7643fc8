"""How much of the texts a tokenizer knows: reported before anything is trained."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

LOOKED_AT = 2000  # training rows in which unknown tokens are counted
MANY, MOST = 0.3, 0.9  # shares of unknown tokens: a warning, a refusal


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
