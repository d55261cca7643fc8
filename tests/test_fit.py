"""From a table to a model: what `fit` trains and says, what an `Adapted` answers, and what it writes."""

import importlib
import json
import logging
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from transformers import pipeline

import adaprune
from adaprune import deploy
from adaprune.adapted import FILES, check_folder
from adaprune.fit import _say_kind, commonest
from adaprune.given import columns_of, number_of
from adaprune.methods.probe import STRENGTHS
from adaprune.runs import paths_of, read_answers, record_path, write_answers
from tests.deploy.test_serving import hub  # noqa: F401

TEXTS = ["a fine film", "a dull film", "funny and warm, a superb cast", "skip it"]


@pytest.fixture(scope="module")
def settings(tiny_runs_dir: Path) -> dict:
    return {"model": str(tiny_runs_dir / "tiny"), "max_length": 16, "results_dir": str(tiny_runs_dir / "fitted")}


@pytest.fixture(scope="module")
def adapted(tiny_runs_dir, settings) -> adaprune.Adapted:
    return adaprune.fit(str(tiny_runs_dir / "ten"), epochs=2.0, **settings)


def test_a_mask_answers_as_its_file_applied_by_hand(adapted, settings):
    encoder = adaprune.load_encoder(settings["model"])
    model = adaprune.apply_mask(encoder.model, adaprune.load_mask(adapted.mask_path))
    labels, scores = adapted.predict(TEXTS, return_scores=True)
    for text, label, score in zip(TEXTS, labels, scores, strict=True):
        logits = model(**encoder.tokenizer([text], return_tensors="pt")).logits[0]
        by_hand = logits.softmax(-1).tolist()
        assert list(score) == ["bad", "good"]
        assert list(score.values()) == pytest.approx(by_hand, abs=1e-6)
        assert label == ["bad", "good"][int(logits.argmax())]
        assert adapted.predict(text) == label
    assert adapted.predict([]) == []


def test_its_score_is_the_records_and_that_of_counting(adapted, tiny_runs_dir):
    held = pd.read_csv(tiny_runs_dir / "ten" / "validation.csv")
    right = np.mean([one == other for one, other in zip(adapted.predict(held["text"]), held["label"], strict=True)])
    expected = adapted.record["metrics"]["validation"]
    assert expected["accuracy"] == right
    for data in (
        tiny_runs_dir / "ten",
        tiny_runs_dir / "ten" / "validation.csv",
        held,
        datasets.Dataset.from_pandas(held),
    ):
        assert adapted.evaluate(data) == pytest.approx(expected)
    assert adapted.evaluate(held["text"].tolist(), held["label"].tolist()) == pytest.approx(expected)
    with pytest.raises(ValueError, match="row 2: the model does not know the label 'fine': the labels are bad, good"):
        adapted.evaluate(["a", "b"], ["good", "fine"])


def test_pipelines_take_it_as_it_stands(adapted, caplog):
    with caplog.at_level(logging.WARNING):
        logging.getLogger("transformers").propagate = True
        found = pipeline("text-classification", model=adapted)
        answers = found([*TEXTS, "a film " * 100], batch_size=2)  # the last is cut as in training
    assert not [record for record in caplog.records if "Supported models" in record.getMessage()]
    labels, scores = adapted.predict([*TEXTS, "a film " * 100], return_scores=True)
    assert [answer["label"] for answer in answers] == labels
    assert [answer["score"] for answer in answers] == pytest.approx([max(s.values()) for s in scores], abs=1e-5)
    assert "Adapted" in repr(found)


