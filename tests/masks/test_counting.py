"""Counts of what a mask keeps, by hand and on every family."""

import pytest
import torch
from transformers import BertConfig, BertModel

from adaprune.masks.counting import component_of, count_kept, layer_of, summary
from adaprune.masks.layers import maskable, set_masks
from tests.tiny import FAMILIES, FIVE, encoder

BOTH = "encoder+embeddings"
SIX = ["query", "key", "value", "attention_output", "ffn_in", "ffn_out"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_has_its_component(family):
    names = list(maskable(encoder(family), BOTH))
    layers = 1 if family == "albert" else 2  # ALBERT has one set for both layers
    assert [component_of(name) for name in names] == [*SIX * layers, "embed"]


@pytest.mark.parametrize("family", FIVE)
def test_every_matrix_has_its_layer(family):
    names = list(maskable(encoder(family), BOTH))
    assert [layer_of(name) for name in names] == [0] * 6 + [1] * 6 + [None]


def test_layers_above_nine_and_unknown_names():
    assert layer_of("encoder.layer.11.output.dense.weight") == 11
    assert component_of("layers.3.mlp.gate_up.weight") == "other"


def test_attention_output_is_not_the_feed_forward_output():
    assert component_of("encoder.layer.0.attention.output.dense.weight") == "attention_output"
    assert component_of("encoder.layer.0.output.dense.weight") == "ffn_out"


def test_count_kept_by_hand():
    masks = {"a": torch.tensor([[True, False], [False, False]]), "b": torch.tensor([True])}
    assert count_kept(masks) == {"sparsity": 0.6, "kept": 2, "total": 5}
    assert count_kept({}) == {"sparsity": 0.0, "kept": 0, "total": 0}


def first_row_only(model, scope):
    """Masks that keep the first row of every matrix."""
    masks = {name: torch.zeros_like(m.weight, dtype=torch.bool) for name, m in maskable(model, scope).items()}
    for mask in masks.values():
        mask[0] = True
    return masks


def test_summary_counts_both_denominators_whatever_the_scope():
    # Per layer 4 attention matrices 32 x 32, ffn_in 48 x 32, ffn_out 32 x 48: 7168, of which a row each is kept:
    # 5 * 32 + 48 = 208. Two layers; a table of 60 x 32 = 1920.
    model = encoder()
    found = summary(model, first_row_only(model, "encoder"))
    assert (found["kept"], found["total"]) == (416, 14_336)
    assert found["sparsity"] == pytest.approx(13_920 / 14_336)
    assert found["encoder"] == {key: found[key] for key in ("sparsity", "kept", "total")}
    assert found["all_weights"] == {"sparsity": 13_920 / 16_256, "kept": 416 + 1_920, "total": 16_256}
    assert "embed" not in found["per_component"]

    both = summary(model, first_row_only(model, BOTH))
    assert (both["kept"], both["total"]) == (448, 16_256)
    assert both["encoder"] == found["encoder"]
    assert both["all_weights"] == {"sparsity": 15_808 / 16_256, "kept": 448, "total": 16_256}
    assert both["per_component"]["embed"] == {"sparsity": 59 / 60, "kept": 32, "total": 1_920}


def test_summary_by_component_and_layer_adds_up():
    model = encoder()
    masks = first_row_only(model, BOTH)
    masks["encoder.layer.1.intermediate.dense.weight"][:] = True
    found = summary(model, masks)
    assert list(found["per_layer"]) == ["0", "1"] and set(found["per_component"]) == {*SIX, "embed"}
    assert found["per_layer"]["0"] == {"sparsity": 1 - 208 / 7_168, "kept": 208, "total": 7_168}
    assert found["per_layer"]["1"]["kept"] == 208 - 32 + 48 * 32
    assert found["per_component"]["ffn_in"] == {"sparsity": 1504 / 3072, "kept": 32 + 1536, "total": 3_072}
    for key in ("kept", "total"):
        assert sum(part[key] for part in found["per_component"].values()) == found[key]


def test_summary_is_the_same_while_the_mask_is_applied():
    model = encoder()
    masks = first_row_only(model, BOTH)
    before = summary(model, masks)
    set_masks(model, masks)
    assert summary(model, masks) == before


def test_both_denominators_of_bert_base():
    with torch.device("meta"):
        model = BertModel(BertConfig())
    found = summary(model, {})
    assert found["encoder"] == {"sparsity": 0.0, "kept": 84_934_656, "total": 84_934_656}
    assert found["all_weights"]["total"] == 84_934_656 + 30_522 * 768
    assert found["per_component"] == {} and found["per_layer"] == {}
