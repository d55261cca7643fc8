"""In which order the study's runner starts its rows, what waits for what, and where a row's record goes."""

import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from adaprune.report.sweeps import read_sweep
from adaprune.runs.records import record_path, write_record
from adaprune.runs.run import Run
from benchmarks import study
from tests.runs.test_records import make_record


@pytest.fixture
def events(tmp_path, monkeypatch):
    """What happens to which row, in order; the rows' processes do nothing, and those of method random fail."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "ADAPT", "import json, sys; sys.exit(json.loads(sys.argv[1])['method'] == 'random')")
    monkeypatch.setattr(study, "threading", SimpleNamespace(Condition=Impatient))
    seen = []
    monkeypatch.setattr(
        study.Progress, "note", lambda self, event, n: seen.append((event.removeprefix("job_"), n)) or ""
    )
    return seen


class Impatient(threading.Condition):
    """Fails where a row would wait for ever."""

    def wait(self, timeout=None):
        assert super().wait(20), "the runner waits for ever"


def done(runs, jobs, tmp_path):
    """The rows that failed."""
    return study.study(runs, jobs, "", tmp_path / "logs")


def started(events):
    return [n for event, n in events if event == "started"]


def over_before(events, first, then):
    """Whether one row has ended before another starts."""
    ends = [place for place, (event, n) in enumerate(events) if n == first and event in ("finished", "error")]
    return ends[0] < events.index(("started", then))


def teacher_and_pupil(**more):
    teacher = Run(method="finetune", results_dir="out")
    return teacher, Run(teacher=str(record_path(teacher)), results_dir="out", **more)


# ---------------------------------------------------------------- order


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_rows_start_in_the_tables_order(events, tmp_path, jobs):
    runs = [Run(seed=seed) for seed in (4, 2, 7, 0, 1)]
    assert done(runs, jobs, tmp_path) == [] and started(events) == [0, 1, 2, 3, 4]
    assert sorted(events) == sorted([("started", n) for n in range(5)] + [("finished", n) for n in range(5)])
    if jobs == 1:
        assert events == [(event, n) for n in range(5) for event in ("started", "finished")]


def test_no_more_rows_at_once_than_jobs(events, tmp_path):
    assert done([Run(seed=seed) for seed in range(7)], 3, tmp_path) == []
    at_once, most = 0, 0
    for event, _ in events:
        at_once += 1 if event == "started" else -1
        most = max(most, at_once)
    assert most == 3 and at_once == 0


def test_a_teacher_of_the_table_is_waited_for_while_rows_behind_go_ahead(events, tmp_path):
    """The pupil stands first; with two jobs the third row starts beside the teacher."""
    teacher, pupil = teacher_and_pupil()
    runs = [pupil, teacher, Run(seed=5)]
    assert done(runs, 2, tmp_path) == []
    assert started(events)[:2] == [1, 2] and over_before(events, 1, 0)


def test_a_pupil_goes_before_later_rows_as_soon_as_its_teacher_is_done(events, tmp_path):
    teacher, pupil = teacher_and_pupil()
    assert done([pupil, teacher, *(Run(seed=seed) for seed in (5, 6))], 1, tmp_path) == []
    assert started(events) == [1, 0, 2, 3]


def test_a_teacher_from_elsewhere_is_not_waited_for(events, tmp_path):
    assert done([Run(teacher="old/teacher.json"), Run(seed=1)], 1, tmp_path) == [] and started(events) == [0, 1]


def test_a_finished_teacher_is_not_waited_for_nor_run_again(events, tmp_path):
    teacher, pupil = teacher_and_pupil()
    write_record(make_record(teacher, mask=None), teacher)
    assert done([pupil, teacher, Run(seed=1)], 1, tmp_path) == [] and started(events) == [0, 2]


@pytest.mark.parametrize("spelt", ["./out/{}", "{cwd}/out/{}", "out/../out/{}"])
def test_a_teacher_is_known_by_whatever_path_it_is_named(events, tmp_path, spelt):
    teacher, _ = teacher_and_pupil()
    path = spelt.format(record_path(teacher).name, cwd=os.getcwd())
    assert done([Run(teacher=path, results_dir="out"), teacher], 2, tmp_path) == []
    assert over_before(events, 1, 0)


def test_a_teacher_of_the_same_name_in_another_folder_is_another(events, tmp_path):
    teacher, _ = teacher_and_pupil()
    pupil = Run(teacher=str(record_path(teacher.model_copy(update={"results_dir": "elsewhere"}))), results_dir="out")
    assert done([pupil, teacher], 1, tmp_path) == [] and started(events) == [0, 1]


# ---------------------------------------------------------------- ablations


@pytest.mark.parametrize(
    "fields", [{"ablation": "head"}, {"ablation": "probe"}, {"ablation": "head", "noise": 0.1}], ids=str
)
def test_an_ablation_waits_for_the_run_it_is_of(events, tmp_path, fields):
    runs = [Run(**fields), Run(seed=3), Run(), Run(seed=4)]
    assert done(runs, 2, tmp_path) == []
    assert started(events)[:2] == [1, 2] and over_before(events, 2, 0)


def test_an_ablation_of_another_seed_or_folder_waits_for_nothing(events, tmp_path):
    runs = [Run(ablation="head", seed=1), Run(ablation="head", results_dir="b"), Run(ablation="shuffle"), Run()]
    assert done(runs, 1, tmp_path) == [] and started(events) == [0, 1, 3, 2]


def test_an_ablation_of_a_pupil_waits_through_both(events, tmp_path):
    """teacher, then pupil, then the pupil's ablation, though the table has them backwards and there are jobs enough."""
    teacher, pupil = teacher_and_pupil()
    runs = [pupil.model_copy(update={"ablation": "head"}), pupil, teacher]
    assert done(runs, 4, tmp_path) == []
    assert started(events) == [2, 1, 0] and over_before(events, 2, 1) and over_before(events, 1, 0)


