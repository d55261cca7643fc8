"""gmp and imp: schedules against their formulae, what a round starts from, and stops at any moment."""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import adaprune
from adaprune.deploy.mask_file import load_mask
from adaprune.masks.cuts import keep_top
from adaprune.masks.layers import maskable
from adaprune.methods.gmp import GradualMagnitude
from adaprune.methods.imp import sparsities
from adaprune.runs.method import METHODS
from adaprune.runs.paths import mask_path
from adaprune.training import add_fits
from adaprune.training import trainer as training
from adaprune.training.checkpoints import last_whole, stage
from adaprune.training.encoders import load_encoder, tensor_hashes
from adaprune.training.fitting import hold_zeros
from adaprune.training.job import Fit, Settings

GMP, IMP = (importlib.import_module(f"adaprune.methods.{name}") for name in ("gmp", "imp"))
STAGES = importlib.import_module("adaprune.training.checkpoints")


# ---------------------------------------------------------------- schedules


@pytest.mark.parametrize(("end", "interval"), [(10, 1), (60, 1), (120, 2)])
def test_zeros_follow_zhu_and_gupta(end, interval):
    weights = {"w": torch.nn.Parameter(torch.randn(40, 25, generator=torch.Generator().manual_seed(0)))}
    order = weights["w"].detach().flatten().abs().argsort()
    control = GradualMagnitude(weights, keep_top, 0.8, end)
    scheduled = 0
    for step in range(1, end + 10):
        assert control.update(step) is False
        if step <= end and step % interval == 0:
            scheduled = 1000 - round(1000 * (1 - 0.8 * (1 - (1 - step / end) ** 3)))
        flat = weights["w"].detach().flatten()
        assert int((flat == 0).sum()) == scheduled == round(1000 * control.sparsity())
        assert set((flat == 0).nonzero().flatten().tolist()) == set(order[:scheduled].tolist())
    assert scheduled == 800


def test_the_last_cut_is_at_the_end_wherever_that_falls():
    weights = {"w": torch.nn.Parameter(torch.arange(1.0, 101.0))}
    control = GradualMagnitude(weights, keep_top, 0.5, 101)  # cuts at even steps
    for step in range(1, 102):
        control.update(step)
    assert control.sparsity() == 0.5


def test_rounds_by_hand():
    assert sparsities(0.488) == pytest.approx([0.2, 0.36, 0.488])
    assert sparsities(0.5) == pytest.approx([0.2, 0.36, 0.488, 0.5])
    nine = [0.2, 0.36, 0.488, 0.5904, 0.67232, 0.737856, 0.7902848, 0.83222784, 0.865782272, 0.8926258176, 0.9]
    assert sparsities(0.9) == pytest.approx(nine)
    assert sparsities(0.0) == []
    assert sparsities(0.05) == [0.05]


def test_a_zero_stays_zero_under_momentum():
    weight = torch.nn.Parameter(torch.ones(4))
    optimiser = torch.optim.AdamW([weight], lr=0.1)
    hold_zeros(optimiser, [weight])
    for step in range(6):
        if step == 3:
            with torch.no_grad():
                weight[1] = 0.0
        weight.grad = torch.ones(4)
        optimiser.step()
    assert weight[1] == 0 and (weight[[0, 2, 3]] != 0).all() and (weight[[0, 2, 3]] < 0.6).all()


# ---------------------------------------------------------------- rounds and copies


def test_every_round_starts_from_the_original_weights(ask, monkeypatch):
    run = ask(method="imp", sparsity=0.5)
    original = {name: module.weight.detach().clone() for name, module in maskable(load_encoder("tiny").model).items()}
    starts, heads, masks = [], [], []
    fit_weights, real_round = IMP.fit_weights, IMP._round

    def watch(job, *args):
        starts.append({name: module.weight.detach().clone() for name, module in maskable(job.model.encoder).items()})
        heads.append(tensor_hashes(job.model.head))
        return fit_weights(job, *args)

    def remember(*args):
        result = real_round(*args)
        masks.append(result[0])
        return result

    monkeypatch.setattr(IMP, "fit_weights", watch)
    monkeypatch.setattr(IMP, "_round", remember)
    adaprune.adapt(run)
    total = sum(weight.numel() for weight in original.values())
    assert [sum(int(m.sum()) for m in found.values()) for found in masks] == [
        round(share * total) for share in (0.8, 0.64, 0.512, 0.5)
    ]
    for before, after in zip(masks, masks[1:], strict=False):
        assert all(not (after[name] & ~before[name]).any() for name in before)
    everything = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in original.items()}
    for start, under in zip(starts, [everything, *masks], strict=False):
        assert all(torch.equal(start[name], original[name] * under[name]) for name in original)
    assert len({str(head) for head in heads}) == 1


ROUNDS = {"gmp": 2, "gmp_finetune": 1, "imp": 3, "imp_finetune": 3}  # a third removed is two rounds: 0.2, 0.333


@pytest.mark.parametrize("scope", ["encoder", "encoder+embeddings"])
@pytest.mark.parametrize("method", ROUNDS)
def test_a_run_is_exact_and_as_intact_as_declared(ask, method, scope):
    run = ask(method=method, sparsity=1 / 3, scope=scope, epochs=2)
    record = adaprune.adapt(run)
    assert record["weights_intact"] is run.kind.weights_intact is (not method.endswith("finetune"))
    assert record["mask"]["kept"] == round(2 / 3 * record["mask"]["total"])
    assert mask_path(run).exists() == run.kind.weights_intact
    assert record["cost"]["steps"] == ROUNDS[method] * 6
    assert [point["step"] for point in record["curve"]] == sorted(point["step"] for point in record["curve"])
    assert record["curve"][-1]["step"] == record["cost"]["steps"]
    if "gmp" in method:
        found = [point["sparsity"] for point in record["curve"] if "sparsity" in point]
        assert found == sorted(found) and found[-1] == pytest.approx(1 / 3)
    assert not Path("out", ".checkpoints", run.name).exists()


