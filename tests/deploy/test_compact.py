"""A compact model gives the masked model's answers, and nothing of what was on no path is left in it."""

import copy

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, CamembertConfig, CamembertModel, XLMRobertaConfig, XLMRobertaModel

from adaprune.deploy import MaskedEncoder
from adaprune.deploy.runtime import compact, set_runtime
from adaprune.deploy.runtime.compact_layers import FAMILIES
from adaprune.masks import attach, component_of, layer_of, maskable
from adaprune.topology import arrays, blocks, effective
from adaprune.training import AdaptedModel, Encoder
from tests import tiny

SPARSITIES = (0.5, 0.8, 0.9, 0.97, 0.99, 0.999)
MORE = {"xlm-roberta": (XLMRobertaConfig, XLMRobertaModel), "camembert": (CamembertConfig, CamembertModel)}


def masked(family: str = "bert", sparsity: float = 0.5, seed: int = 0, dead: float = 0.3, encoder=None) -> AdaptedModel:
    """A model with random masks, ``dead`` of all rows and columns of inner units emptied, and biases that matter."""
    encoder = tiny.encoder(family, seed) if encoder is None else encoder
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, linear in maskable(encoder).items():
            linear.bias.copy_(torch.randn(linear.bias.shape, generator=generator))
            linear.weight.mul_(torch.rand(linear.weight.shape, generator=generator) >= sparsity)
            if component_of(name) in ("attention_output", "ffn_out"):
                linear.weight[:, torch.rand(linear.in_features, generator=generator) < dead] = 0
            else:
                linear.weight[torch.rand(linear.out_features, generator=generator) < dead] = 0
    encoder.requires_grad_(False)
    torch.manual_seed(seed)
    model = AdaptedModel.for_task(encoder, 3, pooling=("cls", "mean")[seed % 2]).eval()
    nn.init.normal_(model.head.output.weight)
    return model


def padded() -> dict[str, torch.Tensor]:
    """Rows of 7, 3, 6 and no tokens at all."""
    batch = tiny.batch(rows=4)
    batch["attention_mask"] = (torch.arange(7) < torch.tensor([7, 3, 6, 0])[:, None]).long()
    return batch


@torch.no_grad()
def difference(one: AdaptedModel, other: AdaptedModel, batch: dict) -> float:
    """The largest of all logits and of all hidden states, but those of padding."""
    gaps = [(one(**batch).logits - other(**batch).logits).abs().max()]
    states = [m.encoder(**batch, output_hidden_states=True, return_dict=True).hidden_states for m in (one, other)]
    seen = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    return float(max(*gaps, *((a - b)[seen].abs().max() for a, b in zip(*states, strict=True))))


def parts(model: AdaptedModel, layer: int = 0) -> dict[str, nn.Linear]:
    """The matrices of one layer of a family's encoder by component."""
    return {component_of(n): linear for n, linear in maskable(model.encoder).items() if layer_of(n) == layer}


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("family", tiny.FIVE)
def test_answers_are_those_of_the_masked_model(family, sparsity):
    for seed in range(3):
        model = masked(family, sparsity, seed)
        if family != "mpnet":  # which has no other; with the fused product torch gives rows of padding alone no weights
            model.encoder.set_attn_implementation("eager")
        small = compact(model)
        assert difference(model, small, padded()) <= 1e-5
        assert difference(model, small, {"input_ids": tiny.batch()["input_ids"]}) <= 1e-5
        before, after = (sum(p.numel() for p in m.encoder.parameters()) for m in (model, small))
        assert after < before


@pytest.mark.parametrize("family", MORE)
def test_relatives_of_the_families_too(family):
    config, kind = MORE[family]
    torch.manual_seed(0)
    encoder = kind(config(**tiny.COMMON, pad_token_id=1)).eval()
    assert encoder.config.model_type in FAMILIES
    model = masked(encoder=encoder)
    assert difference(model, compact(model), tiny.batch()) <= 1e-5


@pytest.mark.parametrize("family", tiny.FIVE)
def test_a_mask_of_everything_or_nothing(family):
    for sparsity, dead in ((0.0, 0.0), (1.0, 0.0)):
        model = masked(family, sparsity, dead=dead)
        assert difference(model, compact(model), tiny.batch()) <= 1e-5


def test_token_types_and_positions_are_taken():
    model = masked()
    batch = tiny.batch()
    batch["token_type_ids"] = (torch.arange(7) > 3).long().expand(3, 7)
    batch["position_ids"] = torch.arange(7).flip(0).expand(3, 7)
    small = compact(model)
    assert difference(model, small, batch) <= 1e-5
    assert difference(small, small, {**batch, "token_type_ids": None}) == 0
    plain = small(**tiny.batch()).logits
    assert (small(**batch).logits - plain).abs().max() > 1e-3
    ignoring = masked("distilbert")
    assert difference(ignoring, compact(ignoring), {**tiny.batch(), "token_type_ids": batch["token_type_ids"]}) <= 1e-5


