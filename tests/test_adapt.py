"""adapt(): every method from its parameters to record and mask file, and every way in which it must stop."""

import errno
import importlib
import os
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import adaprune
from adaprune.deploy import apply_mask, load_mask
from adaprune.masks.cuts import keep_top
from adaprune.masks.layers import maskable, set_masks
from adaprune.methods import cut
from adaprune.runs.answers import read_answers
from adaprune.runs.method import METHODS, Method
from adaprune.runs.paths import paths_of, record_path
from adaprune.runs.recipes import plan_for
from adaprune.runs.records import read_record
from adaprune.runs.run import Run
from adaprune.training import predict
from adaprune.training.checkpoints import last_whole
from adaprune.training.encoders import load_encoder, tensor_hashes
from adaprune.training.frozen import fit_head
from adaprune.training.job import Outcome, check_machine, prepare
from adaprune.training.trainer import PruningTrainer

HOUSE = importlib.import_module("adaprune.adapt")  # the name adaprune.adapt is the function's


def mask_file(run: Run) -> Path:
    return Path(run.results_dir, "masks", f"{run.name}.safetensors")


def checkpoints_of(run: Run) -> Path:
    return Path(run.results_dir, ".checkpoints", run.name)


def left_behind(run: Run) -> list[str]:
    """Everything visible in the results folder."""
    return sorted(str(path) for path in Path(run.results_dir).rglob("[!.]*") if ".checkpoints" not in path.parts)


def nan_at(monkeypatch, call: int) -> None:
    """Makes the loss not a number at the n-th batch."""
    real, calls = adaprune.training.heads.task_losses, []

    def spoilt(logits, labels):
        calls.append(1)
        return real(logits, labels) * (float("nan") if len(calls) == call else 1)

    monkeypatch.setattr(adaprune.training.heads, "task_losses", spoilt)


# ---------------------------------------------------------------- what comes out