def test_a_folder_holds_three_files_and_nothing_of_others_is_touched(adapted, settings, tmp_path):
    folder = tmp_path / "mine"
    adapted.save_pretrained(folder)
    adapted.save_pretrained(folder)  # its own files it may replace
    assert {path.name for path in folder.iterdir()} == set(FILES)
    again = adaprune.Adapted.from_pretrained(folder)
    assert again.predict(TEXTS, return_scores=True) == adapted.predict(TEXTS, return_scores=True)
    assert again.record is None and again.card == adapted.card
    assert json.loads((folder / "card.json").read_text())["max_length"] == 16
    for name in FILES:
        (folder / name).write_text("of somebody else")
        with pytest.raises(FileExistsError, match=f"{name} is not adaprune's, yet would be replaced"):
            adapted.save_pretrained(folder)
        assert (folder / name).read_text() == "of somebody else"
        (folder / name).unlink()
    assert not any(folder.iterdir())  # a refusal writes nothing
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file: choose a folder"):
        check_folder(tmp_path / "file")
    with pytest.raises(FileNotFoundError, match=r"mask\.safetensors: no such file"):
        adaprune.Adapted.from_pretrained(folder)


def test_a_mask_with_a_reference_is_saved_whole(adapted, settings, tmp_path):
    """The folder holds no reference; nor does a compact model hold the base that it was made for."""
    mask, base = adaprune.load_mask(adapted.mask_path), adaprune.load_encoder(settings["model"]).model
    card = deploy.given(mask.card)
    near = {name: kept.clone() for name, kept in mask.masks.items()}
    next(iter(near.values()))[0, :2] ^= True
    adaprune.save_mask(tmp_path / "one.safetensors", mask.masks, mask.head, card, base)
    path = adaprune.save_mask(
        tmp_path / "two.safetensors", near, mask.head, card, base, reference=tmp_path / "one.safetensors"
    )
    assert adaprune.load_mask(path).card["flips"]["reference"] is not None
    two = adaprune.Adapted.from_pretrained(path, base=settings["model"])
    expected = two.predict(TEXTS, return_scores=True)
    two.compact().save_pretrained(tmp_path / "alone")
    again = adaprune.Adapted.from_pretrained(tmp_path / "alone", base=settings["model"])
    assert again.card["flips"]["reference"] is None and again.predict(TEXTS, return_scores=True) == expected


def test_what_is_saved_is_what_was_loaded(adapted, settings, tmp_path):
    """Not what the file has become since."""
    adapted.save_pretrained(tmp_path / "a")
    loaded, file = adaprune.Adapted.from_pretrained(tmp_path / "a"), tmp_path / "a" / "mask.safetensors"
    mask, base = adaprune.load_mask(file), adaprune.load_encoder(settings["model"]).model
    other = {name: ~kept for name, kept in mask.masks.items()}
    (tmp_path / "a" / "card.json").unlink()
    adaprune.save_mask(file, other, mask.head, deploy.given(mask.card), base)
    with pytest.raises(ValueError, match=r"mask\.safetensors has changed since this model was loaded from it"):
        loaded.save_pretrained(tmp_path / "b")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"mask\.safetensors, from which this model was loaded, is no longer"):
        loaded.save_pretrained(tmp_path / "b")
    assert not (tmp_path / "b").exists()
    for size in (0, 1.5, None):
        with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {size}"):
            adapted.predict(TEXTS, batch_size=size)
    assert adapted.predict(TEXTS, batch_size=np.int64(2)) == adapted.predict(TEXTS)


