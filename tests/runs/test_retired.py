"""Fields that a run has had: their records are still read, and who asks for one is told what to do."""

import json
from dataclasses import replace

import pytest

from adaprune.runs.paths import paths_of
from adaprune.runs.recipes import plan_for
from adaprune.runs.records import read_record, record_path, table, write_record
from adaprune.runs.retired import LAST, LATER, RETIRED, farewell, modern, plan_then
from adaprune.runs.run import Run, default_of
from adaprune.training.checkpoints import check_unchanged
from tests.runs.test_records import make_record


@pytest.fixture
def old_record(tmp_path):
    """Writes the record of a run with fields in it that are not, or no longer, those of `Run`; returns its path."""

    def write(file="old.json", **fields):
        run = Run(results_dir=str(tmp_path))
        path = write_record(make_record(run), run)
        record = json.loads(path.read_text())
        record["run"] = {**record["run"], **fields}
        path.unlink()
        path = tmp_path / file
        path.write_text(json.dumps(record))
        return path

    return write


def test_no_field_is_retired_and_in_use():
    assert not RETIRED.keys() & Run.model_fields.keys()
    assert all(default_of(name) == value for name, value in RETIRED.items()) and default_of("seed") == 0
    with pytest.raises(KeyError):
        default_of("never")


# ---------------------------------------------------------------- asking for one


@pytest.mark.parametrize("field", sorted(RETIRED.keys() - {"snapshots", "keep_theta"}))
def test_a_retired_field_that_is_asked_for_says_the_last_commit_that_has_it(field):
    with pytest.raises(ValueError) as caught:
        Run(**{field: RETIRED[field]})
    assert (
        str(caught.value) == f"parameter {field!r} is retired. Commit {LATER.get(field, LAST)} is the last that has it."
    )
    assert farewell(field) == str(caught.value)


@pytest.mark.parametrize(("field", "value"), [("keep_theta", True), ("snapshots", 4)])
def test_what_has_another_name_now_says_it(field, value):
    now = {"keep_theta": "theta", "snapshots": "snapshots"}[field]
    with pytest.raises(ValueError, match=rf"^parameter '{field}' is retired\. Say keep='{now}'\.$"):
        Run(**{field: value})
    assert Run(keep=now).keep == now


def test_a_retired_field_in_a_notebook_is_told_apart_from_a_typing_error():
    with pytest.raises(ValueError) as caught:
        Run.from_namespace({"step_rule": "sgd", "seed": 3})
    assert "retired" in str(caught.value) and "unknown" not in str(caught.value)
    with pytest.raises(ValueError) as caught:
        Run(step_rul="sgd", dropout=0.1)
    told = str(caught.value).splitlines()
    assert "unknown parameter 'step_rul'" in told and "parameter 'dropout' is retired" in told[1]
    assert told[-1].startswith("The parameters are ") and "step_rule" not in told[-1]


# ---------------------------------------------------------------- reading old records


def test_fields_at_their_default_go_and_others_stay():
    assert modern({**RETIRED, "seed": 3}) == {"seed": 3}
    assert modern({**RETIRED, "step_rule": "sgd", "dropout": 0.1}) == {"step_rule": "sgd", "dropout": 0.1}
    assert modern({"task": "x"}) == {"task": "x"} and modern({}) == {}


@pytest.mark.parametrize(
    ("then", "now"),
    [
        ({"keep_theta": True}, "theta"),
        ({"snapshots": 4}, "snapshots"),
        ({"keep_theta": True, "snapshots": 8}, "theta+snapshots"),
        ({"keep_theta": True, "snapshots": 0}, "theta"),
        ({"keep_theta": False, "snapshots": 0}, ""),
    ],
)
def test_what_was_kept_is_named_as_today(old_record, tmp_path, then, now):
    assert modern(then) == ({"keep": now} if now else {})
    assert read_record(old_record(**then))["run"] == Run(results_dir=str(tmp_path), keep=now).model_dump()


def test_a_record_of_then_is_read_as_todays_run(old_record, tmp_path):
    plain = Run(results_dir=str(tmp_path)).model_dump()
    assert read_record(old_record(**RETIRED))["run"] == plain
    asked = {"control": "penalty", "minimum_kept": 5}
    assert read_record(old_record(**{**RETIRED, **asked}))["run"] == {**plain, **asked}


def test_a_field_that_never_was_is_refused_still(old_record):
    with pytest.raises(ValueError, match="unknown parameter 'shape'"):
        read_record(old_record(**RETIRED, shape=1))