@pytest.mark.parametrize("recipe", ["tuned", "paper"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_ends_in_a_record(tiny_runs_dir, monkeypatch, method, recipe):
    """These runs are made once: test_golden.py finds them finished."""
    if method in ("lora", "ia3"):
        pytest.importorskip("peft", reason="lora and ia3 need peft, of the extra adaprune[methods]")
    monkeypatch.chdir(tiny_runs_dir)
    small = {"max_length": 16, "batch_size": 2, "epochs": 2, "results_dir": "out"}
    task = "pairs" if method == "zero_shot" else "ten"
    run, kind = Run(task=task, model="tiny", method=method, recipe=recipe, **small), METHODS[method]
    record = adaprune.adapt(run)
    assert record == read_record(Path("out") / f"{run.name}.json")
    assert record["run"] == run.model_dump()
    assert record["weights_intact"] is kind.weights_intact
    assert (record["mask"] is not None) == kind.mask
    assert mask_file(run).exists() == (kind.mask and kind.weights_intact)
    answers, scores = read_answers(paths_of(record_path(run)).answers)
    assert len(answers) == 4 and len(scores) == 0  # scores on samples are kept for named tasks only
    if method == "features":  # a head of 2 layers, width 16, 2 classes, and nothing else
        hidden = 16 * 16 + 16 if recipe == "paper" else 0
        assert record["cost"]["shipped_bytes"] == 4 * (2 + hidden + 2 * 16 + 2)
    assert set(record["metrics"]["validation"]) == {"accuracy", "f1_macro"}
    assert record["environment"]["data_fingerprint"] and record["environment"]["model_revision"].startswith("sha256:")
    expected = [f"out/{run.name}.json", f"out/answers/{run.name}.npz"]
    if kind.mask and kind.weights_intact:
        expected += [f"out/masks/{run.name}.json", f"out/masks/{run.name}.safetensors"]
        assert load_mask(mask_file(run)).card["pooling"] == "cls"  # the tiny checkpoint's own
    if method == "finetune":  # what a pupil learns from
        expected += [f"out/teachers/{run.name}.safetensors"]
    found = [path for path in left_behind(run) if path not in ("out/answers", "out/masks", "out/teachers")]
    own = [path for path in found if re.sub(r"\.(json|npz|safetensors)$", "", Path(path).name) == run.name]
    assert own == sorted(expected)
    assert {Path(path).stem for path in found} == {path.stem for path in Path("out").glob("*.json")}  # no other files
    assert not checkpoints_of(run).exists()


@pytest.mark.parametrize("scope", ["encoder", "encoder+embeddings"])
@pytest.mark.parametrize(
    ("method", "sparsity"),
    [("adaprune", 0.0), ("adaprune", 1 / 3), ("adaprune", 0.999), ("magnitude", 0.9), ("random", 1 / 3)],
)
def test_exactly_k_connections_stay(ask, method, sparsity, scope):
    run = ask(method=method, sparsity=sparsity, scope=scope)
    record = adaprune.adapt(run)
    entry = record["mask"]
    assert record["cost"]["shipped_bytes"] == mask_file(run).stat().st_size
    encoder = load_encoder(run.model).model
    n = sum(module.weight.numel() for module in maskable(encoder, scope).values())
    kept = round((1 - sparsity) * n)
    assert (entry["kept"], entry["total"]) == (kept, n)
    mask = load_mask(mask_file(run))
    assert sum(int(part.sum()) for part in mask.masks.values()) == kept
    if scope == "encoder+embeddings":
        assert entry["seen_rows"]["total"] + entry["unseen_rows"]["total"] == entry["per_component"]["embed"]["total"]


def test_paper_recipe_keeps_exactly_k(ask):
    run = ask(recipe="paper", sparsity=0.7, scope="encoder+embeddings", learning_rate=1e-4, epochs=2, batch_size=2)
    entry = adaprune.adapt(run)["mask"]
    assert entry["kept"] == round(0.3 * entry["total"])


@pytest.mark.parametrize("method", ["adaprune", "random"])
def test_the_mask_file_alone_gives_the_recorded_metrics(ask, method):
    run = ask(method=method, scope="encoder+embeddings")
    record = adaprune.adapt(run)
    encoder = load_encoder(run.model)
    model = apply_mask(encoder.model, load_mask(mask_file(run)))
    paths = paths_of(record_path(run))
    job = prepare(run, plan_for(run), paths, adaprune.load_task(run.task), load_encoder(run.model))
    for split in ("validation", "selection"):
        said = predict(model, job.sentences, split, job.settings)
        assert job.task.metrics(said, job.task.splits[split]["label"]) == record["metrics"][split]


def test_the_checkpoints_weights_are_untouched_on_disk_and_in_memory(ask, monkeypatch):
    run = ask()
    loaded = []

    def load_and_remember(model):
        encoder = load_encoder(model)
        loaded.append((encoder, tensor_hashes(encoder.model), type(encoder.model.encoder.layer[0].output.dense)))
        return encoder

    monkeypatch.setattr(HOUSE, "load_encoder", load_and_remember)
    adaprune.adapt(run)
    ((encoder, before, kind),) = loaded
    assert tensor_hashes(encoder.model) == before == tensor_hashes(load_encoder(run.model).model)
    assert type(encoder.model.encoder.layer[0].output.dense) is kind


def test_weights_intact_is_checked_and_not_assumed(ask, monkeypatch):
    real = METHODS["features"]

    def careless(job):
        outcome = real.function(job)
        with torch.no_grad():
            job.model.encoder.embeddings.LayerNorm.bias[0] += 1e-7
        return outcome

    monkeypatch.setitem(METHODS, "features", replace(real, function=careless))
    assert adaprune.adapt(ask(method="features"))["weights_intact"] is False


def test_a_finished_run_is_not_run_again(ask, monkeypatch):
    run = ask(method="features")
    first = adaprune.adapt(run)

    def again(job):
        pytest.fail("trained again")

    monkeypatch.setitem(METHODS, "features", replace(METHODS["features"], function=again))
    monkeypatch.setattr(HOUSE, "load_encoder", lambda model: pytest.fail("loaded again"))
    (checkpoints_of(run) / "checkpoint-1").mkdir(parents=True)  # killed just after the record was written
    assert adaprune.adapt(run) == first
    assert not checkpoints_of(run).exists()
    assert adaprune.adapt(run.model_copy(update={"checkpoint_steps": 7})) == first


def test_a_finished_run_of_other_rows_or_another_recipe_is_refused(ask, ten_sentences):
    run = ask(method="features")
    first = adaprune.adapt(run)
    assert first["environment"]["plan"]["batch_size"] == 4 and first["environment"]["plan"]["epochs"] == 1
    data = ten_sentences / "train.csv"
    before = data.read_text()
    data.write_text(before.replace("dull", "duller"))
    with pytest.raises(ValueError, match="the data have changed: choose another results_dir"):
        adaprune.adapt(run)
    data.unlink()
    assert adaprune.adapt(run) == first  # a record needs no data
    data.write_text(before)
    path = Path(run.results_dir, f"{run.name}.json")
    path.write_text(path.read_text().replace('"reach": 0.4', '"reach": 0.7'))
    with pytest.raises(ValueError, match=r"reach was 0.7, is 0.4: choose another results_dir, or delete the record"):
        adaprune.adapt(run)


def test_a_finished_run_from_before_pooling_was_a_run_with_cls(ask):
    """Its plan does not say. The paper's recipe has it so today, the tuned one has the checkpoint's own."""
    for recipe in ("paper", "tuned"):
        run = ask(method="features", recipe=recipe)
        first = adaprune.adapt(run)
        assert first["environment"]["plan"]["pooling"] == {"paper": "cls", "tuned": "own"}[recipe]
        path = record_path(run)
        old, count = re.subn(r',\n\s+"pooling": "(cls|own)"', "", path.read_text())
        assert count == 1
        path.write_text(old)
        assert "pooling" not in read_record(path)["environment"]["plan"]
    with pytest.raises(ValueError, match="pooling was 'cls', is 'own': choose another results_dir, or delete"):
        adaprune.adapt(run)
    assert adaprune.adapt(ask(method="features", recipe="paper"))["metrics"]


READS = [
    ({}, "own", "mean"),
    ({"recipe": "paper"}, "cls", "cls"),
]


@pytest.mark.parametrize(("fields", "asked", "pooling"), READS)
def test_the_head_reads_as_the_checkpoint_was_made_or_as_the_papers(ask, tmp_path, fields, asked, pooling):
    shutil.copytree("tiny", "pooled")
    (tmp_path / "pooled" / "1_Pooling").mkdir()
    (tmp_path / "pooled" / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    run = ask(model="pooled", method="magnitude", **fields)
    record = adaprune.adapt(run)
    mask = load_mask(mask_file(run))
    assert mask.card["pooling"] == pooling and apply_mask(load_encoder("pooled").model, mask).head.pooling == pooling
    assert record["environment"]["plan"]["pooling"] == asked


def test_the_seed_decides(ask):
    masks = []
    for seed, folder in ((0, "a"), (0, "b"), (1, "c")):
        run = ask(seed=seed, results_dir=folder, epochs=2, batch_size=2, learning_rate=1e-3)
        record = adaprune.adapt(run)
        masks.append((load_mask(mask_file(run)), [point.get("loss") for point in record["curve"]]))
    (one, losses), (same, same_losses), (other, other_losses) = masks
    assert losses == same_losses != other_losses
    assert all(torch.equal(one.masks[name], same.masks[name]) for name in one.masks)
    assert all(torch.equal(one.head[name], same.head[name]) for name in one.head)
    assert any(not torch.equal(one.masks[name], other.masks[name]) for name in one.masks)


def test_cost_and_curve_are_plausible(ask):
    record = adaprune.adapt(ask(epochs=4, batch_size=2, sparsity=0.8))
    cost, curve = record["cost"], record["curve"]
    assert cost["steps"] == 20
    assert 0 < cost["train_seconds"] < 120
    assert 50e6 < cost["peak_memory_bytes"] < 64e9
    assert cost["device"] == "cpu"
    assert cost["examples_per_second"] == pytest.approx(20 * 2 / cost["train_seconds"], rel=0.01)
    sparsity = [point["sparsity"] for point in curve]
    assert all(after >= before - 0.01 for before, after in zip(sparsity, sparsity[1:], strict=False))
    assert sparsity[0] < 0.4
    assert sparsity[-1] == pytest.approx(0.8, abs=0.005)
    assert [point["step"] for point in curve if "selection_accuracy" in point] == [5, 10, 15, 20]


def test_a_regression_is_adapted_too(ask, tmp_path):
    folder = tmp_path / "stars"
    folder.mkdir()
    rows = [f"{text},{stars}" for text, stars in (("a fine film", 0.9), ("dull", -0.7), ("funny", 0.5), ("flat", -0.2))]
    for split, times in (("train", 3), ("validation", 1)):
        content = "\n".join(rows * times).replace(",", " film," if split == "train" else " cast,")
        (folder / f"{split}.csv").write_text(f"text,label\n{content}\n")
    record = adaprune.adapt(ask(task="stars"))
    assert set(record["metrics"]["validation"]) == {"spearman", "pearson"}
    assert load_mask(mask_file(ask(task="stars"))).card["labels"] == []


def test_bf16_runs_on_a_cpu(ask):
    run = ask(precision="bf16", scope="encoder+embeddings")
    record = adaprune.adapt(run)
    assert record["weights_intact"]
    assert record["mask"]["kept"] == round(0.5 * record["mask"]["total"])


# ---------------------------------------------------------------- checkpoints on the way


def test_checkpoints_hold_only_what_is_trained(ask, monkeypatch):
    run = ask(checkpoint_steps=1, epochs=2)
    monkeypatch.setattr(HOUSE, "write_record", lambda *args: pytest.fail("stopped while the checkpoints are there"))
    with pytest.raises(pytest.fail.Exception):
        adaprune.adapt(run)
    whole = last_whole(checkpoints_of(run))
    names = {path.name for path in whole.iterdir()}
    trainer = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    assert names == {"model.safetensors", "whole.json"} | trainer  # no training_args.bin, which is a pickle
    with safe_open(whole / "model.safetensors", framework="pt") as file:
        assert all(name.endswith(".theta") or name.startswith("head.") for name in file.keys())  # noqa: SIM118
    assert len(list(checkpoints_of(run).glob("checkpoint-*"))) == 2


def test_no_checkpoints_where_none_are_asked(ask, monkeypatch):
    monkeypatch.setattr(PruningTrainer, "_save_checkpoint", lambda *args: pytest.fail("saved"))
    adaprune.adapt(ask(checkpoint_steps=0, method="features"))


def test_an_interrupted_run_on_changed_data_is_refused(ask, monkeypatch):
    run = ask(checkpoint_steps=1)
    with monkeypatch.context() as patch:
        nan_at(patch, 4)
        with pytest.raises(FloatingPointError):
            adaprune.adapt(run)
    with Path(run.task, "train.csv").open("a") as file:
        file.write("a superb cast,good\n")
    with pytest.raises(ValueError, match=r"had another data .*delete that folder"):
        adaprune.adapt(run)


def test_a_truncated_checkpoint_is_named(ask, monkeypatch):
    run = ask(checkpoint_steps=1)
    with monkeypatch.context() as patch:
        nan_at(patch, 3)
        with pytest.raises(FloatingPointError):
            adaprune.adapt(run)
    file = last_whole(checkpoints_of(run)) / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"optimizer\.pt is damaged"):
        adaprune.adapt(run)
    assert left_behind(run) == []


# ---------------------------------------------------------------- what must stop it


@pytest.mark.parametrize(("bad_step", "left"), [(1, "none"), (2, "none"), (3, "checkpoint-1")])
def test_a_loss_that_is_no_number_stops_the_run(ask, monkeypatch, bad_step, left):
    """The state saved just before led to it, so the checkpoint before that one is the last good one."""
    run = ask(checkpoint_steps=1)
    nan_at(monkeypatch, bad_step)
    with pytest.raises(FloatingPointError, match=rf"loss is nan at step {bad_step}: .*{left}$"):
        adaprune.adapt(run)
    assert left_behind(run) == []


def test_a_learning_rate_beyond_all_bounds_stops_the_run(ask):
    run = ask(learning_rate=1e38, head_learning_rate=1e38, epochs=3, batch_size=2, checkpoint_steps=1)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        adaprune.adapt(run)
    assert left_behind(run) == []


def test_after_a_bad_loss_the_last_good_checkpoint_goes_on(ask, monkeypatch):
    run = ask(checkpoint_steps=1, epochs=2)
    with monkeypatch.context() as patch:
        nan_at(patch, 3)
        with pytest.raises(FloatingPointError, match="checkpoint-1$"):
            adaprune.adapt(run)
    again = adaprune.adapt(run)
    undisturbed = adaprune.adapt(ask(checkpoint_steps=1, epochs=2, results_dir="other"))
    assert again["metrics"] == undisturbed["metrics"]
    assert again["mask"] == undisturbed["mask"]


def test_a_file_in_place_of_the_results_folder_is_refused_before_anything_is_loaded(ask, monkeypatch, tmp_path):
    (tmp_path / "taken").write_text("")
    monkeypatch.setattr(HOUSE, "load_task", lambda *args: pytest.fail("loaded"))
    with pytest.raises(OSError, match="cannot write into results_dir 'taken'"):
        adaprune.adapt(ask(results_dir="taken"))


@pytest.mark.parametrize("place", ["adaprune.training.checkpoints.save_file", "torch.save"])
def test_a_disk_that_fills_up_leaves_no_record(ask, monkeypatch, place):
    run = ask(checkpoint_steps=1)

    def full(*args, **kwargs):
        if place == "torch.save":
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(place, full)
        with pytest.raises(OSError, match=r"cannot write .*checkpoint-1.*make room") as caught:
            adaprune.adapt(run)
    assert str(caught.value).count("make room") == 1
    assert left_behind(run) == []
    assert last_whole(checkpoints_of(run)) is None
    assert adaprune.adapt(run)["mask"]  # with room again


def test_a_record_that_cannot_be_written_costs_no_training(ask, monkeypatch):
    """The disk fills up at the very end: what was trained is still there for the next attempt."""
    run = ask(checkpoint_steps=1)

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(HOUSE, "write_record", full)
        with pytest.raises(OSError):
            adaprune.adapt(run)
    assert last_whole(checkpoints_of(run)).name == "checkpoint-3"
    assert adaprune.adapt(run)["cost"]["steps"] == 3


def test_what_the_machine_lacks_is_told_at_once(ask, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    with pytest.raises(ValueError, match=r"precision='fp16' needs a GPU: use precision='bf16'"):
        adaprune.adapt(ask(precision="fp16"))
    assert not Path("out").exists()


@pytest.mark.parametrize("fast", [True, False])
def test_a_run_in_bf16_warns_on_a_cpu_without_instructions_for_it(fast, ask, monkeypatch):
    monkeypatch.setattr("adaprune.training.job.lacks_bf16", lambda: not fast)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        check_machine(ask(precision="bf16"))
        check_machine(ask(precision="fp32"))
    said = [str(warning.message).partition(",")[0] for warning in heard]
    assert said == ([] if fast else ["precision='bf16' on this CPU"])


def test_a_sparsity_that_cannot_be_reached_is_refused_before_a_step(ask):
    run = ask(recipe="paper", penalty=2e-7)  # gamma as printed, and fixed
    with pytest.raises(ValueError, match="cannot reach a sparsity of 0.5.*It needs"):
        adaprune.adapt(run)
    assert left_behind(run) == []


def test_more_tokens_than_the_model_has_positions_for_are_refused(ask):
    with pytest.raises(ValueError, match="max_length must be at most 32, the positions of model 'tiny', got 33"):
        adaprune.adapt(ask(max_length=33))


@pytest.mark.parametrize("fields", [{}, {"method": "random"}, {"scope": "encoder+embeddings"}, {"pattern": "units"}])
def test_a_sparsity_that_keeps_nothing_is_refused_with_the_largest_that_keeps_one(ask, fields):
    run = ask(sparsity=0.99999999, **fields)
    with pytest.raises(ValueError, match=r"^sparsity 0\.99999999 keeps none of the \d+ [\w ]+ in scope") as caught:
        adaprune.adapt(run)
    assert left_behind(run) == []
    total, most = re.search(r"of the (\d+) .*: at most ([\d.]+) keeps one$", str(caught.value)).groups()
    assert round((1 - float(most)) * int(total)) == 1
    if fields.get("method") == "random":
        assert adaprune.adapt(ask(sparsity=float(most), **fields))["mask"]["kept"] == 1


def test_units_without_an_attention_head_are_refused(ask):
    """Long before no neuron is left: there are fewer heads."""
    with pytest.raises(ValueError, match=r"^sparsity 0\.96 keeps none of the \d attention heads in scope"):
        adaprune.adapt(ask(sparsity=0.96, pattern="units"))


# ---------------------------------------------------------------- a method of one's own


def smallest(job):
    """Keeps the k connections with the smallest |w|, then trains the head."""
    modules = maskable(job.model.encoder, job.run.scope)
    masks = cut(job, {name: -module.weight.detach().abs() for name, module in modules.items()})
    set_masks(job.model.encoder, masks)
    return Outcome(fit_head(job), masks)


def centred(job):
    """Changes a weight and masks nothing."""
    with torch.no_grad():
        job.model.encoder.embeddings.LayerNorm.bias[0] += 1
    return Outcome(fit_head(job))


LINE = "the smallest |w| stay, a control for magnitude"


def test_a_method_of_ones_own_bears_its_name_everywhere(ask, forget):
    asked = ask(sparsity=0.7, method="magnitude")  # the method beside it counts
    record = adaprune.adapt(asked, method=Method(smallest, line=LINE))
    run = ask(sparsity=0.7, method="smallest")  # known by name from now on
    assert run.name == asked.name.replace("magnitude", "smallest")
    assert record["run"] == run.model_dump()
    assert record == read_record(Path("out") / f"{run.name}.json")
    masks = ["out/masks", f"out/masks/{run.name}.json", f"out/masks/{run.name}.safetensors"]
    assert left_behind(run) == sorted([f"out/{run.name}.json", *masks, "out/answers", f"out/answers/{run.name}.npz"])
    assert record["weights_intact"] is True
    stored, weights = load_mask(mask_file(run)), maskable(load_encoder("tiny").model)
    assert stored.card["method"] == "smallest"
    assert stored.kept == record["mask"]["kept"] == round(0.3 * record["mask"]["total"])
    large = keep_top({name: module.weight.detach().abs() for name, module in weights.items()}, 0.7)
    assert all(torch.equal(mask, ~large[name]) for name, mask in stored.masks.items())

    adaprune.adapt(asked)
    rows = adaprune.table("out").set_index("method")
    assert list(rows.index) == ["magnitude", "smallest"]
    assert rows.loc["smallest", "score"] == record["metrics"]["validation"]["accuracy"]


def test_a_finished_run_of_ones_own_method_is_read_and_not_run_again(ask, forget):
    own = Method(smallest, line=LINE)
    record = adaprune.adapt(ask(), method=own)
    run = ask(method="smallest")
    path = record_path(run)
    written = path.stat().st_mtime_ns
    assert adaprune.adapt(ask(), method=replace(own, line="in other words")) == adaprune.adapt(run) == record
    assert path.stat().st_mtime_ns == written
    del METHODS["smallest"]  # as another process has it: test_trainer.py has a real one
    assert read_record(path) == record
    assert list(adaprune.table("out")["method"]) == ["smallest"]
    with pytest.raises(ValueError, match=r"method must be one of 'adaprune', .*, got 'smallest'"):
        ask(method="smallest")


def test_what_a_method_says_of_itself_is_held_against_what_it_leaves(ask, forget, caplog):
    open_about_it = Method(centred, line="a weight is changed", mask=False, weights_intact=False)
    record = adaprune.adapt(ask(), method=open_about_it)
    assert record["weights_intact"] is False and record["mask"] is None
    every = sum(parameter.numel() for parameter in load_encoder("tiny").model.parameters())
    assert record["cost"]["shipped_bytes"] == 4 * (every + 2 + 2 * 16 + 2)
    with pytest.raises(ValueError, match="method 'centred' says mask=True and left none"):
        adaprune.adapt(ask(results_dir="other"), method=replace(open_about_it, mask=True))
    with pytest.raises(ValueError, match="method 'smallest' says mask=False and left a mask"):
        adaprune.adapt(ask(results_dir="other"), method=Method(smallest, line=LINE, mask=False))

    def scaled(job):
        for parameter in list(job.model.encoder.parameters())[:2]:
            parameter.data *= 1.01
        return smallest(job)

    assert not left_behind(ask(results_dir="other"))
    record = adaprune.adapt(ask(results_dir="scaled"), method=Method(scaled, line=LINE))
    assert "'scaled' says weights_intact=True and has changed 2 tensors, embeddings." in caplog.text
    assert not record["weights_intact"] and not (Path("scaled") / "masks").exists()
    assert record["cost"]["shipped_bytes"] == 4 * (every + 2 + 2 * 16 + 2)  # not the head alone


def test_settings_of_ones_own_method_hold_and_what_it_does_not_read_is_refused(ask, forget):
    with pytest.raises(ValueError, match=r"reach=0.5 would change nothing in method 'smallest': leave it out"):
        adaprune.adapt(ask(reach=0.5), method=Method(smallest, line=LINE))
    own = Method(smallest, line=LINE, tuned={"batch_size": 3, "head_learning_rate": 0.1})
    plan = adaprune.adapt(ask(batch_size=0, head_learning_rate=0.5), method=own)["environment"]["plan"]
    assert plan["batch_size"] == 3 and plan["head_learning_rate"] == 0.5  # the run's own goes before the method's


def named_like_another() -> Method:
    def magnitude(job):
        return smallest(job)

    return Method(magnitude, line="my own")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: smallest,
            r"method must be an adaprune.Method, got function: wrap the function, Method\(my_function, line",
        ),
        (lambda: "smallest", r"method must be an adaprune.Method, got str"),
        (lambda: Method(smallest), "missing 1 required positional argument: 'line'"),
        (lambda: Method(smallest, line=" "), "method 'smallest' needs a line that says what it does, got ' '"),
        (
            lambda: Method(smallest, line=LINE, tuned={"alpha": 1}),
            "sets 'alpha'; a recipe's settings are epochs",
        ),
        (lambda: Method(smallest, line=LINE, paper={"beta": 1}), "method 'smallest' sets 'beta'"),
        (named_like_another, r"there already is a method 'magnitude' \(one-shot .*\): give your function another name"),
        (lambda: Method(lambda job: smallest(job), line=LINE), "'<lambda>' is not a name: use `def`"),
    ],
    ids=["function", "name", "no line", "empty line", "no setting", "none of the paper's", "taken", "lambda"],
)
def test_what_is_no_method_of_ones_own_is_refused_in_a_sentence(ask, monkeypatch, make, message):
    monkeypatch.setattr(HOUSE, "load_task", lambda *args: pytest.fail("loaded"))
    before = dict(METHODS)
    with pytest.raises((TypeError, ValueError), match=message):
        adaprune.adapt(ask(), method=make())
    assert before == METHODS
    assert not Path("out").exists()
