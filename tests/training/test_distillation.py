"""Teachers: losses by hand, what is refused, and runs from end to end."""

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

import adaprune
from adaprune.data.tasks import load_task, tokenize
from adaprune.runs.paths import paths_of, record_path
from adaprune.runs.recipes import plan_for
from adaprune.training import predict, prepare, read_tensors, sources_of, write_tensors
from adaprune.training.encoders import load_encoder
from adaprune.training.heads import AdaptedModel, distillation_losses, missing_label, task_losses
from adaprune.training.teachers import (
    COPIES,
    copies_in,
    corrupted,
    read_logits,
    read_teacher,
    with_teacher,
    write_logits,
)

HOUSE = importlib.import_module("adaprune.adapt")  # the name adaprune.adapt is the function's


@pytest.fixture
def teacher(ask) -> str:
    """The record of a fine-tuned teacher."""
    run = ask(method="finetune")
    adaprune.adapt(run)
    return str(record_path(run))


def job_of(run):
    paths = paths_of(record_path(run))
    return prepare(run, plan_for(run), paths, load_task(run.task), load_encoder(run.model))


def logits_for(pupil):
    """What `adapt` reads of the pupil's teacher."""
    teacher = paths_of(pupil).teacher
    return read_logits(read_teacher(pupil, teacher), teacher, load_task(pupil.task))


def stars(folder: Path) -> str:
    """A small regression task in a folder of its own."""
    (folder / "stars").mkdir()
    rows = "".join(
        f"{text},{n}\n" for text, n in (("a fine film", 0.9), ("dull", -0.7), ("funny", 0.5), ("flat", -0.2))
    )
    for split, times, end in (("train", 3, "film"), ("validation", 1, "cast")):
        (folder / "stars" / f"{split}.csv").write_text("text,label\n" + (rows * times).replace(",", f" {end},"))
    return "stars"


# ---------------------------------------------------------------- losses by hand


def test_distillation_by_hand():
    """With T = 2 the teacher says 3 : 1 and the pupil 1 : 1."""
    teacher, pupil = torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 2)
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    both = distillation_losses(torch.cat([pupil, teacher]), torch.cat([teacher, teacher]))
    assert both.tolist() == pytest.approx([expected, 0.0], rel=1e-6, abs=1e-7)
    assert distillation_losses(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [2.0]])).tolist() == [4.0, 0.0]


def test_the_loss_is_half_the_labels_and_half_the_teachers(ask):
    model = AdaptedModel.for_task(load_encoder(ask().model).model, 2).eval().requires_grad_(False)
    batch = {"input_ids": torch.tensor([[2, 7, 3], [2, 8, 3]]), "attention_mask": torch.ones(2, 3, dtype=torch.long)}
    labels, logits = torch.tensor([0, 1]), torch.tensor([[2.0, -1.0], [0.5, 0.7]])
    output = model(**batch, labels=labels, teacher_logits=logits)
    of_labels, of_teacher = task_losses(output.logits, labels), distillation_losses(output.logits, logits)
    assert float(output.loss) == pytest.approx(float((of_labels + of_teacher).mean()) / 2, rel=1e-6)
    assert float(model(**batch, labels=labels).loss) == pytest.approx(float(of_labels.mean()))


# ---------------------------------------------------------------- corrupted copies


def test_there_are_up_to_four_copies_of_a_row_and_at_least_one():
    assert [copies_in(rows) for rows in (1, 10_000, 13_333, 20_000, 20_001, 400_000)] == [4, 4, 3, 2, 1, 1]