@pytest.mark.parametrize("method", ["gmp", "imp"])
def test_nothing_removed_is_nothing_changed(ask, method):
    record = adaprune.adapt(ask(method=method, sparsity=0.0))
    assert record["mask"]["kept"] == record["mask"]["total"]


@pytest.mark.parametrize("method", ["gmp_finetune", "imp_finetune"])
def test_trained_weights_are_zero_where_the_mask_is(ask, monkeypatch, method):
    caught = {}
    real = METHODS[method]

    def keep(job):
        caught["model"], caught["outcome"] = job.model, real.function(job)
        return caught["outcome"]

    monkeypatch.setitem(METHODS, method, replace(real, function=keep))
    adaprune.adapt(ask(method=method, sparsity=0.5, epochs=2))
    for name, module in maskable(caught["model"].encoder).items():
        assert torch.equal(module.weight != 0, caught["outcome"].masks[name].to(module.weight.device))


@pytest.mark.parametrize("method", ["gmp", "imp"])
def test_the_task_decides_the_mask(ask, method):
    def masks(**fields):
        run = ask(sparsity=0.5, **fields)
        adaprune.adapt(run)
        return load_mask(mask_path(run)).masks

    trained, plain = masks(method=method, epochs=2, batch_size=2), masks(method="magnitude")
    assert any(not torch.equal(trained[name], plain[name]) for name in plain)


# ---------------------------------------------------------------- stopped and started again


class Killed(BaseException):
    """Nothing in the package may catch it."""


def without_time(record):
    return [{key: value for key, value in point.items() if key != "elapsed"} for point in record["curve"]]


@pytest.mark.parametrize(
    ("method", "stops"),
    [
        ("gmp", [("seal", 2), ("rmtree", 1), ("seal", 1)]),
        ("imp", [("seal", 2), ("write_tensors", 2), ("seal", 2)]),
        ("imp_finetune", [("write_tensors", 1), ("seal", 5)]),
        ("gmp_finetune", [("seal", 2)]),
        ("snip", [("seal", 1), ("write_tensors", 1)]),
    ],
)
def test_a_stopped_run_ends_as_if_nothing_had_happened(ask, monkeypatch, method, stops):
    """Stopped at the n-th call of a function that writes or clears away, before it does so."""
    fields = {"method": method, "sparsity": 0.36, "epochs": 2, "checkpoint_steps": 2}
    whole = adaprune.adapt(ask(**fields))
    run = ask(**fields, results_dir="again")
    for function, time in stops:
        owner = training if function == "seal" else STAGES.shutil if function == "rmtree" else STAGES
        calls, real = [], getattr(owner, function)

        def deadly(*args, function=function, real=real, calls=calls, time=time, **kwargs):
            if function != "write_tensors" or args[0].name.startswith("stage-"):  # not those of checkpoints
                calls.append(args)
                if len(calls) == time:
                    raise Killed
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(owner, function, deadly)
            with pytest.raises(Killed):
                adaprune.adapt(run)
    record = adaprune.adapt(run)
    assert record["metrics"] == whole["metrics"] and record["mask"] == whole["mask"]
    assert without_time(record) == without_time(whole)
    if run.kind.weights_intact:
        one, two = load_mask(mask_path(ask(**fields))), load_mask(mask_path(run))
        assert all(torch.equal(one.masks[name], two.masks[name]) for name in one.masks)
        assert all(torch.equal(one.head[name], two.head[name]) for name in one.head)


def test_a_finished_stage_of_other_data_is_not_taken_over(ask, monkeypatch):
    run = ask(method="gmp", checkpoint_steps=0)
    with monkeypatch.context() as patch:
        patch.setattr(GMP, "with_head", lambda *args: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            adaprune.adapt(run)
    folder = Path("out", ".checkpoints", run.name)
    assert (folder / "stage-copy.safetensors").is_file() and last_whole(folder) is None
    with Path(run.task, "train.csv").open("a") as file:
        file.write("a superb cast,good\n")
    with pytest.raises(ValueError, match=r"had another data .*delete that folder"):
        adaprune.adapt(run)


def test_a_stage_is_done_once_and_its_damage_is_named(tmp_path):
    calls = []

    def work(settings):
        calls.append(settings)
        return {"m": torch.tensor([True, False])}, Fit([{"step": 1, "loss": 0.1}], 1, 0.3, 4)

    settings = Settings(tmp_path / "run")
    first, second = stage(settings, "a", work), stage(settings, "a", work)
    assert len(calls) == 1 and calls[0].folder == tmp_path / "run" / "a"
    assert first[1] == second[1] == Fit([{"step": 1, "loss": 0.1}], 1, 0.3, 4)
    assert second[0]["m"].tolist() == [True, False]
    file = tmp_path / "run" / "stage-a.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"stage-a\.safetensors is damaged"):
        stage(settings, "a", work)


def test_fits_in_a_row_by_hand():
    copy = Fit([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "sparsity": 0.5, "elapsed": 3.0}], 2, 4.0, 8)
    head = Fit([{"step": 1, "loss": 0.5, "elapsed": 1.0}], 3, 2.0, 12)
    assert add_fits(copy, head) == Fit(
        [{"step": 2, "sparsity": 0.5, "elapsed": 3.0}, {"step": 3, "loss": 0.5, "elapsed": 5.0}], 5, 6.0, 20
    )
    assert add_fits(head) == head
