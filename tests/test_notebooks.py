"""The notebooks: their form, the one that trains through papermill, and what a wrong parameter leads to."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from adaprune import Run, adapt, load_encoder, load_mask
from adaprune.runs.records import read_record, write_record
from tests.deploy.test_serving import make_mask
from tests.runs.test_records import make_record

ROOT = Path(__file__).resolve().parents[1]
ADAPT = ROOT / "notebooks" / "01_adapt.ipynb"
START = ROOT / "notebooks" / "00_start_here.ipynb"
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))
SHORTER = {"max_train_examples": 2000}  # the one default of the notebook that is not Run's: five minutes
COLAB = "# On Colab: "
MAGIC = re.compile(r"^\s*[%!].*$", re.M)

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code(path: Path) -> list[NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def parsed(cell: NotebookNode) -> ast.Module:
    return ast.parse(MAGIC.sub("pass", cell.source))


def parameters(path: Path) -> NotebookNode:
    (cell,) = (cell for cell in code(path) if "parameters" in tags(cell))
    return cell


def defaults(path: Path) -> dict:
    """Name -> value of the parameters cell."""
    return {line.target.id: ast.literal_eval(line.value) for line in parsed(parameters(path)).body}


@each_notebook
def test_form(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.metadata.kernelspec.name) == (4, "python3")
    ids = [cell["id"] for cell in notebook.cells]
    assert ids == [str(number) for number in range(len(ids))]
    for cell in code(path):
        assert not cell.outputs and cell.execution_count is None


@each_notebook
def test_opens_with_one_heading_and_a_question(path):
    cells = read(path).cells
    headings = [
        line for cell in cells if cell.cell_type == "markdown" for line in re.findall("^# .*", cell.source, re.M)
    ]
    assert cells[0].cell_type == "markdown"
    assert headings == [cells[0].source.splitlines()[0]]
    assert headings[0].endswith("?")
    for word in ("**Reads**", "**Writes**", "**Takes**", "paper"):
        assert word in cells[0].source


@each_notebook
def test_says_rather_than_programmes(path):
    for cell in code(path):
        for node in ast.walk(parsed(cell)):
            assert not isinstance(node, (ast.ClassDef, ast.While))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno < 5, node.name


@each_notebook
def test_runs_top_to_bottom_only(path):
    """No cell binds a name that an earlier cell has bound, but for figures, which each cell makes anew."""
    bound: set[str] = set()
    for cell in code(path):
        tree = parsed(cell)
        inner = [n for c in ast.walk(tree) if isinstance(c, (ast.ListComp, ast.DictComp, ast.SetComp, ast.GeneratorExp))
                 for n in ast.walk(c)]  # fmt: skip
        names = {
            node.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node not in inner
        }
        again = names & bound - {"_", "fig", "ax", "axes", "left", "right", "file", "score", "records"}
        assert not again, f"{path.name}: {again} bound again"
        bound |= names


@each_notebook
def test_names_no_place_of_one_machine_and_installs_nothing(path):
    for cell in read(path).cells:
        assert not re.search(r"""["'( ](/|~/|[A-Z]:\\)\w""", cell.source)
        assert not re.search(r"[%!]\s*(pip|conda)|https?://", cell.source)


@each_notebook
def test_parameters_come_first_and_are_plain(path):
    first, *cells = [cell for cell in code(path) if not cell.source.startswith(COLAB)]
    assert "parameters" in tags(first)
    assert not any(tags(cell) for cell in cells)
    for line in parsed(first).body:
        assert isinstance(line, ast.AnnAssign)
        assert type(ast.literal_eval(line.value)).__name__ == line.annotation.id


def test_one_header_for_colab_before_all_else_where_readers_begin():
    firsts = {path: code(path)[0].source for path in NOTEBOOKS}
    headers = {path: source for path, source in firsts.items() if source.startswith(COLAB)}
    assert [*headers] == [path for path in NOTEBOOKS if path == START or path.parent.name == "teach"]
    assert len(set(headers.values())) == 1
    assert sum(COLAB in cell.source for path in NOTEBOOKS for cell in code(path)) == len(headers)


def test_every_notebook_is_on_the_map():
    text = "\n".join(cell.source for cell in read(START).cells)
    linked = re.findall(r"\]\(([\w/]+\.ipynb)\)", text)
    assert sorted(linked) == [str(path.relative_to(ROOT / "notebooks")) for path in NOTEBOOKS]


