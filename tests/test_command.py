"""The command: results on standard output, all else on standard error, exit codes, help that a person reads."""

import io
import json
import subprocess
import sys
import warnings

import pandas as pd
import pytest

import adaprune
from adaprune import command
from adaprune.adapted import FILES
from adaprune.command import FIRST, main
from adaprune.runs import METHODS, Run


@pytest.fixture(scope="module")
def folder(tiny_runs_dir):
    """A model fitted by the command; its folder."""
    out = tiny_runs_dir / "by_command"
    main([*fit_of(tiny_runs_dir), "--out", str(out), "--epochs", "1", "--sparsity", "0.25"])
    return out


def fit_of(runs) -> list[str]:
    return ["fit", str(runs / "ten"), "--model", str(runs / "tiny"), "--max-length", "16"]


def said(capsys, *arguments: object) -> tuple[str, str]:
    capsys.readouterr()
    main([str(argument) for argument in arguments])
    return capsys.readouterr()


def refused(capsys, *arguments: object) -> tuple[int, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    return left.value.code, err


def test_fit_leaves_three_files_and_the_records(folder, tiny_runs_dir, capsys):
    assert {path.name for path in folder.iterdir()} == {*FILES, "runs"}
    (ours, *others) = sorted((folder / "runs").glob("*.json"))
    assert "method~adaprune_sparsity~0.25_" in ours.name and len(others) == 1
    assert json.loads((folder / "card.json").read_text())["sparsity"] == 0.25
    before = (folder / "mask.safetensors").stat().st_mtime_ns
    out, err = said(capsys, *fit_of(tiny_runs_dir), "--out", folder, "--epochs", "1", "--sparsity", "0.25")
    first, second = out.splitlines()
    assert first.startswith("accuracy 0.") and "dev rows" in first
    assert second == f"{folder}/mask.safetensors  {(folder / 'mask.safetensors').stat().st_size:,} bytes"
    assert (folder / "mask.safetensors").stat().st_mtime_ns > before  # found again, not trained: no bar
    assert "training:" not in err


def test_a_table_that_has_changed_is_refused_in_the_words_of_the_command(tiny_runs_dir, tmp_path, capsys):
    (tmp_path / "t.csv").write_text((tiny_runs_dir / "ten" / "train.csv").read_text())
    asked = ("fit", tmp_path / "t.csv", *fit_of(tiny_runs_dir)[2:], "--method", "probe", "--out", tmp_path / "out")
    said(capsys, *asked)
    (tmp_path / "t.csv").write_text((tiny_runs_dir / "ten" / "train.csv").read_text() + "a cold film,bad\n")
    out, err = said(capsys, "evaluate", tmp_path / "out", tmp_path / "t.csv")
    assert (
        "accuracy" in json.loads(out) and "t.csv has the name of the file that this model was fitted to: on rows" in err
    )
    code, err = refused(capsys, *asked)
    assert code == 1 and err.endswith(".json: the data have changed: choose another --out, or delete the record\n")


def test_fit_leaves_what_is_anothers(tiny_runs_dir, tmp_path, capsys):
    (tmp_path / "README.md").write_text("my notes")
    code, err = refused(capsys, *fit_of(tiny_runs_dir), "--out", tmp_path)
    assert code == 1 and err.startswith(f"adaprune: {tmp_path / 'README.md'} is not adaprune's, yet would be replaced")
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]  # refused before anything was trained
    assert (tmp_path / "README.md").read_text() == "my notes"


