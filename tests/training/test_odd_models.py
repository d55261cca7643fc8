"""Models as people have them: without a tokenizer, with a larger one, in shards, damaged, changed, under ``~``."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertTokenizerFast,
    DistilBertModel,
    RobertaConfig,
    RobertaModel,
    TapasConfig,
    TapasModel,
)

from adaprune.data import check_known
from adaprune.training import load_encoder, weights_in
from adaprune.training.model_files import fitted
from tests.tiny import COMMON, DISTIL, MADE, encoder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{index}" for index in range(55))]


def tokenizer(**special):
    return BertTokenizerFast(vocab={word: index for index, word in enumerate(WORDS)}, **special)


def save(model, folder, words=None):
    model.save_pretrained(folder)
    (words or tokenizer()).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", MADE)
def test_a_folder_without_tokenizer_files_is_refused(tmp_path, family):
    encoder(family).save_pretrained(tmp_path)
    with pytest.raises((ValueError, OSError), match="has no tokenizer: .* knows no words|cannot be loaded") as refusal:
        load_encoder(str(tmp_path))
    assert "tokenizer" in str(refusal.value) and str(tmp_path) in str(refusal.value)


def test_numbers_beyond_the_table_are_refused_by_token(tmp_path):
    larger = tokenizer()
    larger.add_tokens(["qwfpz", "arst"])
    with pytest.raises(ValueError, match="gives 'qwfpz' the number 60, the table of word embeddings has 60 rows"):
        load_encoder(save(encoder(), tmp_path, larger))


def test_padding_goes_to_the_right_and_a_lacking_pad_token_is_found(tmp_path):
    left = tokenizer(padding_side="left")
    assert load_encoder(save(encoder(), tmp_path / "left", left)).tokenizer.padding_side == "right"
    none = AutoTokenizer.from_pretrained(tmp_path / "left")
    none.pad_token = None
    loaded = load_encoder(save(encoder(), tmp_path / "none", none))
    assert loaded.tokenizer.pad_token == "[PAD]"  # number 0, which config.json names
    none.eos_token = none.sep_token = none.unk_token = None
    bare = SimpleNamespace(config=SimpleNamespace(), get_input_embeddings=encoder().get_input_embeddings)
    with pytest.raises(ValueError, match="has no token to pad with: set pad_token"):
        fitted(none, bare, "mine")


def test_what_the_encoder_does_not_take_is_not_given(tmp_path):
    folder = save(
        RobertaModel(RobertaConfig(**COMMON, type_vocab_size=1)), tmp_path / "r"
    )  # one kind of token; the tokenizer has two for pairs
    assert isinstance(load_encoder(folder).model, RobertaModel)
    assert "token_type_ids" not in load_encoder(folder).tokenizer("word1", "word2")
    folder = save(MADE["distilbert"](), tmp_path / "d")
    loaded = load_encoder(folder)
    assert isinstance(loaded.model, DistilBertModel) and loaded.model.config.dim == DISTIL["dim"]
    assert loaded.model(**loaded.tokenizer("word1", "word2", return_tensors="pt"))[0].shape == (1, 5, 32)
    assert "token_type_ids" in load_encoder(save(encoder(), tmp_path / "b")).tokenizer("word1", "word2")


def test_a_tokenizer_whose_tensors_the_encoder_does_not_take_is_named(tmp_path):
    """TAPAS reads seven kinds of token type, and a tokenizer of texts gives one."""
    folder = save(TapasModel(TapasConfig(**COMMON)), tmp_path / "t")
    with pytest.raises(ValueError, match=r"\(family tapas\) does not run on what its tokenizer gives \(IndexError"):
        load_encoder(folder)


def rows(*texts):
    return datasets.Dataset.from_dict({"input_ids": tokenizer()(list(texts))["input_ids"]})


@pytest.mark.parametrize(
    ("texts", "share"), [(["word1 word2"], 0.0), (["word1 x y z"], 0.75), (["", "word1"], 0.5), (["x", "y"], 1.0)]
)
def test_the_share_of_unknown_tokens(texts, share):
    if share >= 0.9:
        with pytest.raises(ValueError, match=r"model 'mine' knows 0% of the tokens of the training texts: are they"):
            check_known(tokenizer(), rows(*texts), "mine")
    elif share:
        with pytest.warns(UserWarning, match=f"knows {1 - share:.0%} of the tokens"):
            assert check_known(tokenizer(), rows(*texts), "mine") == share
    else:
        assert check_known(tokenizer(), rows(*texts), "mine") == 0.0


def test_every_shard_is_hashed(tmp_path):
    folder = tmp_path / "shards"
    model = encoder()
    model.save_pretrained(folder, max_shard_size="20KB")
    tokenizer().save_pretrained(folder)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    lines = "".join(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in shards)
    before = f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"
    assert load_encoder(str(folder)).revision == weights_in(folder) == before
    tensors = load_file(shards[-1])
    next(iter(tensors.values())).add_(1)
    save_file(tensors, shards[-1], metadata={"format": "pt"})
    assert weights_in(folder) != before
    assert weights_in(Path("user/model")) is None


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_damaged_weights_are_refused_by_name(tmp_path, value):
    model = encoder()
    with torch.no_grad():
        model.encoder.layer[1].output.dense.weight[3, 4] = value
    with pytest.raises(ValueError, match=r"damaged: encoder\.layer\.1\.output\.dense\.weight holds NaN or infinity"):
        load_encoder(save(model, tmp_path))


def test_home_and_variables_in_the_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MODELS", str(tmp_path))
    save(encoder(), tmp_path / "m")
    assert load_encoder("~/m").revision == load_encoder("$MODELS/m").revision == weights_in(tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["model_type"] == "bert"
    with pytest.raises(ValueError, match=r"\$NOWHERE/m: there is no environment variable \$NOWHERE"):
        load_encoder("$NOWHERE/m")


def changed_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "gleu"}, "its config.json says 'gleu', which this version of transformers does not know"),
        ({"model_type": "bret"}, "model type `bret`"),
        ({"dtype": "float17"}, "no attribute 'float17'"),
        ({"hidden_act": 3}, "Field 'hidden_act' expected str, got int"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "requires bitsandbytes"),
    ],
)
def test_what_a_config_names_and_nobody_knows_is_the_culprit(tmp_path, changes, said):
    folder = changed_config(tmp_path, **changes) if save(encoder(), tmp_path) else ""
    with pytest.raises(OSError, match=f"cannot be loaded: .*{said}.* save_pretrained it"):
        load_encoder(folder)


def test_files_that_are_no_model_are_named(tmp_path):
    folder = save(encoder(), tmp_path / "m")
    with pytest.raises(OSError, match=r"config\.json' cannot be loaded: it is a file\. Give the folder"):
        load_encoder(f"{folder}/config.json")
    whole = (tmp_path / "m" / "tokenizer.json").read_text()
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    with pytest.raises(OSError, match=r"cannot be loaded: one of its files, tokenizer\.json or another, lacks '\w+'"):
        load_encoder(folder)
    (tmp_path / "m" / "tokenizer.json").write_text(whole)
    (tmp_path / "m" / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\n")
    with pytest.raises(OSError, match=r"model\.safetensors was not fetched by git-lfs: git lfs pull"):
        load_encoder(folder)
    (tmp_path / "m" / "model.safetensors").unlink()
    (tmp_path / "m" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(OSError, match=r"index\.json is damaged, it names no shards"):
        load_encoder(folder)
    with pytest.raises(OSError, match="there is no such folder, .* Did you mean 'minilm'"):
        load_encoder("minilmm")


def test_layers_that_are_left_over_are_named(tmp_path):
    folder = changed_config(tmp_path, num_hidden_layers=1) if save(encoder(), tmp_path) else ""
    with pytest.warns(UserWarning, match=r"more layers than its config.json names; encoder\.layer\.1\..* and 15 more"):
        load_encoder(folder)


def test_what_lies_beside_the_weights_is_known_by_what_it_says(tmp_path):
    folder = save(encoder(), tmp_path)
    before = load_encoder(folder).files
    names = [one.split()[0] for one in before.split(", ")]
    assert names == ["config.json", "tokenizer.json", "tokenizer_config.json"]
    changed_config(tmp_path, transformers_version="9.9", dtype="float16")
    (tmp_path / "README.md").write_text("notes")
    assert load_encoder(folder).files == before
    changed_config(tmp_path, layer_norm_eps=1e-5)
    assert [one for one in load_encoder(folder).files.split(", ") if one not in before][0].startswith("config.json ")
    assert load_encoder("minilm").files is None