def test_the_parameters_of_01_adapt_are_the_fields_of_run():
    values = defaults(ADAPT)
    assert list(values) == list(Run.model_fields)
    assert values == {**Run().model_dump(), **SHORTER}
    Run(**values)


def test_the_help_of_01_adapt_is_that_of_run():
    lines = [line for line in parameters(ADAPT).source.splitlines() if not line.startswith("#")]
    for line, (name, field) in zip(lines, Run.model_fields.items(), strict=True):
        assert line.startswith(f"{name}: ")
        assert line.partition("  # ")[2].startswith(field.description)


def test_the_parameters_of_01_adapt_are_in_the_groups_of_run():
    """The lines above the groups are those of run.py, above the same fields."""
    written = parameters(ADAPT).source
    source = (ROOT / "adaprune" / "runs" / "run.py").read_text(encoding="utf8")
    groups = {name: heading for heading, name in re.findall(r"^    (# .*)\n    (\w+): ", source, re.M)}
    assert list(groups.values()) == [
        "# What to run: all that most people need.",
        "# How to train: the recipe decides what is left at 0 or empty.",
        "# Where to run, and what to keep besides the record and the mask.",
    ]
    assert {name: heading for heading, name in re.findall(r"^(# .*)\n(\w+): ", written, re.M)} == groups
    assert len(re.findall("^#", written, re.M)) == len(groups)


def test_papermill_explains_every_parameter():
    command = [sys.executable, "-m", "papermill", "--help-notebook", str(ADAPT)]
    told = " ".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    for name, value in defaults(ADAPT).items():
        shown = f'"{value}"' if isinstance(value, str) else value
        assert f"{name}: {type(value).__name__} (default {shown}) {Run.model_fields[name].description}" in told


def test_01_adapt_reads_before_it_trains_and_ends_with_a_table():
    cells = [cell.source for cell in code(ADAPT)]
    assert "Run.from_namespace(globals())" in cells[1]
    (read_at,) = (number for number, source in enumerate(cells) if "rows_read(" in source)
    (trained_at,) = (number for number, source in enumerate(cells) if "adapt(run)" in source)
    assert read_at < trained_at
    assert "display(pd.DataFrame(" in cells[-1] and not any("application/json" in source for source in cells)


def papermill(source: Path, target: Path, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "papermill", "-k", "python3", "--no-progress-bar", source, target, *arguments]
    surroundings = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "JUPYTER_PREFER_ENV_PATH": "1"}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=target.parent, env=surroundings)


def printed(path: Path) -> str:
    return "".join(output.get("text", "") for cell in code(path) for output in cell.outputs)


@pytest.fixture
def tiny(ten_sentences, tiny_model_dir) -> list[object]:
    """Parameters of a run that takes a second."""
    chosen = {"task": ten_sentences, "model": tiny_model_dir, "max_train_examples": 0, "epochs": 2, "batch_size": 4}
    chosen["max_length"] = 16
    return [word for name, value in chosen.items() for word in ("-p", name, value)] + ["-p", "results_dir", "out"]


def test_the_suite_small(tmp_path, tiny, ten_sentences):
    """01_adapt with a mask and without one, then 00_start_here over their records; folders from the caller's."""
    for method in ("adaprune", "features"):
        done = papermill(ADAPT, tmp_path / f"{method}.ipynb", *tiny, "-p", "method", method)
        assert done.returncode == 0, done.stderr
    learned, features = (read_record(path) for path in sorted((tmp_path / "out").glob("*.json")))
    assert (learned["run"]["method"], features["run"]["method"]) == ("adaprune", "features")
    assert learned["weights_intact"] and features["weights_intact"]
    (mask,) = (tmp_path / "out" / "masks").glob("*.safetensors")
    assert load_mask(mask).kept == learned["mask"]["kept"] == round(0.5 * learned["mask"]["total"])
    assert features["mask"] is None

    table = code(tmp_path / "adaprune.ipynb")[-1].outputs[-1].data["text/plain"]
    facts = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in table.splitlines()[1:])
    assert facts["accuracy, this run"] == f"{learned['metrics']['validation']['accuracy']:.4f}"
    assert facts["accuracy, commonest label"] == "0.5000" and facts["dev rows"] == "4"
    alike = {"task": str(ten_sentences), "method": "probe", "sparsity": 0.0, "results_dir": str(tmp_path / "probe")}
    probe = adapt(Run(**alike, model=learned["run"]["model"], max_length=16))
    assert facts["accuracy, probe"] == f"{probe['metrics']['validation']['accuracy']:.4f}"
    assert facts["record"].endswith(f"{Run(**learned['run']).name}.json")
    shown = next(cell.outputs for cell in code(tmp_path / "adaprune.ipynb") if "rows_read(" in cell.source)
    rows, lengths, texts = (output.data["text/plain"] for output in shown if "data" in output)
    assert rows.splitlines()[0].split() == ["rows", "bad", "good"] and re.search(r"validation +4 +2 +2", rows)
    assert lengths.splitlines()[0].split() == ["median", "longest", "cut", "unknown"]
    assert "a fine film" in texts and len(texts.splitlines()) == 4
    assert "first run of its kind" in printed(tmp_path / "adaprune.ipynb")
    assert "has no mask" in printed(tmp_path / "features.ipynb")
    assert "first run of its kind" not in printed(tmp_path / "features.ipynb")

    done = papermill(START, tmp_path / "start.ipynb", "-p", "results_dir", "out", "-p", "figures_dir", "pictures")
    assert done.returncode == 0, done.stderr
    shown = printed(tmp_path / "start.ipynb")
    for record in (learned, features):
        assert f"{record['metrics']['validation']['accuracy']:.4f}".rstrip("0").rstrip(".") in shown
    for suffix in ("svg", "png"):
        assert (tmp_path / "pictures" / f"extra_comparison.{suffix}").is_file()


