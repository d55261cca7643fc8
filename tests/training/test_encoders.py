"""Loading encoders from folders and from the bundled package, what is refused, and the identity of tensors."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertTokenizerFast,
    DebertaV2Config,
    DebertaV2Model,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5Model,
)
from transformers.utils import logging

from adaprune.masks.layers import attach, maskable
from adaprune.training import encoders
from adaprune.training.encoders import MINILM_SHA256, load_encoder, most_tokens, tensor_hash, tensor_hashes
from tests.tiny import MADE, SHAPE, batch, encoder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{index}" for index in range(55))]


def save(model, folder):
    """A local checkpoint with a tokenizer of 60 words."""
    model.save_pretrained(folder)
    BertTokenizerFast(vocab={word: index for index, word in enumerate(WORDS)}).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    return save(encoder("bert"), tmp_path / "tiny")


def test_a_local_folder_is_loaded_frozen_and_named_by_its_weights(folder):
    loaded = load_encoder(str(folder))
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert (loaded.id, loaded.revision) == (str(folder), f"sha256:{digest}")
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    found = loaded.model(**batch(), output_hidden_states=True).hidden_states
    expected = encoder("bert")(**batch(), output_hidden_states=True).hidden_states
    for ours, theirs in zip(found, expected, strict=True):  # another kernel of attention rounds otherwise
        torch.testing.assert_close(ours, theirs)
    assert loaded.tokenizer("word3 word4")["input_ids"] == [2, 8, 9, 3]


def test_loading_draws_no_bar_and_leaves_others_theirs(folder, tmp_path, capfd):
    mine = logging.set_tqdm_hook(lambda bar, given, named: bar(*given, **{**named, "desc": "mine"}))
    try:
        load_encoder(str(folder))
        with pytest.raises(OSError):
            load_encoder(str(tmp_path / "none"))
        assert "Loading" not in capfd.readouterr().err
        list(logging.tqdm([1]))
        assert "mine" in capfd.readouterr().err
    finally:
        logging.set_tqdm_hook(mine)


@pytest.mark.parametrize("family", MADE)
def test_attention_dropout_is_off_and_the_other_dropout_is_on(family, tmp_path):
    model = load_encoder(str(save(encoder(family), tmp_path / family))).model
    rates = [getattr(model.config, n, 0.0) for n in ("attention_probs_dropout_prob", "attention_dropout")]
    assert rates == [0.0, 0.0]
    within = [
        module.p
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Dropout) and name.endswith(("self.dropout", "attn.dropout", "attention_dropout"))
    ]
    assert set(within) <= {0.0}
    hidden = getattr(model.config, "hidden_dropout_prob", None)
    assert (model.config.dropout if hidden is None else hidden) == (0.0 if family == "albert" else 0.1)
    assert getattr(model, "pooler", None) is None


def test_half_precision_checkpoints_are_computed_in_float32(tmp_path):
    loaded = load_encoder(str(save(encoder("bert").bfloat16(), tmp_path / "half")))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}


def test_minilm_is_the_official_checkpoint():
    loaded = load_encoder("minilm")
    assert (loaded.id, loaded.revision) == ("minilm", f"sha256:{MINILM_SHA256}")
    assert type(loaded.model).__name__ == "BertModel"
    assert (loaded.model.config.num_hidden_layers, loaded.model.config.hidden_size) == (6, 384)
    # 6 layers of 4 * 384^2 + 2 * 384 * 1536, and 30,522 words.
    assert sum(m.weight.numel() for m in maskable(loaded.model).values()) == 6 * (4 * 384**2 + 2 * 384 * 1536)
    assert maskable(loaded.model, "encoder+embeddings")["embeddings.word_embeddings.weight"].weight.shape[0] == 30_522


def test_other_bundled_weights_are_refused(monkeypatch):
    monkeypatch.setattr(encoders, "MINILM_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=f"model.safetensors has sha256 {MINILM_SHA256}, expected 0000.*reinstall"):
        load_encoder("minilm")


@pytest.mark.parametrize("name", ["nobody/has-this-model", "no-such-folder/at/all", "", "spaces are no id"])
def test_a_model_that_cannot_be_reached_says_what_to_do(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"model .* cannot be loaded: .*model='minilm'.*local folder"):
        load_encoder(name)


def no_config(folder):
    (folder / "config.json").unlink()


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def truncated_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def empty_weights(folder):
    (folder / "model.safetensors").write_bytes(b"")


def broken_config(folder):
    (folder / "config.json").write_text("{", encoding="utf-8")


def unknown_family(folder):
    file = folder / "config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**settings, "model_type": "nonesuch"}), encoding="utf-8")


def width_in_words(folder):
    file = folder / "config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**settings, "hidden_size": "x"}), encoding="utf-8")


@pytest.mark.parametrize(
    "damage", [no_config, no_weights, truncated_weights, empty_weights, broken_config, unknown_family, width_in_words]
)
def test_a_damaged_folder_is_refused_by_name(damage, folder):
    damage(folder)
    with pytest.raises(OSError, match="tiny.* cannot be loaded: .*local folder with config.json"):
        load_encoder(str(folder))


def test_weights_of_another_shape_are_refused(folder):
    file = folder / "config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**settings, "intermediate_size": 64}), encoding="utf-8")
    with pytest.raises(ValueError, match="tiny.* do not fit its config.json: no encoder.layer.0.intermediate.dense"):
        load_encoder(str(folder))


def test_weights_that_are_missing_are_refused_not_drawn_at_random(folder):
    # transformers fills a missing tensor with random numbers and only warns.
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="tiny.*encoder.layer.1.output.dense.weight"):
        load_encoder(str(folder))


def test_a_missing_pooler_is_no_fault(folder):
    # Checkpoints of masked language models come without one, and nothing reads it.
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("pooler.")}
    assert len(kept) == len(tensors) - 2
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    assert set(load_encoder(str(folder)).model.state_dict()) == set(kept)


def test_an_encoder_decoder_is_refused(tmp_path):
    model = T5Model(T5Config(vocab_size=60, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2))
    with pytest.raises(ValueError, match="T5Model.* is not an encoder"):
        load_encoder(str(save(model, tmp_path / "t5")))


DECODERS = {
    "llama": lambda: LlamaModel(LlamaConfig(**SHAPE, intermediate_size=48)),
    "gpt2": lambda: GPT2Model(GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4)),
}


@pytest.mark.parametrize("family", DECODERS)
def test_causal_attention_is_refused_by_what_the_first_token_sees(tmp_path, family):
    model = DECODERS[family]()
    assert not model.config.is_encoder_decoder and not getattr(model.config, "is_decoder", False)
    with pytest.raises(
        ValueError, match=rf"\({family}\) is not an encoder: its first token, .* does not see the tokens"
    ):
        load_encoder(str(save(model, tmp_path / family)))


# Lengths.


@pytest.mark.parametrize("family", MADE)
def test_most_tokens_are_as_many_as_the_model_takes(family):
    model = encoder(family)
    most = most_tokens(model)
    assert most == (38 if family in ("roberta", "mpnet") else 40)
    model(input_ids=torch.full((1, most), 7))
    with pytest.raises((RuntimeError, IndexError)):
        model(input_ids=torch.full((1, most + 1), 7))


def test_relative_positions_have_no_end():
    config = {**SHAPE, "intermediate_size": 48, "max_position_embeddings": 40}
    model = DebertaV2Model(
        DebertaV2Config(**config, relative_attention=True, position_biased_input=False, pos_att_type=["p2c", "c2p"])
    )
    assert most_tokens(model) is None
    model(input_ids=torch.full((1, 80), 7))


# Identity of tensors.


def test_hash_of_a_tensor_by_hand():
    # Two float32 in little-endian bytes: 1.0 = 0000803f, -2.0 = 000000c0.
    expected = hashlib.sha256(b"torch.float32 (2,) " + bytes.fromhex("0000803f000000c0")).hexdigest()
    assert tensor_hash(torch.tensor([1.0, -2.0])) == expected


def test_hash_tells_value_shape_type_and_sign_of_zero_apart():
    tensors = [
        torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), -torch.zeros(4), torch.tensor(0.0),
        torch.zeros(8, dtype=torch.bfloat16), torch.zeros(0), torch.zeros(16, dtype=torch.bool),
    ]  # fmt: skip
    assert len({tensor_hash(tensor) for tensor in tensors}) == len(tensors)


def test_hash_does_not_depend_on_memory_layout_or_gradient():
    table = torch.arange(6.0).view(2, 3)
    assert tensor_hash(table.t()) == tensor_hash(table.t().contiguous()) != tensor_hash(table)
    assert tensor_hash(torch.nn.Parameter(table)) == tensor_hash(table)


def test_hashes_name_every_base_tensor_and_leave_theta_out():
    model = encoder()
    before = tensor_hashes(model)
    assert list(before) == sorted(model.state_dict())
    attach(model, {name: m.weight.detach().abs() for name, m in maskable(model, "encoder+embeddings").items()})
    assert tensor_hashes(model) == before
    with torch.no_grad():
        model.get_parameter("encoder.layer.1.output.dense.bias")[3] += 1e-6
    after = tensor_hashes(model)
    assert [name for name in before if before[name] != after[name]] == ["encoder.layer.1.output.dense.bias"]


# Pooling.


def say(folder, text):
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(text, encoding="utf-8")


OLD = {"word_embedding_dimension": 32, "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False}


@pytest.mark.parametrize(
    ("text", "pooling"),
    [
        (json.dumps({**OLD, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}), "mean"),
        (json.dumps({**OLD, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}), "cls"),
        (json.dumps({"embedding_dimension": 32, "pooling_mode": "mean", "include_prompt": True}), "mean"),
        (json.dumps({"embedding_dimension": 32, "pooling_mode": "cls"}), "cls"),
        (json.dumps({"pooling_mode": "lasttoken"}), "cls"),
        (json.dumps({"pooling_mode": ["mean"]}), "cls"),
        ("{}", "cls"),
        ("", "cls"),
        ('{"pooling_mode_mean_tokens": tr', "cls"),
        ("[]", "cls"),
        ('["mean"]', "cls"),
        ('"mean"', "cls"),
        ("null", "cls"),
        ("7", "cls"),
        ("[" * 100_000, "cls"),
        ('{"a":' * 100_000, "cls"),
        ("\x00\x01", "cls"),
    ],
    ids=lambda value: value[:40],
)
def test_pooling_is_what_the_checkpoint_says_and_cls_where_it_says_nothing(folder, text, pooling):
    say(folder, text)
    assert load_encoder(str(folder)).pooling == pooling


def test_a_checkpoint_without_a_word_on_pooling_has_cls(folder):
    assert load_encoder(str(folder)).pooling == "cls"
    (folder / "1_Pooling" / "config.json").mkdir(parents=True)
    assert load_encoder(str(folder)).pooling == "cls"


def test_pooling_that_is_no_text_at_all(folder):
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_bytes(b'\xff\xfe{"pooling_mode": "mean"}')
    assert load_encoder(str(folder)).pooling == "cls"


def test_minilm_was_made_with_the_mean():
    assert load_encoder("minilm").pooling == "mean"


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0  # as BERT's\ntags:\n- x\n---\n# A model\n", "apache-2.0"),
        ("---\nlicense: 'mit' \n---\n", "mit"),
        ("---\nlanguage: en\n---\nlicense: mit\n", "unknown"),  # in the text, not in the front matter
        ("license: mit\n", "unknown"),
        ("---\nlicense: [mit, bsd]\n---\n", "unknown"),
    ],
)
def test_the_licence_is_read_from_the_front_matter(folder, card, licence):
    (folder / "README.md").write_text(card)
    assert load_encoder(str(folder)).licence == licence


def test_word_embeddings_that_compute_are_refused(folder, monkeypatch):
    """As Gemma's, whose table multiplies what it finds: a mask, which replaces the table's class, would undo that."""

    class Scaled(torch.nn.Embedding):
        def forward(self, ids):
            return 3 * super().forward(ids)

    monkeypatch.setattr(encoders, "_table", lambda encoder: Scaled(3, 3))
    with pytest.raises(ValueError, match="its word embeddings, Scaled, do more than look up a row"):
        load_encoder(str(folder))
