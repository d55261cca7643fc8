"""The study's runner, its tables, and the notebooks that read what it made."""

import csv
import json
import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import adaprune
from adaprune.report.sweeps import read_sweep
from adaprune.runs.records import read_record, record_path, table, write_record
from adaprune.runs.run import Run
from benchmarks import study
from tests.runs.test_records import make_record

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def small(ten_sentences, tiny_model_dir, tmp_path, monkeypatch):
    """A folder with data and a model by short names, to be in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "tiny").symlink_to(tiny_model_dir)
    return ten_sentences.name


def test_the_rows_of_a_sweep_run_side_by_side_and_a_failure_stops_nothing(small, tmp_path, capsys):
    head = "task model method epochs batch_size sparsity allocation max_length".split()
    rows = [[small, "tiny", method, "1", "4", "0.5", allocation, "16"]
            for method, allocation in [("magnitude", "scores"), ("features", ""), ("adaprune", "")]]  # fmt: skip
    Path("s.tsv").write_text("\n".join("\t".join(row) for row in [head, *rows]) + "\n")
    runs = read_sweep("s.tsv", results_dir="results/s")
    adaprune.adapt(runs[1])
    before = record_path(runs[1]).read_bytes()
    assert study.main(["--sweep", "s.tsv", "--jobs", "2", "--device", "cpu"]) == 1
    printed = capsys.readouterr().out
    assert "sweep: 1 done, 0 running, 0 failed, 2 to go" in printed.splitlines()[0]
    assert printed.count("failed (1): runs") == 1 and f'failed: "{runs[0].name}"' in printed
    assert read_record(record_path(runs[2]))["mask"] and not record_path(runs[0]).exists()
    assert record_path(runs[1]).read_bytes() == before  # not run again
    assert "allocation of magnitude" in (tmp_path / "runs" / "s" / f"{runs[0].name}.log").read_text()


def test_a_device_is_what_the_process_sees(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seen = {
        device: study.surroundings(device, 2).get("CUDA_VISIBLE_DEVICES") for device in ("", "cuda", "cuda:1", "cpu")
    }
    assert seen == {"": None, "cuda": None, "cuda:1": "1", "cpu": ""}
    assert int(study.surroundings("", 2)["OMP_NUM_THREADS"]) == max(1, os.cpu_count() // 2)
    with pytest.raises(ValueError, match=r"device must be cpu, cuda or cuda:N, got 'gpu'"):
        study.surroundings("gpu", 1)


@pytest.mark.parametrize(("more", "told"), [([], "none.tsv"), (["--jobs", "0"], "jobs must be at least 1, got 0")])
def test_a_wrong_command_line_is_refused_in_a_sentence(more, told, capsys):
    with pytest.raises(SystemExit):
        study.main(["--sweep", "none.tsv", *more])
    assert told in capsys.readouterr().err


# ---------------------------------------------------------------- the committed tables


def test_the_recipe_sweep_is_what_the_targets_ask_for():
    runs = read_sweep(ROOT / "sweeps" / "recipe.tsv")
    tasks = {"stsb": 0, "mrpc": 0, "rte": 0, "sst2": 20000}
    assert {(run.task, run.max_train_examples) for run in runs} == set(tasks.items())
    trained = [run for run in runs if run.method not in ("majority", "probe")]
    expected = {(False, 3, "bf16"), (True, 2, "bf16")}
    assert {(run.task == "sst2", run.epochs, run.precision) for run in trained} == expected
    found = {(run.task, run.method, run.sparsity, run.seed) for run in runs}
    expected = {(task, method, level, seed) for task in tasks for seed in range(3)
                for method, level in [("finetune", 0), ("adaprune", 0.5)]}  # fmt: skip
    expected |= {(task, method, 0, 0) for task in tasks for method in ("majority", "probe")}
    expected |= {(task, "adaprune", level, 0) for task in tasks for level in (0.8, 0.9, 0.97)}
    expected |= {(task, "smp", level, 0) for task in tasks for level in (0.5, 0.8, 0.9, 0.97)}
    expected |= {(task, "soft_movement", level, 0) for task in tasks for level in (0.5, 0.9)}
    assert found == expected and len(runs) == len(expected)


@pytest.mark.parametrize(("sweep", "pupils"), [("recipe", 48), ("base_size", 2)])
def test_pupils_have_their_teacher_in_the_sweep(sweep, pupils):
    """And it is their own seed's."""
    runs = read_sweep(ROOT / "sweeps" / f"{sweep}.tsv", results_dir=f"results/{sweep}")
    teachers = {str(record_path(run)): run for run in runs if run.method == "finetune"}
    taught = [run for run in runs if run.teacher]
    assert len(taught) == pupils
    shared = ["task", "model", "epochs", "max_train_examples", "precision", "seed"]
    for run in taught:
        assert all(getattr(teachers[run.teacher], name) == getattr(run, name) for name in shared), run.name


