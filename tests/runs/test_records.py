"""Records: whole or absent, checked both ways, and the table made of them."""

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from adaprune.runs.records import (
    check_writable,
    environment,
    find_record,
    read_record,
    record_path,
    table,
    write_record,
)
from adaprune.runs.run import METHODS, Run


def count(kept, total):
    return {"sparsity": 1 - kept / total, "kept": kept, "total": total}


def make_record(run, **changed):
    """A whole record of a run with made-up numbers."""
    mask = {
        **count(50, 100),
        "scope": run.scope,
        "encoder": count(50, 100),
        "all_weights": count(150, 200),
        "per_component": {"query": count(50, 100)},
        "per_layer": {"0": count(50, 100)},
    }
    return {
        "run": run.model_dump(),
        "metrics": {"validation": {"f1": 0.75, "accuracy": 0.5}, "selection": {"f1": 0.25}, "primary": "f1"},
        "mask": mask if METHODS[run.method].mask else None,
        "weights_intact": METHODS[run.method].weights_intact,
        "cost": {
            "train_seconds": 1.5,
            "steps": 3,
            "examples_per_second": 64.0,
            "peak_memory_bytes": 2**30,
            "device": "cpu",
        },
        "curve": [{"step": 1, "f1": 0.5, "sparsity": 0.1}],
        "environment": environment(1, seed=run.seed, model_revision=None, data_fingerprint=None),
        **changed,
    }


def fill_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def run(tmp_path):
    return Run(results_dir=str(tmp_path / "deep" / "results"))