@pytest.mark.parametrize("runtime", ["dense", "sparse", "auto"])
def test_compacted_it_answers_the_same_and_saves_the_same_mask(runtime, settings, tiny_runs_dir, tmp_path):
    settings = {**settings, "results_dir": str(tmp_path / "runs")}
    adapted = adaprune.fit(str(tiny_runs_dir / "ten"), method="magnitude", sparsity=0.95, epochs=1.0, **settings)
    small = adaprune.Adapted.from_pretrained(adapted.mask_path).compact(runtime)
    weights = [sum(p.numel() for p in one.model.encoder.parameters()) for one in (small, adapted)]
    assert weights[0] < weights[1] and small.base.model is small.model.encoder
    (labels, scores), (expected, exact) = (one.predict(TEXTS, return_scores=True) for one in (small, adapted))
    assert labels == expected
    assert [list(s.values()) for s in scores] == [pytest.approx(list(s.values()), abs=1e-5) for s in exact]
    answers = pipeline("text-classification", model=small)(TEXTS)
    assert [answer["label"] for answer in answers] == labels
    small.save_pretrained(tmp_path / "small")
    assert (tmp_path / "small" / "mask.safetensors").read_bytes() == adapted.mask_path.read_bytes()
    with pytest.raises(ValueError, match="the model is compact already"):
        small.compact()
    with pytest.raises(ValueError, match="runtime must be one of dense, sparse, auto, got 'fast'"):
        adaprune.Adapted.from_pretrained(adapted.mask_path).compact("fast")


