"""Where a run's files lie: all below its results folder, all by its name."""

from dataclasses import asdict
from pathlib import Path

import pytest

from adaprune.data import expanded
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


@pytest.mark.parametrize("path", ["$HOLDS_NOTHING", "${HOLDS_NOTHING}/data.csv", "~/$HOLDS_NOTHING/data.csv"])
def test_an_empty_variable_names_no_other_folder(path, monkeypatch):
    """Put in as it is, it would make this folder, or the root, of a path below it."""
    monkeypatch.setenv("HOLDS_NOTHING", "")
    with pytest.raises(ValueError, match="there is no environment variable .*HOLDS_NOTHING"):
        expanded(path)
    monkeypatch.setenv("HOLDS_NOTHING", "/a")
    assert expanded("${HOLDS_NOTHING}b/$HOLDS_NOTHING") == Path("/ab//a")


def test_home_is_meant_wherever_a_path_is_given(tmp_path, monkeypatch):
    """In what is written and read beside runs: compact models, graphs, snapshots, sweeps, tables, figures, ONNX."""
    import networkx
    import torch

    import adaprune
    from adaprune.deploy import load_compact, save_compact
    from adaprune.report import figures, sweeps
    from adaprune.topology import graphs, overlap
    from tests import tiny

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "..")
    model = adaprune.compact(adaprune.AdaptedModel.for_task(tiny.encoder(), 2))
    inputs = tiny.batch()
    save_compact("~/m.safetensors", model)
    assert torch.equal(load_compact("~/m.safetensors")(**inputs).logits, model(**inputs).logits)
    assert graphs.write_graph(networkx.path_graph(2), "~/g.json") == tmp_path / "g.json"
    (tmp_path / "sweep.tsv").write_text("task\nsst2\n")
    assert [run.task for run in sweeps.read_sweep("~/sweep.tsv")] == ["sst2"]
    assert figures.save(figures.plt.figure(), "f", "~/drawn", None)[0] == tmp_path / "drawn" / "f.svg"
    adaprune.training.checkpoints.write_tensors(tmp_path / "s" / "5.safetensors", {"a": torch.ones(1)})
    assert list(overlap.history("~/s")) == [5]
    with pytest.raises(ValueError, match=f"{tmp_path}/m.txt: the name of an ONNX file ends in"):
        adaprune.export(model, "~/m.txt")
    assert {path.name for path in tmp_path.iterdir()} == {"m.safetensors", "g.json", "sweep.tsv", "drawn", "s"}