def test_the_long_sweep_is_the_recipe_with_four_times_the_epochs_and_the_same_teachers():
    short = {run.name: run for run in read_sweep(ROOT / "sweeps" / "recipe.tsv", results_dir="results/recipe")}
    teachers = {str(record_path(run)) for run in short.values() if run.method == "finetune"}
    long = read_sweep(ROOT / "sweeps" / "recipe_long.tsv", results_dir="results/recipe_long")
    methods = [("finetune", 0), ("adaprune", 0.5), ("adaprune", 0.8), ("adaprune", 0.9), ("adaprune", 0.97)]
    methods += [("majority", 0), ("probe", 0)]
    rival = {("stsb", "smp", 0.9), ("stsb", "smp", 0.97)}
    expected = {(task, *method) for task in ("stsb", "mrpc", "rte", "sst2") for method in methods} | rival
    assert {(r.task, r.method, r.sparsity) for r in long} == expected and len(long) == len(expected)
    for run in long:
        untrained = run.method in ("majority", "probe")
        assert run.seed == 0 and (run.teacher in teachers) == (run.method != "finetune" and not untrained)
        assert run.name in short if run.task == "sst2" or untrained else (run.epochs, run.max_train_examples) == (12, 0)


# ---------------------------------------------------------------- the notebooks