def test_a_record_comes_back_as_it_was_written(run):
    record = make_record(run)
    path = write_record(record, run)
    assert path == record_path(run) and path.name == f"{run.name}.json"
    assert read_record(path) == {"schema_version": 1, **record} == find_record(run)
    assert list(json.loads(path.read_text()))[:3] == ["schema_version", "run", "metrics"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_record_is_readable_by_others_as_the_umask_says(run):
    old = os.umask(0o022)
    try:
        assert write_record(make_record(run), run).stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(old)


def test_numpy_numbers_and_tuples_are_written_plain(run):
    curve = ({"step": np.int64(1), "f1": np.float32(0.5), "ok": np.bool_(True)},)
    path = write_record(make_record(run, curve=curve), run)
    assert read_record(path)["curve"] == [{"step": 1, "f1": 0.5, "ok": True}]


def test_more_keys_are_kept_inside_mask_and_refused_at_the_top(run):
    record = make_record(run)
    record["mask"]["unseen_rows"] = {"rows": 5, "kept": 3, "total": 10}
    assert read_record(write_record(record, run))["mask"]["unseen_rows"]["rows"] == 5
    with pytest.raises(ValueError, match="record: colour is unknown"):
        write_record({**record, "colour": 1}, run)


@pytest.mark.parametrize("key", ["run", "metrics", "mask", "weights_intact", "cost", "curve", "environment"])
def test_each_missing_key_is_named_and_nothing_written(run, key):
    record = make_record(run)
    del record[key]
    with pytest.raises(ValueError, match=rf"\b{key}\b"):
        write_record(record, run)
    assert not record_path(run).parent.exists()


@pytest.mark.parametrize(
    "keys, value, told",
    [
        (("metrics", "validation", "f1"), math.nan, "record.metrics.validation.f1 is nan"),
        (("metrics", "validation", "f1"), np.float32("inf"), "record.metrics.validation.f1 is inf"),
        (("curve", 0, "loss"), -math.inf, "record.curve.0.loss is -inf"),
        (("metrics", "primary"), "matthews", "primary 'matthews' is not among validation's f1, accuracy"),
        (("metrics", "validation", "f1"), "0.5", "metrics.validation.f1"),
        (("mask", "kept"), 101, "kept 101 of 100"),
        (("mask", "encoder", "sparsity"), 0.4, "mask.encoder: kept 50 of 100 is not a sparsity of 0.4"),
        (("mask", "per_layer"), {"0": {"kept": 1}}, "mask.per_layer.0.sparsity is missing"),
        (("cost", "steps"), 3.0, "cost.steps"),
        (("cost", "train_seconds"), -1, "cost.train_seconds"),
        (("curve", 0, "step"), "1", "curve.0.step"),
        (("weights_intact",), 1, "weights_intact"),
        (("mask",), None, "mask must not be null for method adaprune"),
        (("schema_version",), 2, "schema_version"),
        (("run", "seed"), 9, "record.run must hold every field"),
    ],
)
def test_impossible_values_are_named_and_nothing_written(run, keys, value, told):
    record = make_record(run)
    inner = record
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    with pytest.raises(ValueError) as caught:
        write_record(record, run)
    assert told in str(caught.value) and "http" not in str(caught.value)
    assert not record_path(run).parent.exists()


@pytest.mark.parametrize(
    "value, told",
    [
        (torch.zeros(1), "record.curve.0.x is a Tensor"),
        ({1: 2}, "record.curve.0.x has the key 1"),
        (b"x", "record.curve.0.x is a bytes"),
    ],
)
def test_what_json_cannot_hold_is_named(run, value, told):
    with pytest.raises(TypeError, match=told):
        write_record(make_record(run, curve=[{"step": 1, "x": value}]), run)


def test_a_method_without_a_mask_has_none(run):
    features = run.model_copy(update={"method": "features"})
    assert read_record(write_record(make_record(features), features))["mask"] is None
    with pytest.raises(ValueError, match="mask must be null for method features"):
        write_record(make_record(features, mask=make_record(run)["mask"]), features)


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_failing_disk_leaves_the_old_record_and_nothing_else(run, monkeypatch, function):
    before = write_record(make_record(run), run).read_bytes()
    monkeypatch.setattr(os, function, fill_disk)
    with pytest.raises(OSError, match="cannot write into results_dir .*No space left on device.*make room"):
        write_record(make_record(run, curve=[]), run)
    left = list(record_path(run).parent.iterdir())
    assert left == [record_path(run)] and left[0].read_bytes() == before


def test_a_killed_write_leaves_no_record(run):
    code = (
        "import json, os, signal, sys\n"
        "from adaprune.runs import Run, write_record\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "record = json.load(sys.stdin)\nwrite_record(record, Run(**record['run']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(make_record(run)),
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    left = list(record_path(run).parent.iterdir())
    assert done.returncode == -9 and len(left) == 1 and left[0].suffix == ".tmp"
    assert find_record(run) is None
    with pytest.raises(ValueError, match="holds no records"):
        table(run.results_dir)


def test_check_writable_makes_the_folder_and_leaves_it_empty(tmp_path, monkeypatch):
    check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    monkeypatch.setattr(os, "fsync", fill_disk)
    with pytest.raises(OSError, match="No space left"):
        check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_file_in_place_of_the_folder_is_told(tmp_path, where):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="cannot write into results_dir .*choose another"):
        check_writable(tmp_path / where)
    bad = Run(results_dir=str(tmp_path / where))
    with pytest.raises(OSError, match="cannot write into results_dir"):
        write_record(make_record(bad), bad)


def test_a_read_only_folder_is_told(tmp_path, monkeypatch):
    """Refused by hand, since root may write anywhere."""

    def refuse(*given, dir, **more):
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr("adaprune.runs.records.tempfile.TemporaryFile", refuse)
    with pytest.raises(OSError, match="cannot write into results_dir .*Permission denied"):
        check_writable(tmp_path)


def test_a_record_cut_anywhere_is_refused_with_its_path(run):
    path = write_record(make_record(run), run)
    whole = path.read_bytes().rstrip()
    for size in range(0, len(whole), 37):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="damaged") as caught:
            find_record(run)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text, told",
    [
        (b"\xff\xfe", "damaged"),
        (b"[1]", "no schema_version"),
        (b"{}", "no schema_version"),
        (b"[" * 100_000, "damaged"),
        (b'{"schema_version": 1}', "run is missing; metrics is missing"),
        (b'{"schema_version": 2}', "schema_version 2, but this adaprune reads 1"),
        (b'{"schema_version": 1, "curve": [NaN]}', "curve.0 is nan"),
        (b'{"schema_version": 1, "curve": [1e999]}', "curve.0 is inf"),
    ],
)
def test_other_files_are_refused_with_their_path(tmp_path, text, told):
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(ValueError) as caught:
        read_record(path)
    assert str(caught.value).startswith(str(path)) and told in str(caught.value)


def test_a_field_younger_than_the_record_has_its_default(run):
    path = write_record(make_record(run), run)
    record = json.loads(path.read_text())
    del record["run"]["keep"]
    path.write_text(json.dumps(record))
    assert find_record(run)["run"] == run.model_dump()
    for wrong, told in (({"sparsity": 2}, "sparsity must lie"), ({"shape": 1}, "unknown parameter 'shape'")):
        path.write_text(json.dumps({**record, "run": {**record["run"], **wrong}}))
        with pytest.raises(ValueError, match=told):
            read_record(path)
    del record["run"]["seed"]
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="run: seed missing"):
        read_record(path)