def test_exported_it_gives_the_same_logits(adapted, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is an extra: pip install adaprune[onnx]")
    path = adapted.export(tmp_path / "a.onnx")
    inputs = adapted.tokenizer(TEXTS, padding=True, return_tensors="pt")
    file = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = file.run(None, {one.name: inputs[one.name].numpy() for one in file.get_inputs()})
    assert logits == pytest.approx(adapted(**inputs).logits.numpy(), abs=1e-5)


def test_many_are_served_from_one_base(adapted, settings, tmp_path, hub):  # noqa: F811
    """A folder of `save_pretrained`, and a repository, is a task of a `MaskedEncoder`."""
    adapted.save_pretrained(tmp_path / "mine")
    adapted.push_to_hub("user/mine")
    served = adaprune.MaskedEncoder.from_pretrained(settings["model"], keep=2)
    served.add_task("mine", tmp_path / "mine")
    served.add_task("hub", "user/mine")
    inputs = adapted.tokenizer(TEXTS, padding=True, return_tensors="pt")
    for task in ("mine", "hub"):
        assert torch.equal(served(**inputs, tasks=[task] * len(TEXTS)).logits, adapted(**inputs).logits)


def test_the_hub_holds_what_a_folder_does(adapted, tmp_path, hub):  # noqa: F811
    assert adapted.push_to_hub("user/mine", private=True, token="a-token") == f"{hub.address}/user/mine"
    adapted.save_pretrained(tmp_path / "mine")
    assert hub.repos["user/mine"] == {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()}
    again = adaprune.Adapted.from_pretrained("user/mine")
    assert again.predict(TEXTS, return_scores=True) == adapted.predict(TEXTS, return_scores=True)
    with pytest.raises(
        FileNotFoundError, match="user/none is not a folder with mask.safetensors, not a mask file, and "
    ):
        adaprune.Adapted.from_pretrained("user/none")


def test_finished_runs_are_found_and_the_line_compares_with_the_probe(adapted, tiny_runs_dir, settings, capsys):
    ten = str(tiny_runs_dir / "ten")
    before = sorted(path.name for path in Path(settings["results_dir"]).glob("*.json"))
    again = adaprune.fit(ten, epochs=2.0, **settings)
    assert sorted(path.name for path in Path(settings["results_dir"]).glob("*.json")) == before
    assert len(before) == 2  # the run's and the probe's
    said = capsys.readouterr().err.strip().splitlines()[-1]  # the last thing a reader sees
    probe = adaprune.adapt(adaprune.Run(task=ten, method="probe", sparsity=0.0, **settings))
    ours, known = (one["metrics"]["validation"]["accuracy"] for one in (again.record, probe))
    assert said == again.said and "\n" not in said
    assert said.startswith(f"accuracy {ours:.3f} on 4 dev rows; always the commonest label: 0.500; a probe on ")
    assert f"untouched model: {known:.3f}; adapting gained" in said
    nothing = "gained nothing" in said and "method='probe' ships it" in said
    assert nothing == (ours <= known)


@pytest.mark.parametrize("method", ["magnitude", "probe"])
def test_each_run_is_made_or_read_once_and_the_rows_are_loaded_once_beside_that(
    method, settings, tiny_runs_dir, tmp_path, monkeypatch
):
    house, asked = importlib.import_module("adaprune.fit"), []
    for name in ("adapt", "load_task"):
        real = getattr(house, name)
        monkeypatch.setattr(house, name, lambda *given, name=name, real=real: asked.append(name) or real(*given))
    for _ in range(2):  # made, then read
        asked.clear()
        adaprune.fit(
            str(tiny_runs_dir / "ten"), method=method, epochs=1.0, **{**settings, "results_dir": str(tmp_path)}
        )
        assert asked == ["load_task", "adapt", *["adapt"] * (method != "probe")]


def test_the_interval_is_that_of_pairs_of_resamples(tmp_path, monkeypatch, settings, tiny_runs_dir):
    house = importlib.import_module("adaprune.fit")
    ten = str(tiny_runs_dir / "ten")
    run, probe = (adaprune.Run(task=ten, method=m, **settings) for m in ("adaprune", "probe"))
    scores = {run.name: 0.75, probe.name: 0.5}
    task = adaprune.load_task(ten)

    def verdict():
        made = [{"metrics": {"primary": "accuracy", "validation": {"accuracy": scores[r.name]}}} for r in (run, probe)]
        return house._verdict(task, (run, made[0]), (probe, made[1]))

    gains = np.linspace(0, 0.4, 301)  # the quantiles of evenly spaced numbers: 0.01 and 0.39
    found = {record_path(run): 0.5 + gains, record_path(probe): np.full(301, 0.5)}
    monkeypatch.setattr(
        house, "read_answers", lambda path: (None, next(v for k, v in found.items() if k.stem == path.stem))
    )
    few = "adapting gained +0.250 [+0.010, +0.390] over it; with so few rows this may be chance."
    assert verdict().endswith(few)  # four: of so few, samples say nothing
    monkeypatch.setattr(house, "FEWEST", 4)
    assert verdict().endswith("adapting gained +0.250 [+0.010, +0.390] over it.")
    found[record_path(run)] = 0.4 + gains
    assert "[-0.090, +0.290] over it; with so few rows this may be chance" in verdict()
    scores[run.name] = 0.5
    assert "adapting gained nothing (+0.000 [" in verdict()
    assert "neither" not in verdict()  # of the four rows, the commonest label has 0.5, too
    scores.update({run.name: 0.4, probe.name: 0.3})
    assert verdict().endswith("; neither is better than always the commonest label.")


@pytest.mark.parametrize("kind", ["classes", "values"])
def test_scores_on_samples_of_ones_own_file_are_made_where_its_labels_are(kind, tmp_path):
    """They are those that are kept for a named task, and are not kept."""
    house = importlib.import_module("adaprune.fit")
    rows = [(f"text {n}", str(n % 3) if kind == "classes" else f"{n}.5") for n in range(60)]
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(tmp_path / "own.csv", index=False)
    task = adaprune.load_task(str(tmp_path / "own.csv"))
    held = len(task.splits["validation"])
    logits = np.random.default_rng(0).normal(size=(held, task.num_labels))
    run = adaprune.Run(task=str(tmp_path / "own.csv"), results_dir=str(tmp_path))
    path = paths_of(record_path(run)).answers
    write_answers(path, logits, task)
    kept = house._samples(run, task, task.primary)
    write_answers(path, logits, task, scored=False)
    assert len(read_answers(path)[1]) == 0 < np.ptp(kept)
    assert house._samples(run, task, task.primary) == pytest.approx(kept, abs=1e-6)


def vectors(settings, texts):
    """The last layer's first token, one text at a time."""
    encoder = adaprune.load_encoder(settings["model"])
    with torch.no_grad():
        return np.concatenate(
            [encoder.model(**encoder.tokenizer(text, return_tensors="pt"))[0][:, 0].numpy() for text in texts]
        )


@pytest.mark.parametrize("kind", ["classes", "three", "values"])
def test_a_shipped_probe_is_scikit_learns_regression(kind, settings, tmp_path):
    words = "fine dull warm flat funny cold superb long wise wasted".split()
    texts = [f"a {one} and {other} film" for one in words for other in words if one < other]
    labels = {
        "classes": [("bad", "good")[len(text) % 2] for text in texts],
        "three": [len(text) % 3 for text in texts],
        "values": [len(text) / 7 for text in texts],
    }[kind]
    settings = {**settings, "results_dir": str(tmp_path)}
    shipped = adaprune.fit(texts, labels, method="probe", **settings)
    task = adaprune.load_task(shipped.record["run"]["task"])
    train, held = task.splits["train"], task.splits["validation"]["text"]
    scale = StandardScaler().fit(vectors(settings, train["text"]))
    rows, new = (scale.transform(vectors(settings, texts)) for texts in (train["text"], held))
    answers = []  # of each penalty: which one was chosen is not repeated here
    for strength in STRENGTHS:
        if kind == "values":
            answers.append(Ridge(alpha=1 / strength).fit(rows, train["label"]).predict(new)[:, None])
        else:
            regression = LogisticRegression(C=strength, max_iter=500).fit(rows, train["label"])
            answers.append(regression.predict_proba(new))
    _, scores = shipped.predict(list(held), return_scores=True)
    ours = np.array([list(score.values()) for score in scores])
    assert min(np.abs(ours - theirs).max() for theirs in answers) < 1e-4
    assert shipped.evaluate(
        list(held), [task.labels[n] if task.labels else n for n in task.splits["validation"]["label"]]
    ) == pytest.approx(shipped.record["metrics"]["validation"], abs=1e-5)
    mask = adaprune.load_mask(shipped.mask_path)
    assert mask.kept == mask.total and shipped.mask_path.stat().st_size < 20_000
    again = pipeline("text-classification", model=shipped)(held[0], top_k=None)
    assert {answer["label"]: answer["score"] for answer in again} == pytest.approx(scores[0], abs=1e-5)


def test_a_probe_of_pairs_ships_too(settings, tiny_runs_dir, tmp_path):
    pairs = tiny_runs_dir / "pairs"
    shipped = adaprune.fit(str(pairs), method="probe", **settings)
    assert shipped.evaluate(pairs) == pytest.approx(shipped.record["metrics"]["validation"])
    logits, _ = read_answers(paths_of(record_path(adaprune.Run(**shipped.record["run"]))).answers)
    held = pd.read_csv(pairs / "validation.csv")
    answers = shipped.predict(list(zip(held["text"], held["text_pair"], strict=True)))
    assert [shipped.labels.index(answer) for answer in answers] == logits.astype(int).tolist()
    shipped.save_pretrained(tmp_path)
    again = adaprune.Adapted.from_pretrained(tmp_path)
    assert again.predict(("a fine film", "a dull film")) == shipped.predict([("a fine film", "a dull film")])[0]
    with pytest.raises(ValueError, match="row 1: this task reads a pair of texts"):
        again.predict(["a fine film"])
    with pytest.raises(ValueError, match="reads each text on its own"):
        again(input_ids=torch.tensor([[2, 3]]))
    with pytest.raises(ValueError, match="reads each text on its own"):
        again.export(tmp_path / "a.onnx")
    assert again.compact().evaluate(pairs) == pytest.approx(shipped.record["metrics"]["validation"])


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("good bad", "the labels bad, good are taken as 2 classes\n"),
        ("0 1", "the labels 0, 1 are taken as 2 classes; for amounts (a regression) write them with a decimal point\n"),
        ("0.1 2.25", "amounts (a regression); for classes write them as words, such as v2.25\n"),
    ],
)
def test_the_kind_of_task_is_said_in_one_line_with_how_to_choose(labels, said, tmp_path, capsys):
    words = labels.split()
    (tmp_path / "m.csv").write_text("text,label\n" + "".join(f"text {n},{words[n % 2]}\n" for n in range(12)))
    task = adaprune.load_task(str(tmp_path / "m.csv"))
    _say_kind(task)
    told = capsys.readouterr()
    assert told.err.startswith("task: the labels ") and told.err.endswith(said) and told.err.count("\n") == 1
    assert told.out == ""
    _say_kind(replace(task, name="sst2"))  # nothing is open there
    assert capsys.readouterr().err == ""


