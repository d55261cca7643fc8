"""fit and evaluate: resuming after kill -9, several processes, what is put back at the end."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from adaprune.data.tasks import load_task
from adaprune.deploy.mask_file import load_mask
from adaprune.masks.layers import attach, maskable, thetas_of, threshold_of
from adaprune.masks.optim import AdaPrune
from adaprune.masks.schedules import SparsityControl
from adaprune.runs.method import METHODS
from adaprune.runs.paths import paths_of, record_path
from adaprune.runs.recipes import plan_for
from adaprune.runs.records import read_record, table
from adaprune.runs.run import Run
from adaprune.training import fit, predict, prepare, score, steps_in
from adaprune.training.checkpoints import facts_of
from adaprune.training.encoders import load_encoder, tensor_hashes
from adaprune.training.job import Fit, Outcome
from adaprune.training.trainer import PruningTrainer, Trainer, arguments_of

HERE = Path(__file__).parent
# Offline, one thread, and the package found from wherever the tests are started.
SURROUNDINGS = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
SURROUNDINGS["PYTHONPATH"] = str(HERE.parents[1])


@pytest.fixture
def fields(ten_sentences, tiny_model_dir, tmp_path, monkeypatch) -> dict:
    """A small run, by short paths: they are part of its name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(tiny_model_dir)
    return {
        "task": ten_sentences.name,
        "model": "tiny",
        "results_dir": "out",
        "max_length": 16,
        "batch_size": 2,
        "epochs": 2,
    }


def job_of(fields: dict, **more):
    run = Run(**{**fields, **more})
    paths = paths_of(record_path(run))
    return prepare(run, plan_for(run), paths, load_task(run.task), load_encoder(run.model))


def pruning_of(job, rate=1e-4, rule="adam"):
    """theta attached to the job's encoder, its optimiser and a control, as the method makes them."""
    encoder = job.model.encoder
    weights = {name: module.weight for name, module in maskable(encoder, job.run.scope).items()}
    thetas = attach(encoder, {name: weight.detach().abs() for name, weight in weights.items()})
    masked = {"params": list(thetas.values()), "lr": rate, "masked": True, "threshold": threshold_of(encoder)}
    optimiser = AdaPrune([masked, {"params": list(job.model.head.parameters()), "lr": 1e-3}], rule=rule)
    return optimiser, SparsityControl("cubic", 0.5, end=6)


# ---------------------------------------------------------------- kill -9

