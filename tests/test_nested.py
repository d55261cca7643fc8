"""One run cut at every sparsity: its own score comes back, cuts are exact and nested, misuse is told."""

import importlib
import shutil

import numpy as np
import pytest
import torch

import adaprune
from adaprune import evaluate_at
from adaprune.masks import ranks
from adaprune.masks.cuts import keep_top
from adaprune.nested import _read_ranks
from adaprune.runs.paths import mask_path, paths_of, record_path
from adaprune.runs.recipes import plan_for
from adaprune.runs.records import read_record, write_record
from adaprune.runs.run import Run

nested = importlib.import_module("adaprune.nested")


@pytest.fixture
def ask(ten_sentences, tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(tiny_model_dir)
    small = {"max_length": 16, "batch_size": 4, "epochs": 2, "results_dir": "out", "checkpoint_steps": 0}
    asked = {"task": ten_sentences.name, "model": "tiny", "keep": "theta", **small}
    return lambda **fields: Run(**{**asked, **fields})


def test_ranks_give_the_mask_back_and_cut_as_theta_would():
    """100,000 theta in two matrices, a third of them equal: nearly each has a level of its own, in theta's order."""
    generator = torch.Generator().manual_seed(0)
    thetas = {"a": torch.randn(300, 200, generator=generator), "b": torch.randn(400, 100, generator=generator).relu()}
    masks = keep_top(thetas, 0.2)
    found = ranks(thetas, masks)
    assert {part.dtype for part in found.values()} == {torch.int16}
    assert all(torch.equal(found[name] >= 0, masks[name]) for name in masks)
    theta, rank = (np.concatenate([part.numpy().ravel() for part in parts.values()]) for parts in (thetas, found))
    order = np.argsort(-theta, kind="stable")
    assert np.all(np.diff(rank[order].astype(int)) <= 0)
    assert np.unique(rank, return_counts=True)[1].max() <= 3  # 80,000 removed ones share 32,768 levels
    for density in (0.01, 0.2, 0.7):
        cut, direct = keep_top(found, density), keep_top(thetas, density)
        assert sum(int(part.sum()) for part in cut.values()) == round(density * 100_000)
        other = sum(int((cut[name] ^ direct[name]).sum()) for name in cut)
        assert other <= 4 and (density != 0.2 or other == 0)


@pytest.mark.parametrize("scope", ["encoder", "encoder+embeddings"])
def test_a_run_is_cut_at_every_sparsity(ask, scope):
    run = ask(sparsity=0.5, scope=scope)
    record = adaprune.adapt(run)
    found = evaluate_at(run, [0.0, 0.5, 0.9, 0.99])
    own = found[found["sparsity"] == 0.5].iloc[0]
    assert own["score"] == record["metrics"]["validation"]["accuracy"] == own["validation_accuracy"]
    assert own["selection_score"] == record["metrics"]["selection"]["accuracy"]
    assert own["kept"] == record["mask"]["kept"]
    assert list(found["kept"]) == [round((1 - level) * record["mask"]["total"]) for level in found["sparsity"]]
    masks = adaprune.load_mask(f"out/masks/{run.name}.safetensors").masks
    scores = _read_ranks(paths_of(record_path(run)).theta, masks)
    half, tenth = keep_top(scores, 0.5), keep_top(scores, 0.1)
    assert all(torch.equal(half[name], masks[name]) and not (tenth[name] & ~half[name]).any() for name in masks)


@pytest.mark.parametrize("refit", [0.0, 1.0])
def test_a_record_from_before_heads_had_a_kind_is_cut_with_the_head_of_its_mask_file(ask, refit):
    run = ask(head="mlp")
    record = adaprune.adapt(run)
    then = ask()  # which is a linear head today, and was this one
    assert plan_for(then).head == "linear" and record["environment"]["plan"].pop("head") == "mlp"
    record["run"]["head"] = ""
    path = write_record({name: part for name, part in record.items() if name != "schema_version"}, then)
    for one, other in (("mask", ".safetensors"), ("theta", ".safetensors")):
        old, new = (getattr(paths_of(of), one).with_suffix(other) for of in (run, then))
        old.rename(new)
    found = evaluate_at(path, [0.5], refit_head_epochs=refit)
    assert refit or found["score"].tolist() == [record["metrics"]["validation"]["accuracy"]]


@pytest.mark.parametrize("refit", [0.0, 1.0])
@pytest.mark.parametrize("said", [True, False])
def test_a_head_reads_as_when_it_was_trained_whatever_the_recipe_says_now(ask, tmp_path, monkeypatch, said, refit):
    """Of a mask file from before heads could read a mean (not ``said``) that is [CLS]."""
    run = ask(sparsity=0.5)
    adaprune.adapt(run)
    mask, read, real = adaprune.load_mask(mask_path(run)), [], nested.score
    if not said:
        card = {"labels": mask.card["labels"], "heads": mask.card["heads"]}
        adaprune.save_mask(mask_path(run), mask.masks, mask.head, card, adaprune.load_encoder("tiny").model)
        assert "pooling" not in adaprune.load_mask(mask_path(run)).card
    shutil.copytree("tiny", "pooled")
    (tmp_path / "pooled" / "1_Pooling").mkdir()
    (tmp_path / "pooled" / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (tmp_path / "tiny").unlink()
    (tmp_path / "tiny").symlink_to("pooled")
    assert (plan_for(run).pooling, adaprune.load_encoder("tiny").pooling) == ("own", "mean")
    monkeypatch.setattr(nested, "score", lambda job, done: read.append(job.model.head.pooling) or real(job, done))
    found = evaluate_at(run, [0.5], refit_head_epochs=refit)
    assert read == ["cls"]
    if not refit:
        assert found["score"].item() == read_record(record_path(run))["metrics"]["validation"]["accuracy"]


def test_the_head_is_fitted_again_under_each_mask(ask, monkeypatch):
    run = ask(sparsity=0.5)
    adaprune.adapt(run)
    by_path = evaluate_at(str(record_path(run)), [0.9, 0.5], refit_head_epochs=2.0)
    assert list(by_path["refit_head_epochs"]) == [2, 2] and list(by_path["sparsity"]) == [0.9, 0.5]
    again = evaluate_at(run, [0.5], refit_head_epochs=2.0)  # from the record's head, whatever came before
    assert again["score"].iloc[0] == by_path["score"].iloc[1]
    assert not list(record_path(run).parent.glob(".checkpoints/*"))


def test_what_cannot_be_cut_is_told(ask, tmp_path):
    run = ask()
    adaprune.adapt(run)
    for wrong in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"sparsities must lie in \[0, 1\), got"):
            evaluate_at(run, [0.5, wrong])
    for wrong in (0.5, "0.5", None):
        with pytest.raises(ValueError, match="sparsities must be a list of numbers in .*, got"):
            evaluate_at(run, wrong)
    with pytest.raises(ValueError, match=r"sparsities must lie in \[0, 1\), got '0.5'"):
        evaluate_at(run, ["0.5"])
    for wrong in (-1, float("nan"), float("inf"), "2"):
        with pytest.raises(ValueError, match="refit_head_epochs must be a number, 0 or more, got"):
            evaluate_at(run, [0.5], refit_head_epochs=wrong)
    with pytest.raises(FileNotFoundError, match="none"):
        evaluate_at("out/none.json", [0.5])
    features = ask(method="features", keep="")
    adaprune.adapt(features)
    with pytest.raises(ValueError, match="has method 'features', which leaves no mask"):
        evaluate_at(features, [0.5])
    equal = ask(allocation="equal")
    adaprune.adapt(equal)
    with pytest.raises(ValueError, match="has allocation 'equal': its theta ranks within a matrix"):
        evaluate_at(equal, [0.5])

    file = paths_of(record_path(run)).theta
    content = file.read_bytes()
    file.write_bytes(paths_of(record_path(equal)).theta.read_bytes())
    with pytest.raises(ValueError, match="is not the theta of"):
        evaluate_at(run, [0.5])
    file.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="is damaged"):
        evaluate_at(run, [0.5])
    file.unlink()
    with pytest.raises(FileNotFoundError, match="run again with keep='theta'"):
        evaluate_at(run, [0.5])
    file.write_bytes(content)

    with open(tmp_path / run.task / "train.csv", "a") as table:
        table.write("a superb cast,good\n")
    with pytest.raises(ValueError, match="was made on other rows"):
        evaluate_at(run, [0.5])


def test_another_base_is_refused(ask, tmp_path, tiny_model_dir):
    from transformers import BertModel, BertTokenizerFast

    run = ask()
    adaprune.adapt(run)
    model = BertModel.from_pretrained(tiny_model_dir)
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight[0, 0] += 1e-3
    model.save_pretrained(tmp_path / "other")
    BertTokenizerFast.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "other")
    (tmp_path / "tiny").unlink()
    (tmp_path / "tiny").symlink_to(tmp_path / "other")
    with pytest.raises(ValueError, match=r"another base: encoder.layer.0.output.dense.weight differs"):
        evaluate_at(run, [0.5])


def test_theta_is_kept_only_where_asked_and_changes_nothing(ask):
    run, plain = ask(), ask(keep="", results_dir="plain")
    one, two = adaprune.adapt(run), adaprune.adapt(plain)
    assert run.name == plain.name and one["metrics"] == two["metrics"] and one["mask"] == two["mask"]
    assert paths_of(record_path(run)).theta.is_file() and not paths_of(record_path(plain)).theta.exists()
    record = read_record(record_path(plain))
    record.pop("schema_version")
    write_record(record, plain)
    with pytest.raises(FileNotFoundError, match="keep='theta'"):
        evaluate_at(plain, [0.5])