def test_a_finished_run_is_found_whatever_leaves_its_result_alone(run):
    assert find_record(run) is None
    write_record(make_record(run), run)
    assert find_record(run.model_copy(update={"data_dir": "elsewhere", "checkpoint_steps": 7})) is not None


def test_two_paths_of_the_same_name_are_told_apart(run):
    one, other = (run.model_copy(update={"task": task}) for task in ("data/x.csv", "data//x.csv"))
    assert record_path(one) == record_path(other)
    write_record(make_record(one), one)
    with pytest.raises(ValueError, match="its task is 'data/x.csv', not 'data//x.csv'"):
        find_record(other)


def fill(folder, runs):
    for fields in runs:
        made = Run(results_dir=str(folder), **fields)
        write_record(make_record(made), made)


def test_table_by_hand(tmp_path):
    fill(tmp_path / "sub", [{"seed": 1}])
    fill(tmp_path, [{"method": "features"}, {"seed": 10}, {"seed": 2, "sparsity": 0.25}, {"task": "cola"}])
    fill(tmp_path / "masks", [{"seed": 3}])
    fill(tmp_path / ".hidden", [{"seed": 4}])
    (tmp_path / "folder.json").mkdir()
    rows = table(tmp_path)
    assert rows[["task", "method", "sparsity", "seed"]].values.tolist() == [
        ["cola", "adaprune", 0.5, 0],
        ["movie_reviews", "adaprune", 0.25, 2],
        ["movie_reviews", "adaprune", 0.5, 1],
        ["movie_reviews", "adaprune", 0.5, 10],
        ["movie_reviews", "features", 0.5, 0],
    ]
    assert list(rows.columns[: len(Run.model_fields)]) == list(Run.model_fields)
    first = rows.iloc[0]
    assert (first.primary, first.score, first.selection_score) == ("f1", 0.75, 0.25)
    assert (first.validation_f1, first.validation_accuracy, first.train_seconds) == (0.75, 0.5, 1.5)
    assert (first.mask_sparsity, first.encoder_sparsity, first.all_weights_sparsity) == (0.5, 0.5, 0.25)
    assert first.weights_intact and first.device == "cpu" and first.steps == 3
    assert rows.iloc[4][["mask_sparsity", "all_weights_sparsity"]].isna().all() and rows.score.dtype == float
    assert rows.record[2].startswith("sub/task~movie_reviews")


def test_table_of_tasks_with_other_metrics(tmp_path):
    fill(tmp_path, [{"task": "mrpc"}])
    stsb = Run(task="stsb", results_dir=str(tmp_path))
    metrics = {"validation": {"pearson": 0.5}, "selection": {}, "primary": "pearson"}
    cost = {**make_record(stsb)["cost"], "peak_memory_bytes": None}
    write_record(make_record(stsb, metrics=metrics, cost=cost), stsb)
    rows = table(tmp_path)
    assert [c for c in rows if c.startswith("validation_")] == [
        "validation_accuracy",
        "validation_f1",
        "validation_pearson",
    ]
    assert rows.loc[1, ["selection_score", "validation_f1", "peak_memory_bytes"]].isna().all()
    assert rows.score.tolist() == [0.75, 0.5]


def test_table_without_records_says_how_to_make_some(tmp_path):
    with pytest.raises(ValueError, match="holds no records: `make run`"):
        table(tmp_path)
    with pytest.raises(ValueError, match="is not a folder: `make run`"):
        table(tmp_path / "absent")


def test_table_names_a_damaged_record(tmp_path):
    fill(tmp_path, [{}])
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json is damaged"):
        table(tmp_path)
