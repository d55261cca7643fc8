"""Sweeps: tables refused before anything runs, the progress line, and a sweep that is killed and started again."""

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from adaprune.report.sweeps import Progress, read_sweep, unmet
from adaprune.runs.records import read_record
from adaprune.runs.run import METHODS

ROOT = Path(__file__).resolve().parents[2]
TABLES = sorted((ROOT / "sweeps").glob("*.tsv"))
PAPER_METHODS = {"random", "imp", "gmp", "adaprune", "finetune", "features"}

needs_snakemake = pytest.mark.skipif(
    importlib.util.find_spec("snakemake") is None, reason="needs snakemake: pip install -e '.[sweep]'"
)


@pytest.fixture
def sweep(tmp_path):
    """Writes a table, cells set apart by blanks here and by tabs there."""

    def write(*lines: str) -> Path:
        path = tmp_path / "sweep.tsv"
        path.write_text("".join("\t".join(line.split()) + "\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_committed_tables_are_whole(path):
    assert read_sweep(path)


def test_committed_tables_hold_what_they_promise():
    runs = {path.stem: read_sweep(path) for path in TABLES}
    assert len(runs["tiny"]) == 3
    assert {run.method for run in runs["paper"]} == PAPER_METHODS
    assert {run.task for run in runs["paper"]} == {"stsb", "sst2", "mnli"}
    masked = [run for run in runs["paper"] if run.kind.mask]
    assert len(masked) == 3 * 4 * 8 * 5 and len(runs["paper"]) - len(masked) == 3 * 2 * 5  # no sparsity without mask
    assert {run.recipe for run in runs["paper"]} == {"paper"}
    assert len({run.task for run in runs["glue"]}) == 9
    units = [run for run in runs["frontier"] if run.pattern == "units"]
    assert {(run.task, run.sparsity, run.initial_theta) for run in units} == {
        (task, *kind)
        for task in ("sst2", "cola", "qnli")
        for kind in ((0.25, ""), (0.5, ""), (0.5, "gradient"), (0.75, ""))
    }
    assert len(units) == 3 * 4 * 3
    weights = {
        (run.task, run.seed) for run in runs["frontier"] if run.method == "adaprune" and run.pattern == "weights"
    }
    assert {(run.task, run.seed) for run in units} <= weights  # beside masks of single weights
    quick = runs["quick"]
    assert {(run.max_train_examples, run.batch_size) for run in quick} == {(3000, 32)}
    assert {(run.method == "imp", run.epochs) for run in quick} == {(False, 3), (True, 1)}  # 1 a round, of 4 to 11
    intact = {name for name, kind in METHODS.items() if kind.weights_intact}
    first = {"majority", "probe", "zero_shot"}  # need no training: the queue has them, on every task
    assert {run.method for run in quick} == intact - first | {"finetune"}  # for retention
    assert {run.method for run in runs["queue"]} >= first
    assert sum((run.method, run.sparsity, run.task) == ("random", 0.5, "stsb") for run in quick) == 10
    assert sum((run.method, run.sparsity, run.task, run.allocation) == ("smp", 0.9, "mrpc", "") for run in quick) == 3


def test_cells_get_their_fields_types_and_common_ones_are_added(sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "100").mkdir()  # a task of that name
    path = sweep("task sparsity seed recovery model", "100 1e-1 7 False minilm", "rte 0 8 True minilm")
    first, second = read_sweep(path, epochs=2, results_dir="out")
    assert (first.task, first.sparsity, first.seed, first.recovery) == ("100", 0.1, 7, False)
    assert (second.task, second.recovery, second.epochs, second.results_dir) == ("rte", True, 2.0, "out")


def test_an_empty_cell_is_the_default_and_empty_lines_are_none(tmp_path):
    path = tmp_path / "sweep.tsv"
    path.write_bytes("\ufefftask\tepochs\r\nrte\t\r\n\r\nrte\t2\r\n".encode())
    assert [run.epochs for run in read_sweep(path)] == [0, 2]


WRONG = {
    ("task tusk", "rte 1"): "unknown parameter 'tusk': did you mean 'task'?",
    ("task task", "rte rte"): "column 'task' occurs twice",
    ("task",): "holds no rows",
    (): "holds no rows",
    ("task method", "rte adaprune", "rte magnitud"): "row 2 (line 3): method must be one of",
    ("task sparsity", "rte 1.5"): "row 1 (line 2): sparsity must lie in [0, 1), got 1.5",
    ("task sparsity", "rte half"): "row 1 (line 2): sparsity must be a number, got 'half'",
    ("task sparsity", "rte nan"): "row 1 (line 2): sparsity must be a finite number",
    ("task seed", "rte 0.5"): "row 1 (line 2): seed must be a whole number, got '0.5'",
    ("task recovery", "rte false"): "row 1 (line 2): recovery must be True or False, got 'false'",
    ("task seed", "rte"): "row 1 (line 2): 1 cells for 2 columns",
    ("task", "rte 0"): "row 1 (line 2): 2 cells for 1 columns",
    ("task seed", "rte 0", "mrpc 0", "rte 0"): "row 3 (line 4) repeats row 1 (line 2)",
    ("task checkpoint_steps", "rte 1", "rte 2"): "row 2 (line 3) repeats row 1 (line 2)",
    ("task", "rte", "sst3"): "row 2 (line 3): unknown task 'sst3' (did you mean sst2?)",
    ("task method initial_theta", "rte smp gradient"): "row 1 (line 2): initial_theta of smp is ''",
    ("task method initial_theta", "rte features magnitude"): "row 1 (line 2): initial_theta='magnitude' would change",
    ("task penalty", "rte 0.1"): "row 1 (line 2): penalty=0.1 would change nothing under recipe 'tuned'",
    ("task noise", "rte 0.1"): "row 1 (line 2): noise=0.1 is of an ablation",
    ("task method ablation", "rte finetune head"): "row 1 (line 2): ablation='head' needs a mask of the checkpoint's",
    ("task pattern scope", "rte units encoder+embeddings"): "row 1 (line 2): scope='encoder+embeddings' is for single",
    ("task epochs", "rte 1"): "epochs is a column and set for all rows (2): use one",
}


@pytest.mark.parametrize(("lines", "told"), WRONG.items(), ids=lambda value: " / ".join(value)[:30])
def test_a_wrong_table_is_refused_and_the_row_named(sweep, lines, told):
    path = sweep(*lines)
    with pytest.raises(ValueError) as error:
        read_sweep(path, **({"epochs": 2} if "epochs" in " ".join(lines) else {}))
    assert told in str(error.value) and str(path) in str(error.value)


def test_a_row_that_needs_what_is_nowhere_is_named(sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = read_sweep(sweep("task method ablation", "rte magnitude head", "rte random shuffle"))
    found = unmet(runs)
    assert [sentence.split(" needs ")[0] for sentence in found] == [run.name for run in runs]
    of_teacher = runs[0].model_copy(update={"ablation": "", "teacher": "a.json"})
    assert unmet([of_teacher]) == [f"{of_teacher.name} needs a.json, which is neither there nor a row of the table"]
    (tmp_path / "a.json").write_text("{}")
    whole = runs[0].ablation_of
    assert unmet([of_teacher, whole, runs[0]]) == [] and whole.ablation == "" and whole.ablation_of == whole


def test_a_teacher_of_another_task_is_refused_and_the_row_named(sweep):
    (teacher,) = (ROOT / "results" / "foundation").glob("task~stsb_method~finetune_*.json")
    path = sweep("task teacher", f"stsb {teacher}", f"rte {teacher}")
    with pytest.raises(ValueError, match=r"row 2 \(line 3\): teacher .* learned task 'stsb', this run's is 'rte'"):
        read_sweep(path)


def test_all_wrong_rows_are_told_at_once(sweep):
    with pytest.raises(ValueError) as error:
        read_sweep(sweep("task seed", "rte x", "rte 1", "rte -1"))
    assert len(str(error.value).splitlines()) == 2


def test_a_missing_table_and_a_wrong_setting_for_all_rows(sweep, tmp_path):
    with pytest.raises(FileNotFoundError):
        read_sweep(tmp_path / "none.tsv")
    with pytest.raises(ValueError, match="unknown parameter 'modle': did you mean 'model'"):
        read_sweep(sweep("task", "rte"), modle="x")


def test_progress_counts_and_foresees():
    now = [0.0]
    progress = Progress(total=6, done=1, clock=lambda: now[0])
    assert progress.note("job_started", 1).startswith("sweep: 1 done, 1 running, 0 failed, 4 to go; the end is known")
    progress.note("job_started", 2)
    now[0] = 60.0
    # one in a minute, four are left: two running or to go besides ... 5 - 1 = 4 minutes
    assert progress.note("job_finished", 1).startswith("sweep: 2 done, 1 running, 0 failed, 3 to go; ends about ")
    assert progress.line().endswith("in 4 min")
    assert "1 done" not in progress.note("job_error", 2) and "1 failed, 3 to go" in progress.line()
    assert "1 running, 0 failed, 3 to go" in progress.note("job_started", 2)  # tried again
    for job in (2, 3, 4, 5):
        progress.note("job_finished", job)
    assert progress.line() == "sweep: 6 done, 0 running, 0 failed, 0 to go"


def test_slurm_and_local_profiles_stop_nothing_else():
    slurm = yaml.safe_load((ROOT / "sweeps" / "slurm" / "config.yaml").read_text())
    local = yaml.safe_load((ROOT / "workflow" / "profiles" / "default" / "config.yaml").read_text())
    assert slurm["keep-going"] is local["keep-going"] is True
    assert slurm["executor"] == "slurm"
    assert set(slurm["set-resources"]["adapt"]) == {"gpu", "mem_mb", "runtime"}


def snakemake(folder: Path, *arguments: object, **more) -> subprocess.Popen:
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "workflow" / "Snakefile", *arguments]
    surroundings = {**os.environ, "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*map(str, command)], cwd=folder, env=surroundings, start_new_session=True, **pipes, **more)


@needs_snakemake
@pytest.mark.parametrize("profile", [(), ("--workflow-profile", ROOT / "sweeps" / "slurm")], ids=["local", "slurm"])
def test_dry_run(tmp_path, profile):
    if profile and importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        pytest.skip("needs snakemake-executor-plugin-slurm: pip install -e '.[sweep]'")
    told, _ = (process := snakemake(tmp_path, "--dry-run", *profile)).communicate()
    assert process.returncode == 0, told
    stats = dict(line.split() for line in told.splitlines() if line.split()[:1] in (["adapt"], ["compare"], ["draw"]))
    assert stats == {"adapt": "3", "compare": "1", "draw": "1"}
    assert ("gpu=1" in told) == bool(profile)
    assert not (tmp_path / "results").exists()


@needs_snakemake
def test_a_teacher_that_is_a_row_is_made_before_its_pupil(tmp_path):
    record = "out/task~rte_method~finetune_sparsity~0.5_seed~0_model~minilm.json"
    (tmp_path / "t.tsv").write_text(f"task\tmethod\tteacher\nrte\tadaprune\t{record}\nrte\tfinetune\t\n")
    told, _ = snakemake(tmp_path, "--dry-run", "--config", "sweep=t.tsv", "results_dir=out").communicate()
    inputs = [line for line in told.splitlines() if "input:" in line and "01_adapt" in line]
    assert sorted(record in line for line in inputs) == [False, True], told


@needs_snakemake
def test_a_wrong_table_stops_before_anything_runs(tmp_path, sweep):
    path = sweep("task method", "rte adaprune", "rte magnitud")
    told, _ = (process := snakemake(tmp_path, "-c1", "--config", f"sweep={path}")).communicate()
    assert process.returncode != 0
    assert "row 2 (line 3): method must be one of" in told and "Traceback" not in told
    assert not (tmp_path / "results").exists()


@needs_snakemake
def test_a_killed_sweep_goes_on_where_it_was(tmp_path, sweep, ten_sentences, tiny_model_dir):
    """Killed at a random moment, started again: every record once, none made again, none half; a failure stops none."""
    wrong = ten_sentences.parent / "none"
    rows = [f"{ten_sentences} {method} 0" for method in ("features", "random", "adaprune")]
    path = sweep("task method seed", *rows, f"{wrong} features 0")
    common = [
        f"sweep={path}",
        f"model={tiny_model_dir}",
        "epochs=2",
        "batch_size=4",
        "max_length=16",
        "results_dir=out",
    ]
    asked = ("-c2", "--config", *common)
    first = snakemake(tmp_path, *asked)
    wait = random.uniform(10, 40)
    time.sleep(wait)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in (tmp_path / "out").glob("*.json")}
    assert all(json.loads(content) for content, _ in before.values())  # whole, or not there

    snakemake(tmp_path, "--unlock", *asked).communicate()
    told, _ = (again := snakemake(tmp_path, *asked, "--retries", "1")).communicate()
    assert again.returncode != 0, told  # the row without data
    after = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in (tmp_path / "out").glob("*.json")}
    assert len(after) == 3 and before.items() <= after.items(), f"killed after {wait} s: {told}"
    assert {read_record(file)["run"]["method"] for file in after} == {"features", "random", "adaprune"}
    assert "sweep: 3 done, 0 running, 1 failed, 0 to go" in told
    assert "sweep: compare what is finished with: papermill" in told
    (log,) = (tmp_path / "runs" / "sweep").glob("*none*.ipynb")
    assert '"ename"' in log.read_text()  # the traceback stays

    told, _ = snakemake(tmp_path, *asked, "--dry-run", "--forceall").communicate()
    assert "adapt          1" in " ".join(told.split("Job stats:")[1].split("\n"))  # only the one that failed