def test_what_is_given_stays_as_it_was():
    model = masked()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = compact(model)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(1)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not small.training and small.config is small.encoder.config and small.config is not model.config


@pytest.mark.parametrize("act", ["gelu", "relu", "silu", "tanh", "gelu_new"])
def test_a_constant_neuron_is_folded_into_the_next_bias(act):
    """Neuron 3 has no input, neuron 5 no output, the others both."""
    torch.manual_seed(0)
    model = masked(encoder=BertModel(BertConfig(**tiny.COMMON, hidden_act=act)).eval(), sparsity=0, dead=0)
    first, second = parts(model)["ffn_in"], parts(model)["ffn_out"]
    with torch.no_grad():
        first.weight[3], first.bias[3], second.weight[:, 5] = 0, 1.5, 0
    ffn = compact(model).encoder.layers[0].feed_forward
    live = [j for j in range(48) if j not in (3, 5)]
    assert torch.equal(ffn.fc1.weight, first.weight[live]) and torch.equal(ffn.fc2.weight, second.weight[:, live])
    known = {
        "gelu": lambda z: 0.5 * z * (1 + torch.erf(z / 2**0.5)),
        "relu": lambda z: z.clamp(min=0),
        "silu": lambda z: z / (1 + torch.exp(-z)),
        "tanh": torch.tanh,
        "gelu_new": lambda z: 0.5 * z * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3))),
    }[act]
    expected = second.bias + second.weight[:, 3] * known(first.bias[3])
    torch.testing.assert_close(ffn.fc2.bias.data, expected.data, atol=1e-6, rtol=1e-6)
    assert (expected - second.bias).abs().max() > 1e-3  # leaving it out would show
    assert difference(model, compact(model), tiny.batch()) <= 1e-5


def test_value_units_without_input_or_output():
    """Heads have 8 units. Unit 2 of head 0 is a constant, unit 9 (head 1) is read by nobody, head 2 is constant."""
    model = masked(sparsity=0, dead=0)
    value, out = parts(model)["value"], parts(model)["attention_output"]
    with torch.no_grad():
        value.weight[2], out.weight[:, 9], value.weight[16:24] = 0, 0, 0
    attention = compact(model).encoder.layers[0].attention
    assert [tuple(head) for head in attention.heads] == [(0, 8, 7), (1, 8, 7), (3, 8, 8)]
    constant = [2, *range(16, 24)]
    expected = out.bias + out.weight[:, constant] @ value.bias[constant]
    torch.testing.assert_close(attention.out_proj.bias.data, expected.data, atol=1e-6, rtol=1e-6)
    assert attention.out_proj.weight.shape == (32, 22) and attention.projections.weight.shape == (2 * 24 + 22, 32)
    assert difference(model, compact(model), tiny.batch()) <= 1e-5


def test_a_key_without_input_shifts_a_row_of_scores_and_goes():
    """Whether its query is a constant (unit 1) or not (unit 0)."""
    model = masked(sparsity=0, dead=0)
    query, key = parts(model)["query"], parts(model)["key"]
    with torch.no_grad():
        key.weight[:2], query.weight[1] = 0, 0
        key.bias[:2] = 3.0
    small = compact(model)
    assert [head.scores for head in small.encoder.layers[0].attention.heads] == [6, 8, 8, 8]
    assert difference(model, small, tiny.batch()) <= 1e-5


def test_a_query_without_input_stays_because_softmax_sees_it():
    """One alone stays as it is, of several one is left, and one whose bias is 0 goes."""
    model = masked(sparsity=0, dead=0)
    query = parts(model)["query"]
    with torch.no_grad():
        query.weight[0], query.weight[8:12], query.weight[16] = 0, 0, 0
        query.bias[16] = 0
    small = compact(model)
    assert [head.scores for head in small.encoder.layers[0].attention.heads] == [8, 8 - 4 + 1, 7, 8]
    assert difference(model, small, padded() | {"attention_mask": tiny.batch(rows=4)["attention_mask"]}) <= 1e-5
    silent = copy.deepcopy(model)
    with torch.no_grad():
        parts(silent)["query"].bias[[0, *range(8, 12)]] = 0  # as if these constants had been left out
    assert difference(model, silent, tiny.batch()) > 1e-3