def test_of_two_copies_one_has_words_from_other_rows_and_one_is_a_splice():
    texts = [" ".join(f"w{row}_{place}" for place in range(20)) for row in range(200)]
    pairs = [text.upper() for text in texts]
    rows = datasets.Dataset.from_dict({"text": texts, "text_pair": pairs, "label": [0, 1] * 100})
    copies = corrupted(rows)
    assert copies.column_names == rows.column_names and len(copies) == 4 * 200
    assert set(copies["label"]) == {missing_label(classes=True)}
    same, others = [], []
    for copy, (text, pair) in enumerate(zip(copies["text"], copies["text_pair"], strict=True)):
        turn, row = divmod(copy, 200)
        if (turn + row) % 2:  # each row's kinds take turns
            other = int(text.split()[10].split("_")[0][1:])
            assert text.split() == texts[row].split()[:10] + texts[other].split()[10:]
            assert pair == text.upper()  # both halves of a pair come from the same two rows
            others.append(other)
        else:
            assert {word for word in text.split()} <= {word for text in texts for word in text.split()}
            for found, whole in ((text, texts[row]), (pair, pairs[row])):
                same += [a == b for a, b in zip(found.split(), whole.split(), strict=True)]
    assert np.mean(same) == pytest.approx(0.85, abs=0.01) and len(set(others)) > 150
    assert len({copies["text"][turn * 200] for turn in range(4)}) == 4
    assert corrupted(rows).to_dict() == copies.to_dict()  # whoever makes them


def test_half_of_single_copies_are_splices(monkeypatch):
    monkeypatch.setattr("adaprune.training.teachers.MOST_COPIED", 1)
    monkeypatch.setattr("adaprune.training.teachers.CORRUPTED", 0.0)
    texts = [f"a{row} b{row} c{row}" for row in range(100)]
    copies = corrupted(datasets.Dataset.from_dict({"text": texts, "label": [0] * 100}))["text"]
    assert copies[::2] == texts[::2]
    for row in range(1, 100, 2):  # the middle word is the row's own
        assert copies[row].startswith(f"a{row} b{row} c") and len(copies[row].split()) == 3


def test_copies_hold_no_more_words_than_a_run_can_read():
    rows = datasets.Dataset.from_dict({"text": ["a b " * 2000, "a b " * 900], "label": [0, 1]})
    assert {len(text.split()) for text in corrupted(rows)["text"]} == {512}


def test_copies_of_empty_texts_and_of_numbers():
    rows = datasets.Dataset.from_dict({"text": ["", "  ", "one"], "label": [0.5, 1.0, 2.0]})
    copies = corrupted(rows)
    assert copies["text"] == ["", "", "one"] * 4 and np.isnan(copies["label"]).all()


@pytest.mark.parametrize(("then", "said"), [(True, "'words'"), (False, "''")])
def test_a_finished_pupil_of_other_copies_is_refused(ask, teacher, then, said):
    """Plans once said whether there were copies, which then were no splices."""
    path = record_path(ask(teacher=teacher))
    adaprune.adapt(ask(teacher=teacher))
    path.write_text(path.read_text().replace('"copies": "words and splices"', f'"copies": {json.dumps(then)}'))
    with pytest.raises(ValueError, match=f"copies was {said}, is 'words and splices'"):
        adaprune.adapt(ask(teacher=teacher))


def test_a_finished_run_without_copies_stays_what_it_was(ask):
    path = record_path(ask())
    first = adaprune.adapt(ask())
    path.write_text(path.read_text().replace('"copies": ""', '"copies": false'))
    assert adaprune.adapt(ask())["metrics"] == first["metrics"]


def test_the_paper_has_no_copies_and_neither_has_a_run_without_a_teacher(ask, teacher):
    assert plan_for(ask(teacher=teacher)).copies == COPIES
    assert not plan_for(ask()).copies
    paper = ask(teacher=teacher, recipe="paper")
    job = with_teacher(job_of(paper), torch.arange(90.0).view(45, 2))
    assert len(job.sentences.taught()) == 9 and "copies" not in job.sentences.splits


# ---------------------------------------------------------------- teachers