def test_predictions_are_the_models_however_texts_come(folder, tmp_path, capsys, monkeypatch):
    texts = ["a fine film", 'dull, "flat" and long']
    labels, scores = adaprune.Adapted.from_pretrained(folder).predict(texts, return_scores=True)
    expected = {"text": texts, "label": labels}
    pd.DataFrame({"text": texts, "id": [1, 2]}).to_csv(tmp_path / "t.csv", index=False)
    pd.DataFrame({"text": texts}).to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    pd.DataFrame({"text": texts}).to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    pd.DataFrame({"text": texts}).to_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.txt").write_text("\n".join(texts) + "\n\n")
    files = [("--file", tmp_path / f"t.{end}") for end in ("csv", "jsonl", "tsv", "parquet", "txt")]
    for ways in (texts, *files):
        out, err = said(capsys, "predict", folder, *ways)
        assert pd.read_csv(io.StringIO(out)).to_dict("list") == expected
        assert "label" not in err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(texts).encode())))
    out, _ = said(capsys, "predict", folder, "-", "--format", "jsonl", "--scores")
    for row, text, label, score in zip(map(json.loads, out.splitlines()), texts, labels, scores, strict=True):
        assert (row.pop("text"), row.pop("label")) == (text, label)
        assert row == pytest.approx({f"p_{name}": share for name, share in score.items()})


