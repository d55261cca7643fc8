"""The parts of a compacted encoder: its family's embeddings, and layers whose heads have individual widths.

Every family here computes, in each layer,

    h <- norm1(h + Wo attention(h) + bo),    h <- norm2(h + W2 act(W1 h + b1) + b2)

so that one loop serves all of them. It is also faster than the families' own classes, which matters once matrices are
small: on MiniLM with 32 tokens it saves half a millisecond, a quarter of the time of a model at 0.99.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutput

from adaprune.deploy.runtime.sparse import BLOCK, PlacedLinear
from adaprune.masks import component_of, layer_of, maskable

FAMILIES = ("bert", "camembert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")


class Head(NamedTuple):
    """A remaining attention head: its number in the original layer, its query/key units and its value units."""

    number: int
    scores: int
    values: int


class Attention(nn.Module):
    """Self-attention over some heads of a layer, each with its own number of query/key and of value units.

    One matrix computes all units: first the queries of every head, then the keys, then the values. For the product of
    queries and keys all heads are given one width, with zeros between, which neither a score nor a value sees.

    Args:
        heads: the heads left, in order.
        scale: what scores are multiplied with, 1 / sqrt(the original width of a head).
        projections: weight (units, width) and bias (units) of all units.
        output: weight (width, values) and bias (width) of the matrix that reads the values of all heads.
    """

    def __init__(
        self, heads: Sequence[Head], scale: float, projections: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]
    ):
        super().__init__()
        self.heads, self.scale = tuple(heads), scale
        self.size = max((max(head.scores, head.values) for head in heads), default=0)
        counts = [head.scores for head in heads] * 2 + [head.values for head in heads]
        starts = torch.arange(len(counts)) * self.size
        places = torch.cat([starts[:0], *(start + torch.arange(n) for start, n in zip(starts, counts, strict=True))])
        values = places[len(places) - sum(head.values for head in heads) :] - 2 * len(heads) * self.size
        self.projections = PlacedLinear(*projections, rows=places, gives=3 * len(heads) * self.size)
        self.out_proj = PlacedLinear(*output, columns=values, reads=len(heads) * self.size)
        numbers = torch.tensor([head.number for head in heads], dtype=torch.int64)
        self.register_buffer("numbers", numbers, persistent=False)

    def forward(self, hidden_states: Tensor, mask: Tensor | None = None, position_bias: Tensor | None = None) -> Tensor:
        """What the layer adds to its input, (batch, tokens, width).

        Args:
            hidden_states: (batch, tokens, width).
            mask: added to the scores, (batch, 1, 1, tokens).
            position_bias: added to the scores of the original's heads, (batch, all heads, tokens, tokens).
        """
        batch, tokens, _ = hidden_states.shape
        if not self.heads:
            return self.out_proj(hidden_states[..., :0])
        if position_bias is not None:
            bias = position_bias[:, self.numbers]
            mask = bias if mask is None else bias + mask
        units = self.projections(hidden_states).view(batch, tokens, 3, len(self.heads), self.size)
        query, key, value = units.permute(2, 0, 3, 1, 4)
        context = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scale)
        return self.out_proj(context.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """x -> W2 act(W1 x + b1) + b2; once it is sparse in blocks of tokens, so that neurons' values stay in the cache."""

    def __init__(self, fc1: tuple[Tensor, Tensor], act: Callable[[Tensor], Tensor], fc2: tuple[Tensor, Tensor]):
        super().__init__()
        self.fc1, self.act, self.fc2 = PlacedLinear(*fc1), act, PlacedLinear(*fc2)

    def forward(self, hidden_states: Tensor) -> Tensor:
        if isinstance(self.fc1, nn.Linear) or hidden_states.shape[:-1].numel() <= 2 * BLOCK:
            return self.fc2(self.act(self.fc1(hidden_states)))
        rows = hidden_states.flatten(0, -2)
        return torch.cat([self.fc2(self.act(self.fc1(some))) for some in rows.split(BLOCK)]).view_as(hidden_states)


class CompactLayer(nn.Module):
    """One Transformer layer, with its norms after the sums."""

    def __init__(self, attention: Attention, norm1: nn.LayerNorm, feed_forward: FeedForward, norm2: nn.LayerNorm):
        super().__init__()
        self.attention, self.norm1, self.feed_forward, self.norm2 = attention, norm1, feed_forward, norm2

    def forward(self, h: Tensor, mask: Tensor | None, position_bias: Tensor | None) -> Tensor:
        h = self.norm1(self.attention(h, mask, position_bias) + h)
        return self.norm2(self.feed_forward(h) + h)


