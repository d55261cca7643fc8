"""Checkpoints hold what is trained, count once they are whole, and tell of damage by name."""

import errno
import fcntl
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import warnings

import pytest
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from adaprune.masks.layers import attach, maskable, threshold_of
from adaprune.masks.optim import AdaPrune
from adaprune.training import checkpoints
from adaprune.training.checkpoints import (
    alone,
    check_origin,
    facts_of,
    last_whole,
    load_trained,
    save_trained,
    seal,
    trained_tensors,
)
from adaprune.training.heads import AdaptedModel


@pytest.fixture
def model(tiny_model_dir) -> nn.Module:
    from adaprune.training.encoders import load_encoder

    torch.manual_seed(3)
    return AdaptedModel.for_task(load_encoder(str(tiny_model_dir)).model, 2)


def checkpoint(folder, step, **files):
    place = folder / f"checkpoint-{step}"
    place.mkdir(parents=True)
    for name, content in (files or {"model": b"abcdef"}).items():
        (place / name).write_bytes(content)
    return place


def test_round_trip_is_exact_and_holds_nothing_frozen(model, tmp_path):
    weights = {name: module.weight.detach().abs() for name, module in maskable(model.encoder).items()}
    attach(model.encoder, weights)
    before = {name: tensor.clone() for name, tensor in trained_tensors(model).items()}
    path = tmp_path / "model.safetensors"
    save_trained(model, path, score="0.1", threshold=(0.1).hex())
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
    thetas = {f"encoder.{name.removesuffix('.weight')}.theta" for name in weights}
    assert names == thetas | {f"head.{name}" for name in model.head.state_dict()}
    assert os.path.getsize(path) < 4 * sum(tensor.numel() for tensor in before.values()) + 4096

    with torch.no_grad():
        for tensor in trained_tensors(model).values():
            tensor.zero_()
    assert load_trained(model, path) == {"score": "0.1", "threshold": (0.1).hex()}
    assert all(torch.equal(before[name], tensor) for name, tensor in trained_tensors(model).items())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.safetensors"]


def test_infinite_theta_survives(model, tmp_path):
    """Rows of words that training never sees are kept by a theta of +inf."""
    with torch.no_grad():
        model.head.mix[0] = torch.inf
    save_trained(model, tmp_path / "a.safetensors")
    load_trained(model, tmp_path / "a.safetensors")
    assert model.head.mix[0] == torch.inf


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_file_is_named(model, tmp_path, keep):
    path = tmp_path / "best.safetensors"
    save_trained(model, path, score="0.5")
    path.write_bytes(path.read_bytes()[:keep])
    for read in (facts_of, lambda path: load_trained(model, path)):
        with pytest.raises(ValueError, match=r"best\.safetensors is damaged.*to start over"):
            read(path)


def test_other_tensors_are_refused_by_name(model, tmp_path):
    save_trained(model, tmp_path / "a.safetensors")
    model.head.mix.requires_grad_(False)
    with pytest.raises(ValueError, match=r"a\.safetensors holds tensors other.*head\.mix"):
        load_trained(model, tmp_path / "a.safetensors")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: 28")])
def test_a_full_disk_is_an_os_error_and_keeps_the_old_file(model, tmp_path, monkeypatch, error):
    path = tmp_path / "best.safetensors"
    save_trained(model, path, score="0.5")

    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match=r"cannot write .*best\.safetensors .*make room"):
        save_trained(model, path, score="0.9")
    assert facts_of(path) == {"score": "0.5"}


def test_tensors_are_on_disk_before_they_replace_older_ones(model, tmp_path, monkeypatch):
    """And by no name that two processes share: one that fails leaves nothing behind."""
    path, wrote = tmp_path / "best.safetensors", []
    real = checkpoints.save_file
    monkeypatch.setattr(checkpoints, "save_file", lambda *given, **more: wrote.append(given[1]) or real(*given, **more))
    save_trained(model, path, score="0.5")

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*best\.safetensors .*make room"):
        save_trained(model, path, score="0.9")
    assert facts_of(path) == {"score": "0.5"} and list(tmp_path.iterdir()) == [path]
    assert len(set(wrote)) == 2