def test_a_retired_field_that_some_run_used_is_a_column_with_its_default_elsewhere(old_record, tmp_path):
    old_record("a.json", **{**RETIRED, "step_rule": "sgd"})
    old_record("b.json", **RETIRED, seed=1)
    run = Run(results_dir=str(tmp_path), seed=2)
    write_record(make_record(run), run)
    rows = table(tmp_path)
    assert rows["step_rule"].tolist() == ["sgd", "", ""] and rows["seed"].tolist() == [0, 1, 2]
    assert list(rows.columns[: len(Run.model_fields) + 1]) == [*Run.model_fields, "step_rule"]
    assert not (RETIRED.keys() - {"step_rule"}) & set(rows.columns)


# ---------------------------------------------------------------- what old plans leave out


OLDEST = {"pooling": "cls", "head": "mlp", "copies": "", "steps": 0}


@pytest.mark.parametrize("lacking", [{}, {"plan": None}, {"plan": {}}])
@pytest.mark.parametrize("method", ["adaprune", "probe", "smallest"])
def test_a_plan_that_is_missing_had_the_only_choice_of_its_time(lacking, method):
    record = {"run": {"method": method, "head": ""}, "environment": lacking}
    trains = {name: value for name, value in OLDEST.items() if method != "probe" or name != "steps"}
    assert plan_then(record) == trains
    record["run"]["head"] = "linear"
    assert plan_then(record)["head"] == "linear"


@pytest.mark.parametrize(("said", "meant"), [(False, ""), (None, ""), (True, "words"), ("words and splices",) * 2])
def test_what_a_plan_says_counts_and_copies_have_todays_names(said, meant):
    plan = {"pooling": "own", "head": "linear", "copies": said, "steps": 9, "reach": 0.4}
    record = {"run": {"method": "adaprune", "head": "mlp"}, "environment": {"plan": plan}}
    assert plan_then(record) == {**plan, "copies": meant}


@pytest.mark.parametrize("plan", [None, {}, {"reach": 0.4}])
def test_records_without_a_plan_are_read_and_tabled(old_record, tmp_path, plan):
    path = old_record(head="mlp")
    record = json.loads(path.read_text())
    record["environment"]["plan"] = plan
    path.write_text(json.dumps(record))
    assert read_record(path)["run"]["head"] == "" and table(tmp_path)["pooled_by"].tolist() == ["cls"]
    run = Run(results_dir=str(tmp_path))
    old = check_unchanged(read_record(path), run, replace(plan_for(run), head="mlp", pooling="cls", steps=0),
                          paths_of(run))  # fmt: skip
    assert old["environment"]["plan"] == plan


# ---------------------------------------------------------------- a user's own method


def test_a_record_of_a_method_that_this_process_does_not_know_is_read(old_record, tmp_path):
    path = old_record(method="smallest", sparsity=0.5)
    assert read_record(path)["run"] == {**Run(results_dir=str(tmp_path)).model_dump(), "method": "smallest"}
    old_record("maskless.json", method="mine")
    maskless = json.loads((tmp_path / "maskless.json").read_text())
    (tmp_path / "maskless.json").write_text(json.dumps({**maskless, "mask": None, "weights_intact": False}))
    rows = table(tmp_path)
    assert rows["method"].tolist() == ["mine", "smallest"] and rows["mask_sparsity"].isna().tolist() == [True, False]


def test_the_rest_of_such_a_record_is_judged_as_any_other(old_record):
    for wrong, told in (({"sparsity": 2}, "sparsity must lie"), ({"shape": 1}, "unknown parameter 'shape'")):
        with pytest.raises(ValueError, match=told):
            read_record(old_record(method="smallest", **wrong))


@pytest.mark.parametrize("method", ["<lambda>", "two words", "", 3, None, ["smallest"]])
def test_what_can_be_no_methods_name_is_refused_in_a_record(old_record, method):
    with pytest.raises(ValueError, match="method must "):
        read_record(old_record(method=method))


def test_such_a_run_cannot_be_asked_for_nor_written(tmp_path):
    with pytest.raises(ValueError, match="method must be one of .*, got 'smallest'"):
        Run(method="smallest")
    run = Run(results_dir=str(tmp_path))
    record = make_record(run)
    record["run"]["method"] = "smallest"
    with pytest.raises(ValueError, match="record.run must hold every field of the run"):
        write_record(record, run)
    assert not record_path(run).exists()
