"""An ONNX file gives the model's logits, at any batch and length; what cannot be exported is refused."""

import json

import pytest
import torch

from adaprune.deploy.runtime import compact, export, set_runtime
from tests import tiny
from tests.deploy.test_compact import masked

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is an extra: pip install adaprune[onnx]")


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def answers(file, batch):
    names = [one.name for one in file.get_inputs()]
    (logits,) = file.run(None, {name: batch[name].numpy() for name in names})
    return torch.from_numpy(logits)


def pair(rows: int, tokens: int) -> dict[str, torch.Tensor]:
    """Two texts in each row, told apart by their token types, and padding behind the last row's."""
    batch = tiny.batch(rows=rows, tokens=tokens)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][-1, tokens // 2 + 1 :] = 0
    batch["token_type_ids"] = (torch.arange(tokens) > tokens // 3).long().expand(rows, tokens).contiguous()
    return batch


@pytest.mark.parametrize("family", tiny.FIVE)
def test_logits_are_the_models(family, tmp_path):
    """Heads of both poolings, and masks with dead units."""
    model = masked(family, 0.8, seed=tiny.FIVE.index(family))
    file = session(export(model, tmp_path / "new" / "a.onnx"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.onnx"]
    for rows, tokens in ((3, 7), (1, 1), (1, 13), (40, 20)):
        batch = pair(rows, tokens)
        given = {name: ids for name, ids in batch.items() if name in [one.name for one in file.get_inputs()]}
        with torch.no_grad():
            expected = model(**given).logits
        torch.testing.assert_close(answers(file, batch), expected, atol=1e-5, rtol=0)


def test_every_input_counts(tmp_path):
    """None of them was lost or taken for another; the compact model's file is that of the masked one."""
    batch, model = pair(3, 12), masked("bert", 0.5)
    model.config.id2label = {0: "no", 1: "so", 2: "yes"}
    file = session(export(compact(model), tmp_path / "a.onnx"))
    assert json.loads(file.get_modelmeta().custom_metadata_map["id2label"]) == {"0": "no", "1": "so", "2": "yes"}
    before = answers(file, batch)
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        other = {**batch, name: batch[name].flip(1)}
        with torch.no_grad():
            torch.testing.assert_close(answers(file, other), model(**other).logits, atol=1e-5, rtol=0)
        assert (answers(file, other) - before).abs().max() > 1e-3


def test_nothing_but_biases_is_left(tmp_path):
    model = masked("bert", 1.0, dead=0)
    with torch.no_grad():
        expected = model(**tiny.batch()).logits
    batch = {**tiny.batch(), "token_type_ids": torch.zeros(3, 7, dtype=torch.int64)}
    torch.testing.assert_close(answers(session(export(model, tmp_path / "a.onnx")), batch), expected, atol=1e-5, rtol=0)


def test_what_cannot_be_exported_is_refused(tmp_path, monkeypatch):
    model = masked()
    with pytest.raises(ValueError, match=r"ends in \.onnx"):
        export(model, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="sparse already"):
        export(set_runtime(compact(model), "sparse"), tmp_path / "a.onnx")
    with pytest.raises(ValueError, match="compact takes what apply_mask returns"):
        export(model.encoder, tmp_path / "a.onnx")
    with pytest.raises(ValueError, match="over 2 GB"):
        monkeypatch.setattr("adaprune.deploy.runtime.onnx_file.LARGEST", 1000)
        export(model, tmp_path / "a.onnx")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"export needs onnx and onnxscript: pip install onnx onnxscript"):
        export(model, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