LABELLED = [(f"a {n}", "good") for n in range(4)] + [(f"b {n}", "bad") for n in range(4)]
BAD_FILES = {
    "swallowed.tsv": (
        "text\tlabel\n" + "\n".join("\t".join(row) for row in LABELLED).replace("a 1", '"a 1').replace("b 2", 'b 2"'),
        "a double quote in line 3 makes one row of the lines 3 to 8",
    ),
    "ragged.csv": ("text,label\na,b,good\nc,bad\n", "row 1 has 3 fields, the header has 2"),
    "again.csv": ("text,label\na,good\ntext,label\nb,bad\n", "line 3 repeats the header"),
    "empty.csv": ("text,label\na,good\n ,bad\n", "row 2, column 'text': the text is empty"),
    "half.jsonl": (
        '{"text": "a", "label": "good"}\n{"text": "\\ud800", "label": "bad"}\n',
        "row 2, column 'text': holds the lone surrogate",
    ),
    "number.jsonl": ('{"text": 3, "label": "good"}\n', "row 1, column 'text': 3 is not a string"),
    "twice.jsonl": ('{"text": "a", "text": "b", "label": "good"}\n', "line 1 gives text twice"),
    "other.csv": ("texts,label\na,good\n", "lacks the column 'text' (it has: texts, label)"),
    "damaged.parquet": ("PAR1", "cannot be read as Parquet"),
    "none.csv": ("", "the file is empty; it needs the column"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_are_read_in_one_way(folder, tiny_runs_dir, tmp_path, capsys, name):
    """What `fit` refuses in a table, `evaluate` and `predict` do, in the same words."""
    content, sentence = BAD_FILES[name]
    path = tmp_path / name
    path.write_text(content)
    asked = {
        "fit": ("fit", path, *fit_of(tiny_runs_dir)[2:], "--out", tmp_path / "out"),
        "evaluate": ("evaluate", folder, path),
        "predict": ("predict", folder, "--file", path),
    }
    for arguments in asked.values():
        code, err = refused(capsys, *arguments)
        assert code == 1 and f"adaprune: {path}: {sentence}" in err


def test_paths_of_texts(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "t.csv").write_text("id;text\n1;a fine film\n")
    out, _ = said(capsys, "predict", folder, "--file", "~/t.csv")
    assert pd.read_csv(io.StringIO(out))["text"].tolist() == ["a fine film"]
    (tmp_path / "t.txt").write_bytes(b"a\n\xff")
    for wrong, sentence in {"no.csv": "no such file", "no.txt": "no such file", "t.txt": "line 2 is not UTF-8"}.items():
        code, err = refused(capsys, "predict", folder, "--file", f"~/{wrong}")
        assert code == 1 and err.startswith(f"adaprune: {tmp_path / wrong}: {sentence}")


def test_evaluate_inspect_and_compare_say_what_the_files_say(folder, tiny_runs_dir, capsys):
    record = json.loads(next((folder / "runs").glob("*adaprune*.json")).read_text())
    out, _ = said(capsys, "evaluate", folder, tiny_runs_dir / "ten" / "validation.csv")
    assert json.loads(out) == pytest.approx(record["metrics"]["validation"])
    for file in (folder, folder / "mask.safetensors"):
        out, _ = said(capsys, "inspect", file)
        lines = dict(line.split(maxsplit=1) for line in out.splitlines() if not line.startswith(("base", "held")))
        assert lines["labels"] == "bad, good" and lines["reads"] == "text" and lines["method"] == "adaprune"
        kept, total = record["mask"]["kept"], record["mask"]["total"]
        assert lines["kept"] == f"{kept:,} of {total:,} weights in scope, sparsity 0.25"
    out, _ = said(capsys, "inspect", folder, "--json")
    assert json.loads(out)["base"]
    out, _ = said(capsys, "compare", folder / "runs")
    assert len(out.splitlines()) == 3 and " adaprune " in out and " probe " in out
    out, _ = said(capsys, "compare", folder / "runs", "--csv")
    assert pd.read_csv(io.StringIO(out))["method"].tolist() == ["adaprune", "probe"]


def test_pairs_have_a_tab_between(tiny_runs_dir, tmp_path, capsys, monkeypatch):
    """The text that has none is named, not the first."""
    out = tmp_path / "out"
    said(capsys, "fit", tiny_runs_dir / "pairs", *fit_of(tiny_runs_dir)[2:], "--method", "probe", "--out", out)
    one, two = "a fine film\ta dull film", "skip it\tsee it twice"
    found, _ = said(capsys, "predict", out, one, two)
    answers = adaprune.Adapted.from_pretrained(out).predict([tuple(one.split("\t")), tuple(two.split("\t"))])
    assert pd.read_csv(io.StringIO(found))["label"].tolist() == answers
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{one}\nskip it\n{two}\n".encode())))
    for asked, wrong in ((("-",), "text 2 has no tabs"), ((one, two + "\t"), "text 2 has 2 tabs")):
        code, err = refused(capsys, "predict", out, *asked)
        assert code == 1 and f"adaprune: {wrong}: this task reads pairs, a tab between the two, got 'skip it" in err
    (tmp_path / "t.csv").write_text("text\na fine film\n")
    code, err = refused(capsys, "predict", out, "--file", tmp_path / "t.csv")
    assert code == 1 and "row 1: this task reads a pair of texts (text, text_pair), got 'a fine film'" in err


def test_a_file_that_is_no_mask_is_named(folder, tiny_runs_dir, capsys):
    for file in (folder / "card.json", tiny_runs_dir / "ten" / "train.csv"):
        code, err = refused(capsys, "inspect", file)
        assert (
            code == 1
            and err
            == f"adaprune: {file} is not a mask file: give the folder that holds mask.safetensors, or that file\n"
        )


def test_export_writes_the_file_or_says_what_is_missing(folder, tmp_path, capsys, monkeypatch):
    path = tmp_path / "a.onnx"
    monkeypatch.setattr("adaprune.adapted.export", lambda model, file: file.write_bytes(b"12345678") and file)
    assert said(capsys, "export", folder, path)[0] == f"{path}  8 bytes\n"
    monkeypatch.undo()
    monkeypatch.setattr("adaprune.deploy.runtime.onnx_file.importlib.util.find_spec", lambda name: None)
    code, err = refused(capsys, "export", folder, path)
    assert code == 1 and "adaprune: export needs onnx and onnxscript: pip install onnx onnxscript" in err


def test_the_zoo_is_the_packages(capsys):
    out, _ = said(capsys, "zoo", "--csv")
    assert pd.read_csv(io.StringIO(out))["name"].tolist() == adaprune.zoo().index.tolist()
    name = adaprune.zoo().index[0]
    out, _ = said(capsys, "inspect", name)
    assert f"{name}.safetensors" in out


def test_help_shows_ten_options_first_and_all_when_asked(capsys):
    out, _ = said(capsys, "fit", "--help")
    shown = [line.split()[0] for line in out.splitlines() if line.startswith("  --")]
    assert shown == ["--out", *("--" + name.replace("_", "-") for name in FIRST), "--help-all"] and len(FIRST) == 9
    out, _ = said(capsys, "fit", "--help-all")
    every = {line.split()[0] for line in out.splitlines() if line.startswith("  --")}
    fields = {"--" + name.replace("_", "-") for name in Run.model_fields} - {"--task", "--results-dir"}
    assert every == fields | {"--out", "--help-all"}
    words = " ".join(out.split())
    assert all(
        Run.model_fields[name].description in words for name in Run.model_fields if name not in ("task", "results_dir")
    )


WRONG = {
    ("fit", "no.csv", "--out", "out"): (1, "adaprune: no.csv: no such file or folder"),
    ("fit", "no.csv", "--sparsity", "2", "--out", "out"): (1, "adaprune: sparsity must lie in [0, 1), got 2.0"),
    ("fit", "no.csv", "--sparsty", "0.5"): (2, "No such option '--sparsty'. (Did you mean"),
    ("fit", "no.csv", "--method", "mgic"): (2, "'mgic' is not one of"),
    ("fit", "no.csv", "--method", "finetune", "--out", "out"): (1, "method 'finetune' leaves neither"),
    ("predict", "nowhere/at/all", "a"): (1, "adaprune: nowhere/at/all is not a folder with mask.safetensors"),
    ("predict", "tickts", "a"): (
        1,
        "adaprune: tickts is neither a folder nor a mask file here, and the zoo has no mask 'tickts'. It has cola, ",
    ),
    ("predict", "somewhere"): (2, "give texts, or --file FILE, or - for standard input"),
    ("compare", "nowhere"): (1, "adaprune: nowhere is not a folder"),
    ("fly",): (2, "No such command 'fly'"),
}


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_what_goes_wrong_is_one_sentence_and_a_code(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, sentence = WRONG[arguments]
    found, err = refused(capsys, *arguments)
    assert found == code and sentence in err
    assert not list(tmp_path.rglob("*.safetensors"))


def test_options_have_the_types_of_fields():
    fit = command.adaprune.commands["fit"]
    options = {option.name: option for option in fit.params}
    assert set(options["method"].type.choices) == set(METHODS)
    for name, field in Run.model_fields.items():
        if field.annotation in (int, float):
            value = options[name].type.convert("1", None, None)
            assert type(value) is field.annotation


SLOW_TO_LOAD = "datasets sklearn scipy.stats matplotlib networkx transformers.modeling_utils".split()


def test_python_m_is_the_command_and_loads_only_what_it_uses():
    command = [sys.executable, "-X", "importtime", "-m", "adaprune", "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, f"adaprune, version {adaprune.__version__}")
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"adaprune.command", "torch"} <= loaded
    assert [name for name in SLOW_TO_LOAD if name in loaded] == []


@pytest.mark.parametrize("wrong", [
    ("fit", "ten.csv", "--out", ""), ("predict", "", "a text"), ("predict", "tickets", "--file", " "),
    ("inspect", ""), ("compare", ""),
])  # fmt: skip
def test_an_empty_path_is_not_this_folder(wrong, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, err = refused(capsys, *wrong)
    assert code == 1 and err.startswith("adaprune: a path is empty, ") and "'.' is this folder" in err
    assert not any(tmp_path.iterdir())


def test_a_note_is_said_once_whatever_libraries_do_to_the_filter(monkeypatch, capsys):
    def read_twice(*_, **__):
        for _ in range(2):
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.warn("an odd table", stacklevel=1)

    monkeypatch.setattr(command.adaprune, "main", read_twice)
    main([])
    assert capsys.readouterr().err == "adaprune: note: an odd table\n"