def test_a_teacher_is_made_once_and_its_cost_is_said(settings, tiny_runs_dir, tmp_path, capsys):
    settings = {**settings, "results_dir": str(tmp_path)}
    ten = str(tiny_runs_dir / "ten")
    first = adaprune.fit(ten, teacher="auto", epochs=1.0, **settings)
    said = capsys.readouterr().err
    assert "teacher: fine-tuning the whole model first" in said and "s of training, " in said
    teacher = Path(first.record["run"]["teacher"])
    assert teacher.parent == tmp_path and "method~finetune" in teacher.name and "epochs~1_" in teacher.name
    changed = teacher.stat().st_mtime_ns
    adaprune.fit(ten, teacher="auto", epochs=1.0, sparsity=0.7, **settings)
    assert "fine-tuning the whole model first" not in capsys.readouterr().err
    assert teacher.stat().st_mtime_ns == changed


def test_tables_of_every_kind_are_one_table():
    expected = {"text": ["a", "b"], "label": ["x", "y"]}
    frame = pd.DataFrame({"label": ["x", "y"], "id": [1, 2], "text": ["a", "b"]}, index=[7, 3])
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])})
    named = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features)
    for data in (frame, frame.astype({"label": "category"}), named, (["a", "b"], ["x", "y"]), [["a", "b"], ["x", "y"]]):
        assert columns_of(data) == expected
    assert columns_of(["a", "b"], np.array(["x", "y"])) == expected
    both = {"text": ["a", "b"], "text_pair": ["c", "d"], "label": [1, 2]}
    assert columns_of([("a", "c"), ("b", "d")], [1, 2]) == both
    for labels in (torch.tensor([1, 0]), pd.array([1, 0], "Int64"), pd.Series([1, 0], index=[9, 9])):
        assert columns_of(["a", "b"], labels)["label"] == [1, 0]
    assert columns_of(["a", "b"], [10**30, 10**18])["label"] == ["1" + "0" * 30, "1" + "0" * 18]
    assert columns_of(["a", "b"], [" x", "y "])["label"] == ["x", "y"]
    assert [type(label) for label in columns_of(["a", "b"], [1, 0.5])["label"]] == [float, float]
    with pytest.raises(ValueError, match="2 texts and 1 labels"):
        columns_of(["a", "b"], ["x"])
    with pytest.raises(ValueError, match=r"data lacks the column 'label' \(it has: id, text\)"):
        columns_of(frame.drop(columns="label")[["id", "text"]])
    with pytest.raises(ValueError, match=r"data lacks the column 'text' \(it has: texts, label\)"):
        columns_of(named.rename_column("text", "texts"))
    for other in ({"train": 1}, datasets.DatasetDict(train=named), None, 3, b"a", (row for row in ())):
        with pytest.raises(TypeError, match=f"data is of the type {type(other).__name__}: give a path"):
            columns_of(other)
    with pytest.raises(TypeError, match="data is one text or path, 'a.csv', beside labels: give a list"):
        columns_of("a.csv", ["x"])
    for texts, labels, kind in (({"a", "b"}, ["x", "y"], "data is a set"), (["a", "b"], "xy", "labels is a str"),
                                (["a", "b"], {"x": 0, "y": 1}, "labels is a dict")):  # fmt: skip
        with pytest.raises(TypeError, match=f"{kind}, which has no order of rows: give a list"):
            columns_of(texts, labels)
    assert [number_of("b", ["a", "b"], 1), number_of(3, ["3", "4"], 1), number_of(2, [], 1)] == [1, 0, 2.0]