def execute(name, folder, **parameters):
    """The cells of a notebook with other parameters, in a folder; returns what they printed."""
    notebook = nbformat.read(ROOT / "notebooks" / name, 4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    changed = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    sources = ["%config InlineBackend.figure_format = 'png'", code[0], changed, *code[1:]]
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(made, kernel_name="python3", resources={"metadata": {"path": str(folder)}}, timeout=400).execute()
    return "".join(output.get("text", "") for cell in made.cells for output in cell.get("outputs", []))


@pytest.fixture
def own_kernel(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")


def test_the_study_notebook_shows_means_differences_and_what_was_not_run(tmp_path, own_kernel):
    """Of the reference and of one idea at 0.5 on two tasks, of others on one of them only; one was asked in a field
    that `Run` no longer has, and a third task has a teacher but no reference.
    """
    told = ["as before,,better,", "faster,learning_rate=0.001,worse,no", "by slope,initial_theta=gradient,level,yes"]
    told += ["by turns,step_rule=sgd learning_rate=0.001,worse,no", "bigger,batch_size=64,better,"]
    (tmp_path / "i.csv").write_text("\n".join(["idea,settings,prediction,kept", *told, "other,not built,none,"]) + "\n")
    asked = {"results_dir": "out", "figures_dir": "out", "ideas_file": "i.csv"}
    with pytest.raises(CellExecutionError, match="out is not a folder"):
        execute("06_recipe_study.ipynb", tmp_path, **asked)

    def write(score, task, level=0.5, retired=None, **more):
        run = Run(task=task, sparsity=level, epochs=3.0, results_dir=str(tmp_path / "out"), **more)
        metrics = {"validation": {"f1": 0.1}, "selection": {"f1": score}, "primary": "f1"}
        path = write_record(make_record(run, metrics=metrics), run)
        if retired:
            record = json.loads(path.read_text())
            path.unlink()
            path.with_stem("older").write_text(json.dumps({**record, "run": record["run"] | retired}))

    write(0.8, "rte", method="finetune")
    with pytest.raises(CellExecutionError, match="out has no record of adaprune, so no reference"):
        execute("06_recipe_study.ipynb", tmp_path, **asked)
    for task, scores in {"stsb": (0.5, 0.6), "mrpc": (0.7, 0.75)}.items():
        for score, rate in zip(scores, (0.0, 0.001), strict=True):
            write(score, task, learning_rate=rate)
    write(0.9, "stsb", initial_theta="gradient")
    write(0.4, "stsb", 0.9, learning_rate=0.001, retired={"step_rule": "sgd"})
    assert "6 runs; 4 of 5 ideas have at least one." in execute("06_recipe_study.ipynb", tmp_path, **asked)
    lines = (tmp_path / "out" / "table_recipe_study.md").read_text().splitlines()
    cells = {tuple(cell.strip() for cell in line.strip("|").split("|"))[2]: line for line in lines[3:] if line}
    assert "| 0.600 (+0.000) | not run | open |" in cells["as it stands"]
    assert "| 0.675 (+0.075) | not run | no |" in cells["learning_rate=0.001"]
    assert "| not run | not run | yes |" in cells["initial_theta=gradient"]  # one task is no mean
    assert "| not run | not run | no |" in cells["step_rule=sgd learning_rate=0.001"]
    assert "| not run | not run | open |" in cells["batch_size=64"]
    assert "| - | - | no |" in cells["not built"]
    write(0.4, "stsb", learning_rate=0.5)
    with pytest.raises(CellExecutionError, match="AssertionError"):  # a run without an idea
        execute("06_recipe_study.ipynb", tmp_path, **asked)


def test_each_idea_of_the_study_has_runs_and_each_run_an_idea(tmp_path, own_kernel):
    """The notebook's own assertions on the committed ideas and records, and the committed table again."""
    ideas_file = ROOT / "results" / "recipe_study" / "ideas.csv"
    asked = {"ideas_file": str(ideas_file), "results_dir": str(ideas_file.parent), "figures_dir": "out"}
    with open(ideas_file, newline="") as file:
        ideas = list(csv.DictReader(file))
    tried = [idea for idea in ideas if not idea["settings"] or "=" in idea["settings"]]
    printed = execute("06_recipe_study.ipynb", tmp_path, **asked)
    gone = [idea for idea in tried if idea["kept"].startswith("withdrawn")]  # their records were of a fault
    assert f"{len(tried) - len(gone)} of {len(tried)} ideas have at least one." in printed
    written = (tmp_path / "out" / "table_recipe_study.md").read_bytes()
    assert written == (ROOT / "figures" / "table_recipe_study.md").read_bytes()
    assert len(written.splitlines()) - 4 == len(ideas) and all(idea["prediction"] for idea in ideas)


def test_the_sparsity_notebook_cuts_what_has_theta_and_reads_what_had(small, tmp_path, own_kernel):
    common = {"task": small, "model": "tiny", "epochs": 1, "batch_size": 4, "max_length": 16, "results_dir": "out"}
    for level in (0.5, 0.9):
        adaprune.adapt(Run(**common, sparsity=level, keep="theta" if level == 0.5 else ""))
    asked = {"results_dir": "out", "figures_dir": "pictures", "refit_head_epochs": 1.0}
    printed = execute("03_sparsity.ipynb", tmp_path, **asked)
    assert "2 runs of adaprune, 1 of them with a stored theta" in printed and "within 2 points at" in printed
    picture = Path("pictures", f"extra_one_run_{small.replace('_', '-')}.svg")
    first, stored = picture.read_bytes(), Path("out", "one_run.csv").read_bytes()
    assert len(stored.splitlines()) == 1 + 2 * 2
    (theta,) = Path("out", "thetas").iterdir()
    theta.unlink()
    assert "0 of them with a stored theta" in execute("03_sparsity.ipynb", tmp_path, **asked)
    assert picture.read_bytes() == first and Path("out", "one_run.csv").read_bytes() == stored
    Path("out", "one_run.csv").unlink()
    with pytest.raises(CellExecutionError, match="out has no theta and no one_run.csv: run something"):
        execute("03_sparsity.ipynb", tmp_path, **asked)
    assert len(table("out")) == 2