def test_finetune_leaves_its_logits_beside_the_record(ask, monkeypatch):
    run = ask(method="finetune")
    caught = {}
    real = HOUSE.score

    def remember(job, task):
        caught["job"] = job
        return real(job, task)

    monkeypatch.setattr(HOUSE, "score", remember)
    adaprune.adapt(run)
    assert paths_of(record_path(run)).logits == Path("out", "teachers", f"{run.name}.safetensors")
    found = logits_for(ask(teacher=str(record_path(run))))
    job, task = job_of(run), load_task(run.task)
    splits = {"train": task.splits["train"], "copies": corrupted(task.splits["train"])}
    splits = {name: tokenize(rows, job.sentences.tokenizer, run.max_length) for name, rows in splits.items()}
    sentences = replace(job.sentences, splits=splits)
    expected = [predict(caught["job"].model, sentences, split, caught["job"].settings) for split in splits]
    assert [len(logits) for logits in expected] == [9, 36]
    np.testing.assert_array_equal(found.numpy(), np.concatenate(expected))


def test_other_methods_leave_no_logits(ask):
    adaprune.adapt(ask(method="features"))
    assert not Path("out", "teachers").exists()


@pytest.mark.parametrize("method", ["adaprune", "magnitude", "gmp", "imp", "snip", "wanda", "finetune", "features"])
def test_every_method_learns_from_a_teacher(ask, teacher, method):
    plain, pupil = (adaprune.adapt(ask(method=method, teacher=path, seed=1)) for path in ("", teacher))
    assert pupil["run"]["teacher"] == teacher
    assert pupil["weights_intact"] == plain["weights_intact"]
    assert pupil["cost"]["steps"] == plain["cost"]["steps"]

    def losses(record):
        return [point["loss"] for point in record["curve"] if "loss" in point]

    assert losses(pupil) != losses(plain)
    # held-out rows have no teacher: scored by their labels as ever, from nearly the same start
    (one,), (two,) = ([p["selection_loss"] for p in r["curve"] if "selection_loss" in p] for r in (plain, pupil))
    assert one == pytest.approx(two, rel=0.2)


def test_a_teacher_of_a_regression(ask, tmp_path):
    task = stars(tmp_path)
    run = ask(method="finetune", task=task)
    adaprune.adapt(run)
    pupil = ask(task=task, teacher=str(record_path(run)))
    logits = logits_for(pupil)
    assert logits.shape[1] == 1
    assert adaprune.adapt(pupil)["weights_intact"]


def test_a_teachers_row_is_its_sentences(ask, teacher):
    """The logits stay with their row through selection and batches."""
    job, rows = job_of(ask(teacher=teacher)), [7, 0, 4, 3]
    logits = torch.arange(90.0).view(45, 2)
    sentences = with_teacher(job, logits).sentences
    chosen = sentences.splits["train"].select(rows)
    assert torch.equal(sentences.collate([chosen[i] for i in range(len(rows))])["teacher_logits"], logits[rows])
    words = job.sentences.splits["train"]["input_ids"]
    assert [list(ids) for ids in chosen["input_ids"]] == [list(words[row]) for row in rows]
    assert "teacher_logits" not in job.sentences.splits["train"].column_names
    taught = {name for name, split in sentences.splits.items() if "teacher_logits" in split.column_names}
    assert taught == {"train", "copies"}
    everything = sentences.taught()
    assert torch.equal(torch.tensor(everything["teacher_logits"]), logits)
    batch = sentences.collate([everything[row] for row in (3, 9 + 3)])
    assert batch["labels"].tolist() == [job.sentences.splits["train"]["labels"][3], -100]
    assert with_teacher(job, None) is job


def test_words_that_only_copies_have_are_seen(ask, teacher):
    """They get gradients, so their embeddings compete like those of the rows."""
    run = ask(teacher=teacher, scope="encoder+embeddings")
    job = job_of(run)
    taught = with_teacher(job, logits_for(run))
    (before,), (after,) = job.seen.values(), taught.seen.values()
    read = {word for ids in taught.sentences.splits["copies"]["input_ids"] for word in ids}
    assert set(after.nonzero().flatten().tolist()) == read | set(before.nonzero().flatten().tolist())