def test_01_adapt_runs_as_a_script(tmp_path, ten_sentences, tiny_model_dir):
    pytest.importorskip("nbconvert")
    convert = [sys.executable, "-m", "nbconvert", "--to", "script", "--output-dir", str(tmp_path), str(ADAPT)]
    subprocess.run(convert, check=True, capture_output=True)
    script = tmp_path / "01_adapt.py"
    chosen = {"task": str(ten_sentences), "model": str(tiny_model_dir), "max_train_examples": 0, "epochs": 1.0,
              "max_length": 16, "results_dir": "out"}  # fmt: skip
    source = script.read_text()
    for name, value in chosen.items():
        source, found = re.subn(rf"^{name}: (\w+) = \S+", rf"{name}: \1 = {value!r}", source, flags=re.M)
        assert found == 1
    script.write_text(source)
    surroundings = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg",
                    "PYTHONPATH": str(ROOT)}  # fmt: skip
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (record,) = (read_record(path) for path in (tmp_path / "out").glob("*.json"))
    score = record["metrics"]["validation"]["accuracy"]
    assert re.search(rf"accuracy, this run +{score:.4f}", done.stdout)


COMPARE = ROOT / "notebooks" / "02_compare.ipynb"


def test_comparison_has_the_same_bytes_again_and_refuses_what_it_cannot_compare(tmp_path):
    """One kernel: no folder, records twice, one of another schema; tasks with and without the paper's curve.

    One record is of a user's own method, which the kernel does not know.
    """
    scores = {"stsb": ("spearman", 0.8), "mrpc": ("accuracy", 0.7)}
    for task, (metric, score) in scores.items():
        for method in ("adaprune", "magnitude", "finetune"):
            for seed in range(2):
                run = Run(task=task, method=method, seed=seed, results_dir=str(tmp_path / "out"))
                metrics = {"validation": {metric: score + seed / 64}, "selection": {}, "primary": metric}
                write_record(make_record(run, metrics=metrics), run)
    run = Run(task="stsb", method="features", results_dir=str(tmp_path / "out"))
    known = write_record(make_record(run), run)
    own = known.read_text().replace('"features"', '"of_ones_own"').replace('"f1"', '"spearman"')
    known.rename(known.with_stem("own")).write_text(own)
    before, first, *rest = (cell.source for cell in code(COMPARE))
    asked = ['results_dir, figures_dir = "out", "one"', first, *rest, 'figures_dir = "two"', *rest]
    old = """path = next(Path("out").glob("*.json"))
path.write_text(path.read_text().replace('schema_version": 1', 'schema_version": 7'))"""
    sources = [before, "results_dir = 'none'", first, rest[0], *asked, old, rest[0]]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, kernel_name="python3", allow_errors=True, resources=resources, timeout=120).execute()
    errors = [output for cell in notebook.cells for output in cell.outputs if output.output_type == "error"]
    assert [error.ename for error in errors] == ["ValueError"] * 2, errors
    assert errors[0].evalue.startswith("none is not a folder: `make run` makes some")
    assert "has schema_version 7, but this adaprune reads 1" in errors[1].evalue and ".json" in errors[1].evalue
    assert all(len(error.traceback) == 1 for error in errors)
    printed_there = "".join(output.get("text", "") for cell in notebook.cells for output in cell.outputs)
    assert "differences 3, could be tested 0, significant 0" in printed_there  # both seeds differ by the same

    pictures = [*(f"fig2_{task}" for task in scores), "extra_retention"]
    names = {f"{picture}.{suffix}" for picture in pictures for suffix in ("svg", "png")} | {"table_out.md"}
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert set(one) == names and one == two
    for picture in ("fig2_mrpc", "fig2_stsb", "extra_retention"):
        assert b"epochs: the recipe's; seeds per point: " in one[f"{picture}.svg"]
        assert b"notebooks/02_compare.ipynb from out: " in one[f"{picture}.svg"]
    assert b"of_ones_own" not in one["fig2_stsb.svg"]  # which has the paper's methods alone
    assert b"| of_ones_own | - | 0.750 (1) |" in one["table_out.md"]
    assert b"the paper: BERT-base" not in one["fig2_mrpc.svg"] and len(one["fig2_stsb.svg"]) > len(one["fig2_mrpc.svg"])


