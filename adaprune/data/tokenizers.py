"""Tokenizers that fit their encoder: problems are fixed or reported before anything is trained."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Sequence

import datasets
from torch import nn
from transformers import PreTrainedTokenizerBase

LOOKED_AT = 2000  # training rows in which unknown tokens are counted
MANY, MOST = 0.3, 0.9  # shares of unknown tokens: a warning, a refusal


def fitted(tokenizer: PreTrainedTokenizerBase, encoder: nn.Module, model: str) -> PreTrainedTokenizerBase:
    """``tokenizer`` ready for ``encoder``: pads on the right, has a pad token, returns the encoder's inputs.

    Raises:
        ValueError: it knows no words (transformers makes such a tokenizer if the files are missing), or gives numbers
            that the encoder's table of word embeddings does not have.
    """
    vocabulary, config = tokenizer.get_vocab(), encoder.config
    words = set(vocabulary) - set(tokenizer.all_special_tokens)
    if not any(character.isalnum() for word in words for character in word):
        raise ValueError(
            f"model {model!r} has no tokenizer: the one made without its files knows no words. Put tokenizer.json, or "
            "the vocabulary and tokenizer_config.json, beside the weights (tokenizer.save_pretrained(folder))"
        )
    rows = encoder.get_input_embeddings().num_embeddings
    if beyond := {token: number for token, number in vocabulary.items() if number >= rows}:
        token = min(beyond, key=beyond.get)
        raise ValueError(
            f"model {model!r}: its tokenizer gives {token!r} the number {beyond[token]}, the table of word embeddings "
            f"has {rows} rows: take the tokenizer it was trained with, or resize_token_embeddings and save it again"
        )
    tokenizer.padding_side = "right"  # the head reads the first token
    if tokenizer.pad_token is None:
        padding = getattr(config, "pad_token_id", None)
        own = tokenizer.convert_ids_to_tokens(padding) if padding is not None and padding < len(vocabulary) else None
        pad = own or tokenizer.eos_token or tokenizer.sep_token or tokenizer.unk_token
        if pad is None:
            raise ValueError(f"the tokenizer of model {model!r} has no token to pad with: set pad_token and save it")
        tokenizer.pad_token = pad  # whichever it is, the attention mask leaves it out
    taken = set(inspect.signature(encoder.forward).parameters) & {*tokenizer.model_input_names}
    kinds = tokenizer("a", "a").get("token_type_ids", [0])
    if 0 < getattr(config, "type_vocab_size", 0) <= max(kinds):
        taken.discard("token_type_ids")
    tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name in taken]
    return tokenizer


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