def test_a_teacher_is_part_of_the_name_without_its_folder(ask, teacher):
    name = ask(teacher=teacher).name
    assert name.endswith("_teacher~method-finetune") and "out" not in name


@pytest.mark.filterwarnings("ignore:.* sorted by label")
def test_wrong_teachers_are_refused(ask, teacher, tmp_path):
    def refusal(**fields):
        with pytest.raises((ValueError, OSError)) as caught:
            adaprune.adapt(ask(**fields))
        return str(caught.value)

    assert "'none.json' is not a file" in refusal(teacher="none.json")
    mask = str(paths_of(teacher).logits)
    assert f"{mask!r} is no record: give the path of a finished finetune record, .json" in refusal(teacher=mask)
    adaprune.adapt(ask(method="features"))
    assert "has method 'features'" in refusal(teacher=str(record_path(ask(method="features"))))
    assert "learned task 'ten_sentences', this run's is 'stars'" in refusal(teacher=teacher, task=stars(tmp_path))
    assert "learned from other rows of ten_sentences (max_train_examples 0, here 8)" in refusal(
        teacher=teacher, max_train_examples=8
    )
    file = paths_of(teacher).logits
    whole = file.read_bytes()
    file.write_bytes(whole[:-3])
    assert f"{file} is damaged" in refusal(teacher=teacher)
    write_logits(file, np.zeros((9, 2)), load_task("ten_sentences"))  # of the rows alone, as teachers once left them
    again = f"all rows and their copies (words and splices): delete {teacher} and run the teacher again"
    assert again in refusal(teacher=teacher)
    write_tensors(
        file,
        {"logits": read_tensors(file, "")[0]["logits"].new_zeros(45, 2)},
        data=load_task("ten_sentences").fingerprint,
    )
    assert again in refusal(teacher=teacher)  # of copies without splices, as teachers once made them
    file.unlink()
    assert f"{file} is missing: delete {teacher} and run the teacher again" in refusal(teacher=teacher)
    assert not list(Path("out").glob("*adaprune*"))


def other_logits(teacher: str) -> str:
    file = paths_of(teacher).logits
    logits, facts = read_tensors(file, "")
    write_tensors(file, {"logits": logits["logits"] + 1e-6}, **facts)
    return "teacher_logits"


def other_base(teacher: str) -> str:
    record = json.loads(Path(teacher).read_text())
    record["environment"]["model_revision"] = "sha256:other"
    Path(teacher).write_text(json.dumps(record))
    return "teacher_revision"


def other_settings(teacher: str) -> str:
    """The record of another teacher under its name, without its logits."""
    record = json.loads(Path(teacher).read_text())
    record["run"]["seed"] = 7
    record["metrics"]["validation"]["accuracy"] = 0.123
    Path(teacher).write_text(json.dumps(record))
    paths_of(teacher).logits.unlink()
    return "teacher_scores"


@pytest.mark.parametrize("change", [other_logits, other_base, other_settings])
def test_a_finished_pupil_of_a_teacher_that_changed_is_refused(ask, teacher, change):
    pupil = ask(teacher=teacher)
    first = adaprune.adapt(pupil)
    assert {"teacher_logits", "teacher_revision", "teacher_scores"} <= first["environment"].keys()
    assert adaprune.adapt(pupil) == first
    name = change(teacher)
    with pytest.raises(ValueError, match=rf"{name} has changed, of teacher {teacher} .*choose another results_dir"):
        adaprune.adapt(pupil)
    path = record_path(pupil)  # as older records are, which do not say
    old = json.loads(path.read_text())
    old["environment"] = {key: value for key, value in old["environment"].items() if not key.startswith("teacher_")}
    path.write_text(json.dumps(old))
    assert adaprune.adapt(pupil)["metrics"] == first["metrics"]
    path.write_text(json.dumps(first))
    Path(teacher).unlink()  # a record can be read without its teacher
    assert adaprune.adapt(pupil) == first


def test_a_run_without_a_teacher_says_nothing_of_one(ask):
    assert sources_of(paths_of(ask()).teacher, None) == {}
