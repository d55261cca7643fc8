"""Exact removal: a masked model without the units on no path, as a smaller dense model with the same answers.

Below, W is a masked matrix (outputs, inputs) with zeros where weights were removed, h(t) a token's vector, and a row or
column is empty where all of it is 0. Biases are never masked, so what has an empty row is a constant, not a zero. Each
removal is exact in real numbers; in floating point sums come in another order, and where a unit that nothing reads
overflows, the masked model computes 0 * inf = NaN and the compact one does not.

**FFN neuron j**, of y = W2 act(W1 h + b1) + b2, act elementwise:

- Column j of W2 is empty: y does not depend on it. It is removed.
- Row j of W1 is empty: the neuron is act(b1_j) for every token, and its term W2[:, j] act(b1_j) is a constant. It is
  removed, and b2 becomes b2 + W2[:, j] act(b1_j).

**Value unit j of a head**, whose context is c_j(t) = sum_s A(t, s) v_j(s), read by column j of Wo, with the attention
A(t, s) = softmax over s of e(t, s):

- Column j of Wo is empty: nothing reads it. It is removed.
- Row j of Wv is empty: v_j(s) = bv_j for every s, and since sum_s A(t, s) = 1, c_j(t) = bv_j for every t. It is
  removed, and bo becomes bo + Wo[:, j] bv_j. (Padding only moves shares of A between the s; their sum stays 1. A row of
  nothing but padding is the exception where torch gives it no attention at all; no answer is to be had of such a row.)

**A head without value units** adds nothing to Wo's sum: it is removed with its queries and keys. A layer without heads,
or without neurons, adds its bias alone.

**Query and key unit j of a head**, of the scores e(t, s) = c sum_j q_j(t) k_j(s) + mask(s) + bias(t - s):

- Row j of Wk is empty: its term c q_j(t) bk_j does not depend on s. Softmax ignores what is added to the whole of
  its row: exp(e + r(t)) / sum_s exp(e + r(t)) = exp(e) / sum_s exp(e). It goes, whatever the query is, constant or not.
- Row j of Wq is empty and bq_j = 0: its term is 0. It goes.
- Row j of Wq is empty and bq_j is not 0: its term c bq_j k_j(s) depends on s, the shift differs within a row, and
  softmax sees it. **It stays.** But sum_j bq_j k_j(s), over all such units of a head, is (sum_j bq_j Wk[j]) h(s) and a
  constant, which is again a shift: one unit, whose query is always 1 and whose key row is that sum, is enough.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from adaprune.deploy.runtime.compact_layers import (
    Attention,
    CompactEncoder,
    CompactLayer,
    FeedForward,
    Head,
    Original,
    originals,
)
from adaprune.deploy.runtime.sparse import check_dense
from adaprune.training import AdaptedModel

Pair = tuple[Tensor, Tensor]  # a weight and a bias


@torch.no_grad()
def compact(adapted: AdaptedModel) -> AdaptedModel:
    """A smaller model with the same logits, without the neurons, units and heads on no path; for evaluation only.

    It has the config and the head of ``adapted``, and takes token ids, not ``inputs_embeds``. Attention is torch's
    fused product; there are no attention weights and no pooler. `save_compact` stores the model, and `set_runtime`
    makes the rest of it sparse.

    Args:
        adapted: what `apply_mask` returned, with the dense runtime. It is not changed.

    Raises:
        ValueError: not such a model, one that is already compact or sparse, one that learns masks or serves many tasks,
            or one of an unsupported family (names it).
    """
    if not isinstance(adapted, AdaptedModel):
        raise ValueError(f"compact takes what apply_mask returns, an AdaptedModel, got {type(adapted).__name__}")
    if isinstance(adapted.encoder, CompactEncoder):
        raise ValueError("the model is compact already")
    check_dense(adapted.encoder)
    originals(adapted.encoder)  # refuses before anything is copied
    adapted = copy.deepcopy(adapted)
    heads = adapted.config.num_attention_heads
    layers = []
    for layer in originals(adapted.encoder):
        attention, feed_forward = _attention(layer, heads), _feed_forward(layer)
        layers.append(CompactLayer(attention, layer.norms[0], feed_forward, layer.norms[1]))
    compacted = AdaptedModel(CompactEncoder(adapted.encoder, layers), adapted.head)
    return compacted.to(adapted.device).eval()  # places of units are made on the CPU


def _feed_forward(layer: Original) -> FeedForward:
    """The FFN with the neurons on a path, and what the constant ones add in the second bias."""
    first, second = layer.linears["ffn_in"], layer.linears["ffn_out"]
    fed, read = first.weight.any(1), second.weight.any(0)
    live, constant = fed & read, ~fed & read
    bias = _with_constants(second, constant, layer.act(_bias(first)[constant]))
    fc1 = first.weight[live], _bias(first)[live]
    return FeedForward(fc1, layer.act, (second.weight[:, live].contiguous(), bias))


def _attention(layer: Original, heads: int) -> Attention:
    """The heads that have a value unit on a path, and what the constant value units add in the output's bias."""
    query, key, value, out = (layer.linears[part] for part in ("query", "key", "value", "attention_output"))
    fed, read = value.weight.any(1), out.weight.any(0)
    live, constant = fed & read, ~fed & read
    found, rows = [], [[], [], []]  # of the queries, the keys and the values: a weight and a bias for each head
    for number, units in enumerate(torch.arange(len(live), device=live.device).chunk(heads)):
        values = units[live[units]]
        if len(values):
            parts = (*_scores(query, key, units), (value.weight[values], _bias(value)[values]))
            found.append(Head(number, len(parts[0][1]), len(values)))
            for some, part in zip(rows, parts, strict=True):
                some.append(part)
    weights, biases = zip((value.weight[:0], _bias(value)[:0]), *(part for some in rows for part in some), strict=True)
    output = out.weight[:, live].contiguous(), _with_constants(out, constant, _bias(value)[constant])
    return Attention(found, (len(live) // heads) ** -0.5, (torch.cat(weights), torch.cat(biases)), output)


def _scores(query: nn.Linear, key: nn.Linear, units: Tensor) -> tuple[Pair, Pair]:
    """Weights and biases of a head's queries and of its keys, as far as softmax sees them."""
    asks, has, constant = query.weight[units].any(1), key.weight[units].any(1), _bias(query)[units]
    live, fixed = units[asks & has], units[~asks & has & (constant != 0)]
    queries, keys = (query.weight[live], _bias(query)[live]), (key.weight[live], _bias(key)[live])
    if not len(fixed):
        return queries, keys
    summed = (_bias(query)[fixed].double() @ key.weight[fixed].double()).to(key.weight.dtype)[None]
    one, zero = summed.new_ones(1), summed.new_zeros(1)  # a key's bias is a shift for all s: any will do
    return (
        (torch.cat([queries[0], torch.zeros_like(summed)]), torch.cat([queries[1], one])),
        (torch.cat([keys[0], summed]), torch.cat([keys[1], zero])),
    )


def _with_constants(linear: nn.Linear, constant: Tensor, values: Tensor) -> Tensor:
    """The bias of a layer whose inputs ``constant`` (boolean) have always these values: b + W[:, constant] values."""
    added = linear.weight[:, constant].double() @ values.double()
    return (_bias(linear).double() + added).to(linear.weight.dtype)


def _bias(linear: nn.Linear) -> Tensor:
    return linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()