def test_safetensors_tells_of_a_really_full_disk(model, tmp_path):
    """A limit on the size of files stands in for the full disk: the same failing write, without a disk to fill."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
    try:
        with pytest.raises(OSError, match=r"cannot write .*best\.safetensors .*make room"):
            save_trained(model, tmp_path / "best.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert not (tmp_path / "best.safetensors").exists()


def test_no_checkpoint_is_none(tmp_path):
    assert last_whole(tmp_path) is None
    assert last_whole(tmp_path / "missing") is None


def test_the_newest_by_number_counts_and_the_unsealed_go(tmp_path):
    for step in (8, 10, 9):
        seal(checkpoint(tmp_path, step))
    unfinished = checkpoint(tmp_path, 11)
    (unfinished / ".0a1b.tmp").write_text("{")  # killed while sealing
    assert last_whole(tmp_path) == tmp_path / "checkpoint-10"
    assert not unfinished.exists()
    assert (tmp_path / "checkpoint-9").exists()


@pytest.mark.parametrize("change", ["cut", "grown", "gone"])
def test_a_damaged_sealed_checkpoint_is_named(tmp_path, change):
    seal(checkpoint(tmp_path, 4))
    place = checkpoint(tmp_path, 5, **{"optimizer.pt": b"0123456789", "model.safetensors": b"abc"})
    seal(place)
    if change == "gone":
        (place / "optimizer.pt").unlink()
    else:
        (place / "optimizer.pt").write_bytes(b"0123" if change == "cut" else b"0123456789x")
    with pytest.raises(ValueError, match=r"checkpoint-5/optimizer\.pt is damaged: \d+ bytes of 10"):
        last_whole(tmp_path)


def test_a_damaged_seal_is_named(tmp_path):
    place = checkpoint(tmp_path, 5)
    seal(place)
    (place / "whole.json").write_text("")
    with pytest.raises(ValueError, match=r"checkpoint-5/whole\.json is damaged"):
        last_whole(tmp_path)


def test_the_seal_lists_every_other_file(tmp_path):
    place = checkpoint(tmp_path, 5, a=b"1", b=b"22")
    seal(place)
    assert json.loads((place / "whole.json").read_text()) == {"a": 1, "b": 2}
    seal(place)  # again, as a resumed run that saves the same step
    assert json.loads((place / "whole.json").read_text()) == {"a": 1, "b": 2}


def test_checkpoints_of_other_data_are_not_continued(tmp_path):
    check_origin(tmp_path, data="a", model="m", processes=1)
    check_origin(tmp_path, data="b", model="m", processes=1)  # nothing was trained yet
    seal(checkpoint(tmp_path, 1))
    check_origin(tmp_path, data="b", model="m", processes=1)
    with pytest.raises(ValueError, match=r"had another processes \(1, now 2\): delete that folder"):
        check_origin(tmp_path, data="b", model="m", processes=2)
    with pytest.raises(ValueError, match=r"had another data \(b, now a\)"):
        check_origin(tmp_path, data="a", model="m", processes=1)


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_note_of_origin_is_named(tmp_path, content):
    seal(checkpoint(tmp_path, 1))
    (tmp_path / "origin.json").write_text(content)
    with pytest.raises(ValueError, match=r"origin\.json is damaged .*: delete the folder .* to start over"):
        check_origin(tmp_path, data="a")


def test_optimiser_state_comes_back_without_pickled_code(model, tmp_path):
    """As the Trainer does it: torch.save, and torch.load with weights_only; the shared threshold keeps its place."""

    def prepared():
        weights = {name: module.weight.detach().abs() for name, module in maskable(model.encoder).items()}
        thetas = attach(model.encoder, weights)
        masked = {"params": list(thetas.values()), "masked": True, "threshold": threshold_of(model.encoder)}
        return AdaPrune([masked, {"params": list(model.head.parameters())}], lr=1e-3), thetas

    optimiser, thetas = prepared()
    for theta in thetas.values():
        theta.grad = torch.ones_like(theta)
    optimiser.step()
    threshold_of(model.encoder).fill_(1 / 3)
    torch.save(optimiser.state_dict(), tmp_path / "optimizer.pt")
    fresh, thetas = prepared()
    fresh.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert float(threshold_of(model.encoder)) == 1 / 3  # all 64 bits
    assert fresh.param_groups[0]["threshold"] is threshold_of(model.encoder)
    theta = next(iter(thetas.values()))
    assert fresh.state[theta]["step"] == 1
    assert torch.equal(fresh.state[theta]["exp_avg"], optimiser.state_dict()["state"][0]["exp_avg"])


class _Evil:
    def __reduce__(self):
        return os.mkdir, ("evil_was_here",)


def test_a_checkpoint_with_code_in_it_runs_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state": _Evil()}, tmp_path / "optimizer.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "optimizer.pt", weights_only=True)
    assert not (tmp_path / "evil_was_here").exists()


def test_where_the_file_system_has_no_locks_nobody_waits_nor_is_warned(tmp_path, monkeypatch):
    """A lock by the mere existence of a file would outlive a killed process."""

    def unknown(*given):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unknown)
    entered = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with alone(tmp_path / "run"):
            entered.append("first")
            with alone(tmp_path / "run"):
                entered.append("second, at once")
    assert entered == ["first", "second, at once"]


def test_one_process_at_a_time_makes_a_run(tmp_path, caplog):
    """A second one waits until the first is done, a killed one leaves no lock, and no file stays where it went well."""
    folder = tmp_path / ".checkpoints" / "run"
    held = (
        "import sys, time, pathlib; from adaprune.training import alone\n"
        "with alone(pathlib.Path(sys.argv[1])):\n    print('in', flush=True); time.sleep(60)"
    )
    entered = threading.Event()

    def second():
        with alone(folder):
            entered.set()

    waiting = threading.Thread(target=second)
    with subprocess.Popen([sys.executable, "-c", held, str(folder)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "in\n"
        waiting.start()
        assert not entered.wait(0.3)
        other.kill()
    waiting.join(20)
    assert entered.is_set() and "another process makes this run: waiting for it" in caplog.text
    assert not list(folder.parent.iterdir())
    with pytest.raises(ZeroDivisionError), alone(folder):
        1 / 0  # noqa: B018
    with alone(folder):
        pass
    assert not list(folder.parent.iterdir())
