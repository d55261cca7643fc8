"""A compact model's file is all that is needed, and another file is refused with its name."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from adaprune.deploy.runtime import compact, export, load_compact, save_compact, set_runtime
from adaprune.training import AdaptedModel
from tests import tiny
from tests.deploy.test_compact import difference, masked, padded


def described(path) -> dict:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["adaprune_compact"])


@pytest.mark.parametrize("sparsity", [0.0, 0.9, 0.999])
@pytest.mark.parametrize("family", tiny.FIVE)
def test_what_is_loaded_is_what_was_saved(family, sparsity, tmp_path):
    model = masked(family, sparsity, dead=0.3 if sparsity else 0)
    small = compact(model)
    small.config.id2label, small.config.label2id = {0: "no", 1: "so", 2: "yes"}, {"no": 0, "so": 1, "yes": 2}
    path = save_compact(tmp_path / "new" / "a.safetensors", small, tokenizer="some/tokenizer")
    again = load_compact(path)
    assert difference(small, again, padded()) == 0
    assert again.config.id2label == {0: "no", 1: "so", 2: "yes"} and again.config.num_labels == 3
    assert again.tokenizer_name == "some/tokenizer" and not again.training
    assert not any(parameter.requires_grad for parameter in again.encoder.parameters())
    assert again.state_dict().keys() == small.state_dict().keys()
    twice = save_compact(tmp_path / "b.safetensors", again)
    assert described(twice) == described(path)
    with torch.inference_mode():
        fast = set_runtime(again, "sparse")(**padded()).logits
    torch.testing.assert_close(fast, small(**padded()).logits, atol=1e-4, rtol=0)


def test_heads_of_every_kind_and_half_precision(tmp_path):
    model = masked()
    for kind, pooling, outputs in (("linear", "mean", 1), ("mlp", "cls", 5)):
        small = compact(AdaptedModel.for_task(model.encoder, outputs, kind, pooling)).to(torch.bfloat16)
        again = load_compact(save_compact(tmp_path / "a.safetensors", small))
        assert torch.equal(again(**tiny.batch()).logits, small(**tiny.batch()).logits)
        assert again.dtype == torch.bfloat16 and again.tokenizer_name is None


def test_no_paths_and_no_code_are_kept(tmp_path):
    small = compact(masked())
    small.config._name_or_path = "/home/somebody/model"
    small.config.auto_map = {"AutoModel": "evil.Model"}
    text = json.dumps(described(save_compact(tmp_path / "a.safetensors", small)))
    assert "somebody" not in text and "evil" not in text


def test_what_cannot_be_saved_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match="ends in .safetensors"):
        save_compact(tmp_path / "a.pt", compact(masked()))
    with pytest.raises(ValueError, match="takes what compact returns, got BertModel"):
        save_compact(path, masked())
    with pytest.raises(ValueError, match="sparse already"):
        save_compact(path, set_runtime(compact(masked()), "sparse"))
    assert not list(tmp_path.iterdir())
    save_file({"a": torch.zeros(1)}, path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"a\.safetensors holds no compact model, yet would be replaced"):
        save_compact(path, compact(masked()))
    assert path.read_bytes() == before


def test_an_onnx_file_of_others_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # refused before onnx is used
    (tmp_path / "a.onnx").write_bytes(b"of somebody else")
    with pytest.raises(FileExistsError, match=r"a\.onnx is not from export, yet would be replaced"):
        export(masked(), tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == b"of somebody else"


def changed(change):
    """What `change` makes of the description of a sound file, without a seal, as the first files were."""

    def make(path):
        said, tensors = described(path), load_file(path)
        del said["sha256"]
        change(said, tensors)
        save_file(tensors, path, metadata={"adaprune_compact": json.dumps(said)})

    return make


FAULTS = {
    "no safetensors": lambda path: path.write_bytes(b"nothing of the kind"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "another's": lambda path: save_file({"a": torch.zeros(1)}, path),
    "format": changed(lambda said, tensors: said.update(format=2)),
    "family": changed(lambda said, tensors: said["config"].update(model_type="albert")),
    "unknown family": changed(lambda said, tensors: said["config"].update(model_type="nothing")),
    "layers": changed(lambda said, tensors: said["layers"].pop()),
    "huge head": changed(lambda said, tensors: said["layers"][0]["heads"][0].__setitem__(1, 10**15)),
    "heads twice": changed(lambda said, tensors: said["layers"][0]["heads"].append(said["layers"][0]["heads"][0])),
    "neurons": changed(lambda said, tensors: said["layers"][0].update(neurons=10**9)),
    "a tensor too few": changed(lambda said, tensors: tensors.pop("head.mix")),
    "a tensor too many": changed(lambda said, tensors: tensors.update(more=torch.zeros(1))),
    "constants": changed(lambda said, tensors: tensors.pop("buffer.embeddings.position_ids")),
    "activation": changed(lambda said, tensors: said["config"].update(hidden_act=3)),
    "head": changed(lambda said, tensors: said["head"].update(kind="other")),
    "constants of another shape": changed(
        lambda said, tensors: tensors.update({"buffer.embeddings.position_ids": torch.zeros(1)})
    ),
    "NaN": changed(lambda said, tensors: tensors["head.output.bias"].fill_(math.nan)),
    "infinite constants": changed(
        lambda said, tensors: tensors.update({"buffer.embeddings.position_ids": torch.full((1, 40), math.inf)})
    ),
    "mixed dtypes": changed(lambda said, tensors: tensors.update({"head.mix": tensors["head.mix"].half()})),
    "whole numbers": changed(lambda said, tensors: tensors.update({n: t.int() for n, t in tensors.items()})),
    "scale is NaN": changed(lambda said, tensors: said["layers"][0].update(scale=math.nan)),
    "scale is 0": changed(lambda said, tensors: said["layers"][0].update(scale=0.0)),
    "scale is text": changed(lambda said, tensors: said["layers"][0].update(scale="0.5")),
    "tokenizer": changed(lambda said, tensors: said.update(tokenizer=5)),
    "config is a list": changed(lambda said, tensors: said.update(config=[1])),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_and_foreign_files_are_refused_by_name(fault, tmp_path):
    path = save_compact(tmp_path / "a.safetensors", compact(masked()))
    FAULTS[fault](path)
    with pytest.raises(ValueError, match=r"a\.safetensors is not a whole compact model of format 1"):
        load_compact(path)


@pytest.mark.parametrize(
    "chosen",
    [
        {"attn_implementation": "flash_attention_2"},
        {"attn_implementation": "somebody/kernel"},
        {"_attn_implementation": "somebody/kernel"},
        {"_attn_implementation_internal": "somebody/kernel"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"dtype": "float99"},
        {"torch_dtype": "float16"},
        {"auto_map": {"AutoModel": "somebody--code.Model"}},
    ],
    ids=range(8),
)
def test_how_to_compute_is_not_for_a_file_to_choose(chosen, tmp_path):
    small = compact(masked())
    path = save_compact(tmp_path / "a.safetensors", small)
    changed(lambda said, tensors: said["config"].update(chosen))(path)
    again = load_compact(path)
    assert difference(small, again, padded()) == 0 and again.dtype == torch.float32
    assert not {*chosen} & {*described(save_compact(path, again))["config"]}


def test_a_package_that_is_missing_is_said_with_the_files_name(tmp_path, monkeypatch):
    path = save_compact(tmp_path / "a.safetensors", compact(masked()))

    def lacks(*args, **kwargs):
        raise ImportError("this model needs the package kernels")

    monkeypatch.setattr("transformers.AutoModel.from_config", lacks)
    with pytest.raises(ValueError, match=r"a\.safetensors is not a whole .*: this model needs the package kernels"):
        load_compact(path)


def test_the_seal_covers_tensors_and_description_and_the_first_files_had_none(tmp_path):
    small = compact(masked())
    path = save_compact(tmp_path / "a.safetensors", small)
    content, seal = path.read_bytes(), described(path)["sha256"]
    for place in (-1, -500):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place:][1:])
        with pytest.raises(ValueError, match="its sha256 is not that of its tensors"):
            load_compact(path)
    for entry, value in (("layer_norm_eps", 1e-3), ("num_attention_heads", 8)):
        path.write_bytes(content)
        changed(lambda said, tensors, e=entry, v=value: said.update(sha256=seal, config={**said["config"], e: v}))(path)
        with pytest.raises(ValueError, match="its sha256 is not that of its tensors"):
            load_compact(path)
    path.write_bytes(content)
    changed(lambda said, tensors: None)(path)
    assert "sha256" not in described(path) and difference(small, load_compact(path), padded()) == 0


def test_what_would_not_load_is_not_saved(tmp_path):
    small = compact(masked())
    small.head.output.bias.data[0] = math.nan
    with pytest.raises(ValueError, match=r"head\.output\.bias holds NaN"):
        save_compact(tmp_path / "a.safetensors", small)
    assert not list(tmp_path.iterdir())


def test_no_file_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a file"):
        load_compact(tmp_path / "none.safetensors")