def test_the_commonest_label_is_right_as_often_as_it_occurs(tiny_runs_dir):
    task = adaprune.load_task(str(tiny_runs_dir / "ten"))
    assert commonest(task)["accuracy"] == 0.5  # two of four dev rows


WRONG = {
    "method='finetune'": "method 'finetune' leaves neither: use adapt",
    "task='sst2'": "data names the task",
    "sparsty=0.5": "unknown parameter 'sparsty': did you mean 'sparsity'?",
    "method='probe', sparsity=0.0, teacher='auto'": "teacher='auto' would change nothing in method 'probe'",
    "sparsity=1.5": r"sparsity must lie in \[0, 1\), got 1.5",
}


@pytest.mark.parametrize("given", WRONG)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(given, tmp_path, settings):
    fields = {**settings, "results_dir": str(tmp_path / "out"), **eval(f"dict({given})")}
    with pytest.raises(ValueError, match=WRONG[given]):
        adaprune.fit(["a", "b"], ["x", "y"], **fields)
    assert not (tmp_path / "out").exists()


def test_paths_may_be_paths(tiny_runs_dir, settings):
    """And a finished run is found again by them."""
    fields = {**settings, "model": Path(settings["model"]), "results_dir": Path(settings["results_dir"])}
    shipped = adaprune.fit(tiny_runs_dir / "ten", method="probe", **fields)
    assert shipped.record["run"]["model"] == settings["model"]