def test_a_layer_without_heads_or_neurons_adds_its_biases():
    model = masked(sparsity=0, dead=0)
    with torch.no_grad():
        parts(model)["value"].weight.zero_()
        parts(model)["ffn_in"].weight.zero_()
    small = compact(model)
    layer = small.encoder.layers[0]
    assert layer.attention.heads == () and layer.feed_forward.fc1.weight.shape == (0, 32)
    assert difference(model, small, padded() | {"attention_mask": tiny.batch(rows=4)["attention_mask"]}) <= 1e-5


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_what_is_left_is_what_topology_calls_live(sparsity):
    """Neurons, value units and heads to the number; of queries and keys one may be left for a head's constants."""
    model = masked(sparsity=sparsity, dead=0.1)
    masks = {name: linear.weight != 0 for name, linear in maskable(model.encoder).items()}
    for layer, found in zip(compact(model).encoder.layers, blocks(arrays(masks), 4).values(), strict=True):
        live = effective(found, 4)
        assert layer.feed_forward.fc1.out_features == live["ffn_in"].any(1).sum()
        values = live["value"].any(1).reshape(4, 8).sum(1)
        assert [head.values for head in layer.attention.heads] == values[values > 0].tolist()
        assert [head.number for head in layer.attention.heads] == values.nonzero()[0].tolist()
        scores = (found["query"].any(1) & found["key"].any(1)).reshape(4, 8).sum(1)
        assert all(0 <= head.scores - scores[head.number] <= 1 for head in layer.attention.heads)


def test_large_batches_go_through_the_ffn_in_blocks():
    model = masked(sparsity=0.9)
    assert difference(model, compact(model), tiny.batch(rows=41)) <= 1e-5  # 287 tokens


def test_no_rows_at_all():
    none = {name: tensor[:0] for name, tensor in tiny.batch().items()}
    model = masked()
    assert compact(model)(**none).logits.shape == (0, model.head.output.out_features)


def test_other_masks_of_attention_and_tuples_are_refused():
    small = compact(masked())
    ids = tiny.batch()["input_ids"]
    with pytest.raises(ValueError, match=r"attention_mask \(batch, tokens\)"):
        small.encoder(ids, attention_mask=torch.ones(3, 1, 7, 7))
    with pytest.raises(ValueError, match="return_dict=True only"):
        small.encoder(ids, return_dict=False)
    with pytest.raises(TypeError, match="output_attentions"):
        small.encoder(ids, output_attentions=True)


def test_what_cannot_be_compacted_is_refused():
    with pytest.raises(ValueError, match="family 'albert', all of which share one set of weights"):
        compact(AdaptedModel.for_task(tiny.encoder("albert"), 2))
    decoder = tiny.encoder("bert")
    decoder.config.is_decoder = True
    with pytest.raises(ValueError, match="neither compact nor export knows a decoder"):
        compact(AdaptedModel.for_task(decoder, 2))
    with pytest.raises(ValueError, match="an AdaptedModel, got BertModel"):
        compact(tiny.encoder())
    with pytest.raises(ValueError, match="compact already"):
        compact(compact(masked()))
    with pytest.raises(ValueError, match="sparse already"):
        compact(set_runtime(masked(), "sparse"))
    learning = masked()
    attach(learning.encoder, {name: linear.weight for name, linear in maskable(learning.encoder).items()})
    with pytest.raises(ValueError, match="MaskedLinear, which learn a mask"):
        compact(learning)
    serving = masked()
    MaskedEncoder(Encoder(serving.encoder, None, "tiny", "random"))
    with pytest.raises(ValueError, match="serve many tasks"):
        compact(serving)


def test_a_unit_that_nothing_reads_may_overflow():
    """0 * inf in the masked model, nothing at all in the compact one."""
    model = masked(sparsity=0, dead=0)
    first, second = parts(model)["ffn_in"], parts(model)["ffn_out"]
    with torch.no_grad():
        second.weight[:, 5] = 0
        expected = compact(model)(**tiny.batch()).logits
        first.bias[5] = torch.inf
        assert model(**tiny.batch()).logits.isnan().all()
        assert torch.equal(compact(model)(**tiny.batch()).logits, expected)


def test_weights_that_are_no_numbers_are_kept():
    """NaN is not 0: what would have shown in the masked model shows in the compact and in the sparse one."""
    model = masked(sparsity=0.9)
    with torch.no_grad():
        parts(model)["ffn_in"].weight[3, 4] = torch.nan
        parts(model)["ffn_out"].weight[0, 3] = 1.0
    small = compact(model)
    for other in (model, small, set_runtime(copy.deepcopy(small), "sparse")):
        assert other(**tiny.batch()).logits.isnan().all()