MOMENTS = random.Random(5)
SCENES = {  # nine training sentences: five batches of two an epoch
    "whenever": (
        {"epochs": 6, "checkpoint_steps": 2},
        [{"after": MOMENTS.uniform(0, 0.2)}, {"after": MOMENTS.uniform(0, 0.2)}],
    ),
    "at the end of an epoch": (
        {"epochs": 3, "checkpoint_steps": 5},
        [{"at": "seal", "time": 1, "when": "after"}, {"at": "seal", "time": 1, "when": "before"}],
    ),
    "both scopes": (
        {"epochs": 3, "checkpoint_steps": 2, "scope": "encoder+embeddings"},
        [{"at": "seal", "time": 3, "when": "before"}, {"at": "seal", "time": 2, "when": "after"}],
    ),
    "paper": (
        {"epochs": 3, "checkpoint_steps": 4, "recipe": "paper", "learning_rate": 1e-4},
        [{"at": "seal", "time": 2, "when": "after"}],
    ),
    "units": (
        {"epochs": 3, "checkpoint_steps": 4, "pattern": "units", "learning_rate": 1e-3},
        [{"at": "seal", "time": 2, "when": "after"}],
    ),
    "rounds": (
        {"epochs": 2, "checkpoint_steps": 3, "method": "imp", "sparsity": 0.36},
        [{"at": "seal", "time": 3, "when": "after"}, {"at": "seal", "time": 2, "when": "before"}],
    ),
    "a copy": (
        {"epochs": 2, "checkpoint_steps": 3, "method": "gmp"},
        [{"at": "seal", "time": 3, "when": "after"}, {"after": MOMENTS.uniform(0, 0.3)}],
    ),
    "a method of one's own": (
        {"epochs": 2, "checkpoint_steps": 4, "method": "upside_down"},
        [{"at": "seal", "time": 1, "when": "after"}],
    ),
    "finetune, best state": (
        {"epochs": 4, "checkpoint_steps": 3, "method": "finetune"},
        [{"at": "save_trained", "time": 3, "when": "after"}, {"after": MOMENTS.uniform(0, 0.1)}],
    ),
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A folder that outlives a test, for the scenes, which are played once for all tests."""
    return tmp_path_factory.mktemp("killed"), {}


@pytest.fixture
def killed(stage, ten_sentences, tiny_model_dir):
    """Every scene, once through and once killed; scene -> (folder of the one, of the other, codes, stderr)."""
    root, played = stage
    if not played:
        shutil.copytree(ten_sentences, root / "ten")
        (root / "tiny").symlink_to(tiny_model_dir)
        played.update(play(root))
    return played


def play(root: Path) -> dict[str, tuple]:
    """All scenes in one process, so that the slow imports happen once."""
    asked, folders = [], {}
    for number, (scene, (more, kills)) in enumerate(SCENES.items()):
        folders[scene] = (root / f"{number}_whole", root / f"{number}_killed")
        for folder, killing in zip(folders[scene], ([], kills), strict=True):
            fields = {"task": "ten", "model": "tiny", "batch_size": 2, "max_length": 16, **more}
            asked.append({"run": {**fields, "results_dir": str(folder)}, "kills": killing})
    command = [sys.executable, "-W", "error", str(HERE / "killed_runs.py"), json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, env=SURROUNDINGS, cwd=root, timeout=400)
    assert done.returncode == 0, done.stderr
    codes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    pairs = list(zip(codes[::2], codes[1::2], strict=True))
    return {scene: (*folders[scene], *pairs[n], done.stderr) for n, scene in enumerate(SCENES)}


@pytest.mark.parametrize("scene", SCENES)
def test_a_killed_run_ends_as_if_nothing_had_happened(killed, scene, monkeypatch):
    whole, resumed, whole_codes, killed_codes, stderr = killed[scene]
    monkeypatch.chdir(whole.parent)  # masks name their base as the run did, from there
    assert whole_codes == [0], stderr[-4000:]
    assert killed_codes[-1] == 0, stderr[-4000:]
    # a kill at a set call always hits; one from outside can come too late on a fast machine
    must = [kill for kill in SCENES[scene][1] if "at" in kill]
    assert killed_codes.count(-signal.SIGKILL) >= len(must)

    one, two = (read_record(next(folder.glob("*.json"))) for folder in (whole, resumed))
    assert (whole / "model.hashes").read_text() == (resumed / "model.hashes").read_text()
    assert one["metrics"] == two["metrics"]
    assert one["mask"] == two["mask"]

    def without_time(record):
        return [{key: value for key, value in point.items() if key != "elapsed"} for point in record["curve"]]

    assert without_time(one) == without_time(two)
    if one["mask"]:
        before, after = (load_mask(next(folder.glob("masks/*.safetensors"))) for folder in (whole, resumed))
        assert all(torch.equal(before.masks[name], after.masks[name]) for name in before.masks)
        assert all(torch.equal(before.head[name], after.head[name]) for name in before.head)
    assert not list(resumed.glob(".checkpoints/*"))


def test_a_method_that_this_process_does_not_know_is_read(killed):
    folder, _, _, _, stderr = killed["a method of one's own"]
    assert "upside_down" not in METHODS
    (path,) = folder.glob("*.json")
    assert "_method~upside_down_" in path.name, stderr[-4000:]
    record = read_record(path)
    assert record["run"]["method"] == "upside_down" and record["weights_intact"] is True
    assert record["mask"]["kept"] == round(0.5 * record["mask"]["total"])
    assert load_mask(folder / "masks" / f"{path.stem}.safetensors").card["method"] == "upside_down"
    assert table(folder)["method"].tolist() == ["upside_down"]


# ---------------------------------------------------------------- several processes

TWO = """
import importlib, json, sys, pathlib, torch
from adaprune import Run, load_encoder, load_task
from adaprune.adapt import adapt
from adaprune.training import predict, prepare
from adaprune.training.encoders import tensor_hashes
from accelerate import PartialState
run = Run(**json.loads(sys.argv[1]))
house = importlib.import_module('adaprune.adapt')
said, score = {}, house.score
def remember(job, task):
    said["model"] = tensor_hashes(job.model)
    logits = torch.from_numpy(predict(job.model, job.sentences, "validation", job.settings))
    plain = []
    with torch.no_grad():
        for row in job.sentences.splits["validation"]:
            batch = job.sentences.collate([row])
            plain.append(job.model(**batch).logits[0])
    said["same_logits"] = bool(torch.allclose(logits, torch.stack(plain), atol=1e-5))
    return score(job, task)
house.score = remember
writes = []
for name in ("save_mask", "write_record"):
    def count(*args, name=name, real=getattr(house, name), **kwargs):
        writes.append(name)
        return real(*args, **kwargs)
    setattr(house, name, count)
said["metrics"] = adapt(run)["metrics"]
said["writes"] = writes
rank = PartialState().process_index
pathlib.Path(run.results_dir, f"rank{rank}.said").write_text(json.dumps(said))
if PartialState().num_processes > 1:
    torch.distributed.destroy_process_group()
"""


def test_two_processes_make_one_record(fields, tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    run = Run(**fields, scope="encoder+embeddings", checkpoint_steps=2)
    # What `accelerate launch` starts for several GPUs; its --cpu alone starts one process, whatever is asked.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    command = [*launch, json.dumps(run.model_dump())]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**SURROUNDINGS, "ACCELERATE_USE_CPU": "true"}, timeout=400
    )
    assert done.returncode == 0, done.stderr
    out = Path(run.results_dir)
    first, second = (json.loads((out / f"rank{rank}.said").read_text()) for rank in (0, 1))
    assert first["model"] == second["model"]
    assert first["same_logits"] and second["same_logits"]
    assert first["metrics"] == second["metrics"]
    assert first["writes"] == ["save_mask", "write_record"]
    assert second["writes"] == []
    assert [path.name for path in out.glob("*.json")] == [f"{run.name}.json"]
    record = read_record(out / f"{run.name}.json")
    assert record["cost"]["steps"] == 6  # nine sentences, two processes, batches of two: three steps an epoch
    assert record["mask"]["kept"] == round(0.5 * record["mask"]["total"])
    load_mask(out / "masks" / f"{run.name}.safetensors")


# ---------------------------------------------------------------- in one process


def test_theta_moves_alike_inside_backward_and_after_it(fields, monkeypatch):
    """Clipping must not touch theta in the one case when it cannot in the other."""
    ends, hooked = [], []
    for inside in (True, False):
        job = job_of(fields, scope="encoder+embeddings", results_dir=f"inside_{inside}")
        optimiser, control = pruning_of(job)
        start = {name: theta.detach().clone() for name, theta in thetas_of(job.model).items()}
        hook = optimiser.step_in_backward if inside else list
        monkeypatch.setattr(optimiser, "step_in_backward", lambda hook=hook: hooked.append(hook()) or hooked[-1])
        fit(job.model, job.sentences, optimiser, job.settings, control)
        ends.append({name: theta.detach().clone() for name, theta in thetas_of(job.model).items()})
    assert [len(handles) for handles in hooked] == [len(start), 0]  # a hook for each theta where one process trains
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert not any(torch.equal(ends[0][name], start[name]) for name in start)  # at a rate that warms up from 0


def test_hooks_are_gone_after_training(fields):
    job = job_of(fields)
    optimiser, control = pruning_of(job)
    fit(job.model, job.sentences, optimiser, job.settings, control)
    theta = next(iter(thetas_of(job.model).values()))
    batch = job.sentences.collate([job.sentences.splits["train"][0]])
    job.model(**batch).loss.backward()
    assert theta.grad is not None


@pytest.mark.parametrize("epochs", [1, 1.5, 0.3, 2])
def test_steps_in_is_what_the_trainer_takes(fields, epochs):
    job = job_of(fields, method="features", epochs=epochs)
    optimiser = torch.optim.AdamW(job.model.head.parameters(), lr=1e-3)
    done = fit(job.model, job.sentences, optimiser, job.settings)
    assert done.steps == steps_in(9, job.settings)
    scored = [point["step"] for point in done.curve if "selection_loss" in point]
    assert scored[-1] == done.steps  # the end is scored, whether an epoch ends there or not
    assert len(scored) == math.ceil(epochs)


@pytest.mark.parametrize("epochs, every", [(20, 1), (21, 2), (50, 3)])
def test_of_many_epochs_about_twenty_are_scored(fields, epochs, every):
    job = job_of(fields, method="features", epochs=epochs)
    done = fit(job.model, job.sentences, torch.optim.AdamW(job.model.head.parameters(), lr=1e-2), job.settings)
    batches = done.steps // epochs
    scored = [point["step"] // batches for point in done.curve if "selection_loss" in point]
    assert scored == sorted({*range(every, epochs + 1, every), epochs})


def test_order_of_batches_depends_on_seed_and_epoch_alone(fields):
    job = job_of(fields, method="features")
    optimiser = torch.optim.AdamW(job.model.head.parameters(), lr=1e-3)
    trainer = PruningTrainer(job.model, arguments_of(job.settings), job.sentences, optimiser, job.settings, None)
    sampler = trainer._get_train_sampler()
    torch.manual_seed(1)
    first = list(sampler)
    torch.manual_seed(2)
    assert list(sampler) == first
    assert sorted(first) == list(range(9))
    sampler.epoch = 1
    assert list(sampler) != first


def test_the_best_state_is_put_back(fields, monkeypatch):
    """Scores that fall from the third epoch on: the state after epoch three has to be the one that is left."""
    job = job_of(fields, method="features", epochs=4)
    scores = iter([0.2, 0.9, 0.9, 0.1])  # of equal ones the later
    kept = []
    real = PruningTrainer.evaluate

    def evaluate_and_remember(self, *args, **kwargs):
        kept.append(tensor_hashes(self.model))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(PruningTrainer, "evaluate", evaluate_and_remember)
    monkeypatch.setattr(
        PruningTrainer, "_metrics", lambda self, prediction: {"accuracy": next(scores), "f1_macro": 0.0}
    )
    optimiser = torch.optim.AdamW(job.model.head.parameters(), lr=1e-2)
    fit(job.model, job.sentences, optimiser, job.settings)
    assert len(set(map(str, kept))) == 4
    assert tensor_hashes(job.model) == kept[2]


def test_only_states_at_the_target_sparsity_compete(fields, monkeypatch):
    """The first epoch scores best, but there the mask still keeps too much."""
    job = job_of(fields, epochs=3)
    optimiser, _ = pruning_of(job)
    control = SparsityControl("cubic", 0.5, end=15)
    scores = iter([1.0, 0.8, 0.7])
    monkeypatch.setattr(
        PruningTrainer, "_metrics", lambda self, prediction: {"accuracy": next(scores), "f1_macro": 0.0}
    )
    fit(job.model, job.sentences, optimiser, job.settings, control)
    assert facts_of(job.settings.folder / "best.safetensors")["step"] == "15"


def test_predictions_come_in_the_order_of_the_rows(fields):
    job = job_of(fields)
    logits = predict(job.model.eval(), job.sentences, "train", job.settings)
    with torch.no_grad():
        for row, found in zip(job.sentences.splits["train"], logits, strict=True):
            expected = job.model(**job.sentences.collate([row])).logits[0].numpy()
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_predictions_are_put_together_once_and_are_the_trainers_own(fields, monkeypatch):
    """The Trainer would copy all earlier batches with each new one."""
    job, joined = job_of(fields), []

    def small(settings, **more):
        arguments = arguments_of(settings, **more)
        arguments.per_device_eval_batch_size = 2
        return arguments

    rows = job.sentences.splits["train"]
    order = np.argsort([len(ids) for ids in rows["input_ids"]], kind="stable")
    whole = Trainer(job.model, small(job.settings), data_collator=job.sentences.collate)
    expected = whole.predict(rows.select(order)).predictions[np.argsort(order)]
    monkeypatch.setattr("adaprune.training.trainer.arguments_of", small)
    monkeypatch.setattr("adaprune.training.fitting.TOGETHER", 2)
    monkeypatch.setattr("transformers.trainer_pt_utils.nested_concat", lambda *found, **_: joined.append(found))
    found = predict(job.model, job.sentences, "train", job.settings)
    assert len(rows) > 2 * 2 and not joined
    assert found.dtype == expected.dtype and np.array_equal(found, expected)


def test_evaluating_changes_nothing(fields):
    job = job_of(fields)
    before = tensor_hashes(job.model)
    scores = score(job, Outcome(Fit()))[0]["validation"]
    assert set(scores) == {"accuracy", "f1_macro"}
    assert tensor_hashes(job.model) == before
    assert not job.settings.folder.exists() or not list(job.settings.folder.iterdir())


def test_several_gpus_are_not_used_behind_our_back(fields):
    assert arguments_of(job_of(fields).settings).n_gpu <= 1