def test_texts_that_are_none_are_named_by_their_row(adapted):
    with pytest.raises(ValueError, match=r"row 2: this task reads a text, got '3' \(int\)"):
        adapted.predict(["a", 3])
    with pytest.raises(ValueError, match="row 1: this task reads a text, got"):
        adapted.predict([("a", "b")])
    for empty in ("", " \n", "\u200b"):  # as in files
        with pytest.raises(ValueError, match="row 2: the text is empty; write one or leave it out"):
            adapted.predict(["a fine film", empty])
    assert adapted.predict([]) == []


WRONG_ROWS = {
    "labels=[None, 1]": "data: row 1, column 'label': the label is empty",
    "labels=[0.5, float('inf')]": "data: row 2, column 'label': the label is infinite",
    "labels=[1, 'a']": "data: column 'label' mixes integers .* and words",
    "labels=[[1], [0]]": r"data: row 1, column 'label': \[1\] is neither a word",
    "labels=[pd.Timestamp(0), 1]": "row 1, column 'label': Timestamp.* is neither a word",
    "texts=['a', '\\ud800']": "data: row 2, column 'text': holds the lone surrogate",
    "texts=['a', None]": "data: row 2, column 'text': the text is empty",
    "texts=[('a', 'b'), 'c']": r"data: row 1, column 'text': \('a', 'b'\) is not a string",
    "texts=[], labels=[]": "data: holds no rows",
}


@pytest.mark.parametrize("given", WRONG_ROWS)
def test_rows_that_cannot_be_meant_are_refused_by_row_and_nothing_is_written(given, tmp_path, settings):
    rows = {"texts": ["a", "b"], "labels": [1, 0], **eval(f"dict({given})")}
    with pytest.raises(ValueError, match=WRONG_ROWS[given]):
        adaprune.fit(rows["texts"], rows["labels"], **{**settings, "results_dir": str(tmp_path / "out")})
    assert not (tmp_path / "out").exists()


def test_a_class_that_no_held_out_row_has_is_said(settings, tmp_path):
    words = "fine dull warm flat funny cold superb long wise wasted".split()
    texts = [f"a {one} and {other} film" for one in words for other in words if one < other]
    labels = ["rare" if n == 7 else "good" if n % 2 else "bad" for n in range(len(texts))]
    said = adaprune.fit(texts, labels, method="probe", **{**settings, "results_dir": str(tmp_path)}).said
    assert "on 4 dev rows, none of them rare; always the commonest label" in said