def test_papermill_fails_on_an_unknown_name_and_writes_nothing(tmp_path, tiny):
    done = papermill(ADAPT, tmp_path / "x.ipynb", *tiny, "-p", "tusk", "sst2")
    assert done.returncode == 1
    assert "unknown parameter 'tusk': did you mean 'task'?" in done.stderr
    assert "Traceback" not in done.stderr.split("PapermillExecutionError")[-1]
    assert not (tmp_path / "out").exists()


WRONG = {
    "tusk = 'sst2'": "unknown parameter 'tusk': did you mean 'task'?",
    "sparsity = 'half'": "sparsity must be a number, got 'half'",
    "sparsity = 1.0": "sparsity must lie in [0, 1), got 1.0",
    "sparsity = float('nan')": "sparsity must be a finite number, got nan",
    "method = 'foo'": "method must be one of 'adaprune', 'finetune', 'features', 'majority', 'probe', ",
    "recovery = 'false'": "recovery must be True or False, got 'false' (str): write False, with a capital letter",
    "task = 100000.0": "task must be text, got 100000.0 (float)",
    "seed = None": "seed must be a whole number, got None",
}


def test_wrong_parameters_are_refused_in_one_sentence(tmp_path):
    """One kernel for all: each culprit is set, the cell after the parameters run, and the culprit taken back."""
    right, build = (cell.source for cell in code(ADAPT)[:2])
    rounds = [[right, build]] + [[wrong, build, f"del {wrong.split()[0]}", right] for wrong in WRONG]
    sources = [source for sources in rounds for source in sources] + [build]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, kernel_name="python3", allow_errors=True, resources=resources, timeout=400).execute()
    outputs = [list(cell.outputs) for cell in notebook.cells]
    errors = [output[-1] for output in outputs if output]
    assert [error.ename for error in errors] == ["ValueError"] * len(WRONG)
    for error, sentence in zip(errors, WRONG.values(), strict=True):
        assert error.evalue.startswith(sentence)
        assert len(error.traceback) == 1  # no frames, the message only
    assert not any(tmp_path.iterdir())


MANY = ROOT / "notebooks" / "07_many_tasks.ipynb"