def test_several_wait_for_one_and_then_start_in_order(events, tmp_path):
    runs = [Run(ablation="shuffle"), Run(ablation="head"), Run(), Run(ablation="probe")]
    assert done(runs, 1, tmp_path) == [] and started(events) == [2, 0, 1, 3]


# ---------------------------------------------------------------- failures


def test_what_waits_for_a_row_that_fails_still_gets_its_turn(events, tmp_path):
    """It finds nothing to start from, and says so itself; nothing waits for ever."""
    source = Run(method="random")
    runs = [source.model_copy(update={"ablation": "head"}), source, Run(seed=1)]
    assert done(runs, 2, tmp_path) == [runs[1], runs[0]]
    assert started(events) == [1, 2, 0] and over_before(events, 1, 0) and ("finished", 2) in events


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_row_whose_process_cannot_even_start_holds_up_no_other(events, tmp_path, monkeypatch, jobs):
    """The disk is full, or there are no processes left: the runner ends, with that error, and does not hang."""
    real = study.subprocess.run

    def run(command, **more):
        if json.loads(command[3])["seed"] == 1:
            raise OSError(28, "No space left on device")
        return real(command, **more)

    monkeypatch.setattr(study.subprocess, "run", run)
    runs = [Run(seed=1, ablation="head"), Run(seed=1), *(Run(seed=seed) for seed in (2, 3))]
    with pytest.raises(OSError, match="No space left"):
        done(runs, jobs, tmp_path)


# ---------------------------------------------------------------- results_dir


def write(rows, head=("task", "method", "seed", "results_dir")):
    Path("s.tsv").write_text("\n".join("\t".join(row) for row in [head, *rows]) + "\n")


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The runs that the command line asks for."""
    monkeypatch.chdir(tmp_path)
    taken = []
    monkeypatch.setattr(study, "study", lambda runs, *rest: taken.extend(runs) or [])
    return taken


def test_a_column_says_where_each_rows_record_goes(asked):
    write([("stsb", "adaprune", "0", "results/a"), ("stsb", "adaprune", "0", "results/b"), ("stsb", "probe", "1", "")])
    assert study.main(["--sweep", "s.tsv"]) == 0
    assert [run.results_dir for run in asked] == ["results/a", "results/b", "results"]  # empty: the default
    assert len({record_path(run) for run in asked}) == 3


def test_without_the_column_it_is_the_tables_name_or_the_option(asked):
    write([("stsb", "adaprune", "0")], ("task", "method", "seed"))
    study.main(["--sweep", "s.tsv"])
    study.main(["--sweep", "s.tsv", "--results-dir", "out"])
    assert [run.results_dir for run in asked] == ["results/s", "out"]


def test_column_and_option_together_are_refused_in_a_sentence(asked, capsys):
    write([("stsb", "adaprune", "0", "results/a")])
    with pytest.raises(SystemExit):
        study.main(["--sweep", "s.tsv", "--results-dir", "out"])
    assert "results_dir" in capsys.readouterr().err and not asked


def test_another_column_that_merely_holds_the_word_is_no_results_dir(asked, capsys):
    """An unknown column is refused by its name, not taken for the folder."""
    write([("stsb", "adaprune", "0", "x")], ("task", "method", "seed", "my_results_dir"))
    with pytest.raises(SystemExit):
        study.main(["--sweep", "s.tsv"])
    assert "my_results_dir" in capsys.readouterr().err and not asked


def test_a_value_that_holds_the_word_makes_no_column(asked):
    write([("results_dir.csv", "adaprune", "0")], ("task", "method", "seed"))
    assert study.main(["--sweep", "s.tsv"]) == 0 and asked[0].results_dir == "results/s"


def test_rows_in_two_folders_wait_for_what_is_in_their_own(events, tmp_path):
    """The teacher of one folder and the source of the other, by the table's own column."""
    teacher = Run(task="stsb", method="finetune", results_dir="results/a")
    head = ("task", "method", "results_dir", "teacher", "ablation")
    write([
        ("stsb", "adaprune", "results/b", str(record_path(teacher)), "head"),
        ("stsb", "adaprune", "results/a", str(record_path(teacher)), ""),
        ("stsb", "adaprune", "results/b", str(record_path(teacher)), ""),
        ("stsb", "finetune", "results/a", "", ""),
    ], head)  # fmt: skip
    assert done(read_sweep("s.tsv"), 3, tmp_path) == []
    assert started(events)[0] == 3 and over_before(events, 3, 1) and over_before(events, 3, 2)
    assert over_before(events, 2, 0)