class CompactEncoder(nn.Module):
    """An encoder of one of ``FAMILIES``: what that has before its layers, and `CompactLayer`s.

    Args:
        base: the family's model. Its embeddings are taken over, with the matrix that brings them to the layers' width
            (ELECTRA) and the module that makes the bias of relative positions (MPNet), if it has them.
        layers: its layers.
    """

    def __init__(self, base: nn.Module, layers: Sequence[CompactLayer]):
        super().__init__()
        self.config: transformers.PretrainedConfig = base.config
        self.embeddings = base.embeddings
        self.project = getattr(base, "embeddings_project", None)
        self.positions = base.encoder if base.config.model_type == "mpnet" else None
        if self.positions is not None:
            self.positions.layer = nn.ModuleList()
        self.layers = nn.ModuleList(layers)
        self.takes = frozenset(inspect.signature(base.embeddings.forward).parameters)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> BaseModelOutput:
        """The last hidden states (batch, tokens, width), and with ``output_hidden_states`` those before it too.

        Args:
            input_ids, token_type_ids, position_ids: (batch, tokens); types are ignored by families without them.
            attention_mask: (batch, tokens), 0 = padding.
            output_hidden_states: give all hidden states.
            return_dict: must be True.

        Raises:
            ValueError: an attention mask of another shape, or ``return_dict=False``.
        """
        if not return_dict or (attention_mask is not None and attention_mask.shape != input_ids.shape):
            raise ValueError("a compact encoder takes an attention_mask (batch, tokens) and has return_dict=True only")
        given = {"token_type_ids": token_type_ids, "position_ids": position_ids}
        h = self.embeddings(input_ids=input_ids, **{name: ids for name, ids in given.items() if name in self.takes})
        h = h if self.project is None else self.project(h)
        mask = None
        # No mask is the faster product. What is exported has no branches by value.
        if attention_mask is not None and (torch.compiler.is_exporting() or not attention_mask.all()):
            mask = (1 - attention_mask[:, None, None].to(h.dtype)) * torch.finfo(h.dtype).min
        bias = None if self.positions is None else self.positions.compute_position_bias(h)
        states = [h]
        for layer in self.layers:
            h = layer(h, mask, bias)
            states.append(h)
        return BaseModelOutput(last_hidden_state=h, hidden_states=tuple(states) if output_hidden_states else None)


class Original(NamedTuple):
    """One layer of a family's model, taken apart: its six matrices by component, its activation, its two norms."""

    linears: dict[str, nn.Linear]
    act: Callable[[Tensor], Tensor]
    norms: tuple[nn.LayerNorm, nn.LayerNorm]


def originals(encoder: nn.Module) -> list[Original]:
    """The layers of a family's encoder, in order.

    Raises:
        ValueError: another family than ``FAMILIES``, named, or a decoder.
    """
    family = encoder.config.model_type
    if family not in FAMILIES or getattr(encoder.config, "is_decoder", False):
        why = ", all of which share one set of weights" if family == "albert" else ""
        what = "a decoder" if family in FAMILIES else f"the layers of family {family!r}{why}"
        raise ValueError(
            f"neither compact nor export knows {what}. They know the encoders of {', '.join(FAMILIES)}; "
            f"set_runtime(model, 'sparse') takes every family"
        )
    linears: dict[int, dict[str, nn.Linear]] = {}
    paths: dict[int, dict[str, str]] = {}
    for name, linear in maskable(encoder).items():
        linears.setdefault(layer_of(name), {})[component_of(name)] = linear
        paths.setdefault(layer_of(name), {})[component_of(name)] = name.removesuffix(".weight")
    found = []
    for number in sorted(linears):
        ffn = encoder.get_submodule(paths[number]["ffn_in"].rpartition(".")[0])
        act = ffn.intermediate_act_fn if hasattr(ffn, "intermediate_act_fn") else ffn.activation
        whole = encoder.get_submodule(paths[number]["query"].partition(f".{number}.")[0])[number]
        norms = [module for module in whole.modules() if isinstance(module, nn.LayerNorm)]
        found.append(Original(linears[number], act, tuple(norms)))
    return found
