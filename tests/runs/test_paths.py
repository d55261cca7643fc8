"""Where a run's files lie: all below its results folder, all by its name."""

from dataclasses import asdict
from pathlib import Path

import pytest

from adaprune.runs.paths import mask_path, paths_of, record_path
from adaprune.runs.run import Run


def test_paths_by_hand():
    found = asdict(paths_of("out/a~1.json"))
    assert found.pop("teacher") is None
    assert {name: path.as_posix() for name, path in found.items()} == {
        "record": "out/a~1.json",
        "answers": "out/answers/a~1.npz",
        "mask": "out/masks/a~1.safetensors",
        "snapshots": "out/masks/a~1",
        "theta": "out/thetas/a~1.safetensors",
        "logits": "out/teachers/a~1.safetensors",
        "checkpoints": "out/.checkpoints/a~1",
    }
    assert paths_of(Path("out/a~1.json")) == paths_of("out/a~1.json")


def test_a_runs_files_bear_its_name():
    run = Run(sparsity=0.75, results_dir="deep/out")
    assert record_path(run) == Path("deep/out", f"{run.name}.json")
    assert mask_path(run) == paths_of(record_path(run)).mask == Path("deep/out/masks", f"{run.name}.safetensors")
    found = asdict(paths_of(record_path(run)))
    assert found.pop("teacher") is None
    assert all(run.name in path.name and Path("deep/out") in path.parents for path in found.values())


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_a_number_at_the_end_of_a_name_is_no_suffix(sparsity):
    """`Path.with_suffix` would take the 5 of 0.5 for one."""
    found = paths_of(f"out/sparsity~{sparsity}.json")
    assert found.mask.name == f"sparsity~{sparsity}.safetensors" and found.checkpoints.name == f"sparsity~{sparsity}"


def test_a_pupil_knows_its_teachers_files():
    assert paths_of(Run()).teacher is None
    assert paths_of(Run(teacher="out/t~0.json")).teacher == paths_of("out/t~0.json")