def test_a_frame_with_odd_columns_is_refused(settings):
    frame = pd.DataFrame({"text": ["a", "b"], "label": [0, 1]})
    with pytest.raises(ValueError, match=r"data has the column 'text' twice \(it has: text, label, text\)"):
        columns_of(pd.concat([frame, frame[["text"]]], axis=1))
    with pytest.raises(ValueError, match=r"data lacks the column 'text' \(it has: \('text', 'a'\)"):
        columns_of(frame.set_axis(pd.MultiIndex.from_tuples([("text", "a"), ("label", "b")]), axis=1))


def test_tables_are_read_by_their_columns_and_what_holds_no_texts_is_refused(adapted):
    expected = adapted.predict(TEXTS)
    frame = pd.DataFrame({"id": range(4), "text": TEXTS}, index=[3, 3, 1, 0])
    for table in (frame, datasets.Dataset.from_pandas(frame, preserve_index=False), frame["text"], iter(TEXTS)):
        assert adapted.predict(table) == expected
    with pytest.raises(ValueError, match=r"data lacks the column 'text' \(it has: id\)"):
        adapted.predict(frame[["id"]])
    for other in (None, 3, {"text": TEXTS}, b"a", set(TEXTS), frozenset(TEXTS)):
        with pytest.raises(TypeError, match=f"texts are of the type {type(other).__name__}: give a text"):
            adapted.predict(other)
    with pytest.raises(ValueError, match=r"row 2: holds the lone surrogate '\\ud800'"):
        adapted.predict(["a", "b \ud800"])
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {size}"):
            adapted.predict(TEXTS, batch_size=size)


def test_a_pipeline_reads_what_the_task_reads(adapted, tiny_runs_dir, settings):
    pairs = adaprune.fit(str(tiny_runs_dir / "pairs"), method="magnitude", epochs=1.0, **settings)
    one, two = (pipeline("text-classification", model=model) for model in (adapted, pairs))
    both = {"text": "a fine film", "text_pair": "a dull film"}
    assert two(both)["label"] == pairs.predict(tuple(both.values()))
    assert one({"text": "text_pair"})["label"] == one("text_pair")[0]["label"] == adapted.predict("text_pair")
    with pytest.raises(ValueError, match="this task reads one text, got"):
        one(both)
    with pytest.raises(ValueError, match='this task reads {"text": ..., "text_pair": ...}, got \'text_pair\''):
        two("text_pair")


def test_an_adapted_model_in_place_of_its_encoder_is_named(adapted):
    with pytest.raises(ValueError, match=r"none of the base's tensors .* load_encoder\(\.\.\.\)\.model"):
        adaprune.apply_mask(adapted, adaprune.load_mask(adapted.mask_path))


def test_labels_to_judge_by_are_checked_in_files_too(adapted, tmp_path, monkeypatch):
    path = tmp_path / "m.jsonl"
    path.write_text('{"text": "a", "label": "good"}\n{"text": "b", "label": Infinity}\n')
    with pytest.raises(ValueError, match=r"m\.jsonl: row 2, column 'label': the label is infinite"):
        adapted.evaluate(path)
    path.write_text('{"text": "a", "label": "good"}\n{"text": "b", "label": "fine"}\n')
    with pytest.raises(ValueError, match=r"m\.jsonl: row 2: the model does not know the label 'fine'"):
        adapted.evaluate(path)
    monkeypatch.setitem(adapted.card["metrics"], "validation", {"matthews_correlation": 0.5})
    with pytest.warns(UserWarning, match="all labels are 'good': a correlation with them is undefined, said as 0"):
        assert adapted.evaluate(["a", "b"], ["good", "good"]) == {"matthews_correlation": 0.0}