def test_many_tasks_on_made_up_masks(tmp_path, ten_sentences, tiny_model_dir):
    """Three tasks over one tiny base, one of them a regression; then a folder with one mask, which is too few."""
    encoder, out = load_encoder(str(tiny_model_dir)).model, tmp_path / "out"
    grades = tmp_path / "grades.csv"
    grades.write_text("text,label\n" + "".join(f"a fine film {n},{n / 4}\n" for n in range(40)))
    twice = tmp_path / "twice"
    shutil.copytree(ten_sentences, twice)
    for seed, task in enumerate((ten_sentences, twice, grades)):
        run = Run(task=str(task), model=str(tiny_model_dir), results_dir=str(out))
        metrics = {"validation": {"accuracy": 0.5}, "selection": {}, "primary": "accuracy"}
        labels, said = [] if task == grades else ["bad", "good"], {"task": str(task), "metrics": metrics}
        make_mask(out / "masks", encoder, run.name, labels, seed, model=tiny_model_dir, **said)
        write_record(make_record(run, metrics=metrics), run)
    found = {("probe", 0.0): (9, 0.5), ("majority", 0.0): (9, 0.4), ("finetune", 0.0): (10**8, 0.9)}
    found |= {("adaprune", 0.5): (200_000, 0.8), ("adaprune", 0.9): (90_000, 0.7), ("lora", 0.0): (300_000, 0.85)}
    found |= {("magnitude", 0.5): (210_000, 0.75)}
    for (method, sparsity), (size, score) in found.items():
        for task in ("cola", "sst2"):
            run = Run(task=task, method=method, sparsity=sparsity, results_dir=str(tmp_path / "frontier"))
            made = make_record(run, metrics={"validation": {"f1": score}, "selection": {"f1": score}, "primary": "f1"})
            made["cost"]["shipped_bytes"] = size
            write_record(made, run)
    asked = ["-p", "figures_dir", "pictures", "-p", "sentences", 4, "-p", "group_size", 2]
    asked += ["-p", "frontier_dir", "frontier", "-p", "speed_dirs", "frontier nowhere"]
    at = {"shape": "minilm", "batch": "1x32", "threads": 1}
    rows = [
        {**at, "way": "sparse", "sparsity": s, "mask": "magnitude", "faster": {"median": 9 * s}} for s in (0.5, 0.9)
    ]
    (timed := tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (timed / "inference_minilm.json").write_text(json.dumps({"rows": rows}))
    done = papermill(MANY, tmp_path / "many.ipynb", "-p", "results_dir", "out", *asked)
    assert done.returncode == 0, done.stderr
    shown = printed(tmp_path / "many.ipynb")
    assert "of 3 tasks in one batch" in shown and "magnitude" in (tmp_path / "many.ipynb").read_text()
    for way, of in {"2 texts, one gradient": 4, "1 text, one pass per task, normalised": 8}.items():
        (line,) = re.findall(rf"^{way} +(\d+) +{of} +(\S+) +0.5 *$", shown, re.MULTILINE)
        assert float(line[1]) == round(int(line[0]) / of, 3)
    assert len(list((tmp_path / "pictures").glob("extra_many_tasks_*"))) == 4
    # shares of the gain over 0.5: 0.75 of the mask at 0.5, 0.5 at 0.9, 0.875 of lora, 0.625 of the magnitude mask
    assert "both bytes and share: adaprune 0.9; adaprune 0.5; lora r = 8; finetune" in shown
    assert "that another way beats in both: none" in shown and re.search(r"magnitude 0.5 +210000.0 +0.625", shown)
    assert (tmp_path / "pictures" / "extra_frontier.svg").is_file()
    for sparsity, share in ((0.5, "0.75"), (0.9, "0.50")):
        assert re.search(rf"weights +{sparsity} +{share} +CoLA, SST-2 +1 +frontier", shown)
    assert (tmp_path / "pictures" / "extra_speed.svg").is_file()
    for file in list((out / "masks").glob("*.safetensors"))[1:]:
        file.unlink()
    done = papermill(MANY, tmp_path / "one.ipynb", "-p", "results_dir", "out", *asked)
    assert done.returncode != 0 and "masks of 1 tasks, two are needed: make masks" in done.stderr


def test_paths_beside_the_notebook_are_meant_there_and_absolute_ones_stay(tmp_path, monkeypatch):
    """What JupyterLab does: the notebook runs in its own folder, and goes to the repository's root."""
    setting = next(cell for cell in code(ADAPT) if "os.chdir" in cell.source)
    (block,) = (line for line in parsed(setting).body if isinstance(line, ast.If) and "chdir" in ast.unparse(line))
    for name in ("adaprune", "notebooks/mine"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("notebooks/01_adapt.ipynb", "notebooks/mine/a.csv", "b.csv"):
        (tmp_path / name).write_text("")
    given = {"task": "mine/a.csv", "model": "minilm", "teacher": "", "data_dir": "..", "results_dir": "../out"}
    meant = {"task": "notebooks/mine/a.csv", "model": "minilm", "teacher": "", "data_dir": ".", "results_dir": "out"}
    absolute = {"task": str(tmp_path / "b.csv"), "teacher": "~/t.json", "results_dir": "results"}
    for values, expected in ((given, meant), (given | absolute, meant | absolute)):
        monkeypatch.chdir(tmp_path / "notebooks")
        names = {**values, "os": os, "Path": Path}
        exec(compile(ast.Module([block], []), "cell", "exec"), names)  # noqa: S102
        assert {name: names[name] for name in values} == expected
        assert Path.cwd() == tmp_path
    assert Run.from_namespace({name: value for name, value in names.items() if name != "os"}).task == absolute["task"]
