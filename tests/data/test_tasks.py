"""Tasks: GLUE on real and on hand-made files, names and numbers that are refused, tokens by hand."""

import json
from collections import Counter

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import BertTokenizerFast

from adaprune.data.places import public
from adaprune.data.tasks import GLUE, KNOWN_TASKS, is_users, load_task, tokenize


def logits(*classes: int, num_labels: int = 2) -> np.ndarray:
    """Raw scores, (n, num_labels), whose largest is at the given class."""
    return np.eye(num_labels)[list(classes)] * 3 - 1


def test_glue_has_the_nine_tasks_with_official_metrics():
    assert list(GLUE) == "cola sst2 mrpc stsb qqp mnli qnli rte wnli".split()
    primaries = {task: row.metrics[0] for task, row in GLUE.items()}
    assert primaries.pop("cola") == "matthews_correlation"
    assert primaries.pop("stsb") == "spearman"
    assert set(primaries.values()) == {"accuracy"}
    assert GLUE["mrpc"].metrics == GLUE["qqp"].metrics == ("accuracy", "f1")


def test_mrpc_splits_and_codes(glue_dir):
    data = load_task("mrpc", glue_dir)
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 3301,
        "selection": 367,  # 10 % of 3668, whose pairs are all different
        "validation": 408,
    }
    assert Counter(data.splits["validation"]["label"]) == {1: 279, 0: 129}
    assert data.labels[1] == "equivalent" and data.num_labels == 2 and data.primary == "accuracy"
    assert data.splits["train"].features["label"].dtype == "int64"
    shares = [np.mean(data.splits[split]["label"]) for split in ("train", "selection")]
    assert abs(shares[0] - shares[1]) < 0.002
    # All "yes" on dev, by hand: accuracy 279 / 408, F1 = 2 * 279 / (2 * 279 + 129).
    found = data.metrics(logits(*[1] * 408), data.splits["validation"]["label"])
    assert found == {"accuracy": pytest.approx(279 / 408), "f1": pytest.approx(558 / 687)}


def test_stsb_is_a_regression_on_pairs_without_leaks(glue_dir):
    data = load_task("stsb", glue_dir)
    assert data.labels == [] and data.num_labels == 1 and data.primary == "spearman"
    assert data.splits["train"].column_names == ["text", "text_pair", "label"]
    assert data.splits["train"].features["label"].dtype == "float32"
    pairs = {
        split: {(row["text"].strip(), row["text_pair"].strip()) for row in data.splits[split]}
        for split in ("train", "selection")
    }
    assert not pairs["train"] & pairs["selection"]
    assert len(data.splits["train"]) + len(data.splits["selection"]) == 5749


def test_first_rows_are_used_and_splits_repeat(glue_dir):
    first = load_task("rte", glue_dir, max_train_examples=100)
    again = load_task("rte", str(glue_dir), max_train_examples=100)
    assert first.fingerprint == again.fingerprint and len(first.fingerprint) == 64
    assert first.fingerprint != load_task("rte", glue_dir, max_train_examples=101).fingerprint
    used = {row["text"] for split in ("train", "selection") for row in first.splits[split]}
    source = pq.read_table(glue_dir / "rte" / "train.parquet")["sentence1"].to_pylist()
    assert used == set(source[:100])
    assert len(first.splits["selection"]) == 10 and len(first.splits["validation"]) == 277


def glue_table(**changes) -> pa.Table:
    columns = {"premise": list("abcdef"), "hypothesis": list("uvwxyz"), "label": [0, 1, 2, 0, 1, 2]}
    return pa.table({**columns, **changes})


def write_mnli(folder, *names, **changes):
    folder.mkdir(exist_ok=True)
    for name in names:
        pq.write_table(glue_table(**changes), folder / f"{name}.parquet")


def test_mnli_reports_mismatched_only_from_the_whole_file(tmp_path):
    write_mnli(tmp_path / "mnli", "train", "validation_matched", "validation_mismatched_1k")
    assert set(load_task("mnli", tmp_path).splits) == {"train", "selection", "validation"}
    write_mnli(tmp_path / "mnli", "validation_mismatched")
    data = load_task("mnli", tmp_path)
    rows = data.splits["validation_mismatched"]
    guess = logits(*[0] * 6, num_labels=3)
    assert data.metrics(guess, rows["label"], "validation_mismatched") == {"accuracy_mismatched": 1 / 3}
    assert data.metrics(guess, rows["label"]) == {"accuracy": 1 / 3}


def test_missing_glue_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cola.train\.parquet"):
        load_task("cola", tmp_path)
    write_mnli(tmp_path / "mnli", "train", "validation_mismatched")
    with pytest.raises(FileNotFoundError, match=r"validation_matched\.parquet"):
        load_task("mnli", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": [0, 1, 2, 0, 1, -1]}, r"row 6: label -1, expected one of 0, 1, 2; is this a test split"),
        ({"label": list("012012")}, "row 1: label '0'"),
        ({"label": [0, 1, 2, 0, 1, None]}, "row 6: label None"),
        ({"premise": ["a", None, "c", "d", "e", "f"]}, "row 2: a text is null"),
    ],
)
def test_glue_rows_that_are_not_the_hubs_are_refused(tmp_path, changes, message):
    write_mnli(tmp_path / "mnli", "train", "validation_matched", **changes)
    with pytest.raises(ValueError, match=message):
        load_task("mnli", tmp_path)


def test_glue_file_without_a_column_is_refused(tmp_path):
    write_mnli(tmp_path / "mnli", "train", "validation_matched")
    (tmp_path / "mnli").rename(tmp_path / "rte")
    with pytest.raises(ValueError, match=r"train\.parquet: lacks the column 'sentence1' .*premise"):
        load_task("rte", tmp_path)


def test_hub_is_read_without_its_test_split(monkeypatch):
    parts = {"train": [0, 1, 2, 0, 1, 2], "validation_matched": [0] * 6, "validation_mismatched": [1] * 6}
    hub = {name: datasets.Dataset(glue_table(label=codes)) for name, codes in parts.items()}
    hub["test_matched"] = datasets.Dataset(glue_table(label=[-1] * 6))
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: asked.append(names) or hub)
    data = load_task("mnli")
    assert asked == [("nyu-mll/glue", "mnli")]
    assert set(data.splits) == {"train", "selection", "validation", "validation_mismatched"}
    assert set(data.splits["validation_mismatched"]["label"]) == {1}


def test_unreachable_hub_says_what_to_do(monkeypatch):
    def refuse(*names):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(OSError, match=r"cannot load sst2 .*go online, or pass data_dir.*sst2/train\.parquet"):
        load_task("sst2")


@pytest.mark.parametrize(
    ("task", "data_dir", "whose"),
    [("sst2", "", False), ("sst2", "glue", True), ("movie_reviews", "", False), ("mine.csv", "", True),
     ("mine.csv", "glue", True), ("gone.csv", "", False)],
)  # fmt: skip
def test_rows_are_the_users_where_they_come_from_files(task, data_dir, whose, tmp_path, monkeypatch):
    """A folder that only has a known task's name is not read, and a data_dir is only of GLUE."""
    monkeypatch.chdir(tmp_path)
    for name in ("sst2", "movie_reviews"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine.csv").write_text("text,label\n")
    assert is_users(task, data_dir) == whose


def test_unknown_task_lists_choices():
    with pytest.raises(ValueError, match="unknown task 'sts-b'.*did you mean stsb.*movie_reviews") as caught:
        load_task("sts-b")
    assert all(task in str(caught.value) for task in KNOWN_TASKS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_train_examples": -1}, "max_train_examples must be 0 .* got -1"),
        ({"max_train_examples": 1}, "at least 2, got 1"),
        ({"max_train_examples": 2}, "the 1 training rows in use all have one label; raise max_train"),
    ],
)
@pytest.mark.filterwarnings("ignore:.* sorted by label")
def test_impossible_numbers_are_refused(ten_sentences, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_task(str(ten_sentences), **arguments)


WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a fine film dull the cast is superb".split()


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizerFast(vocab={word: number for number, word in enumerate(WORDS)})


def test_tokens_by_hand(ten_sentences, tokenizer, capfd):
    tokens = tokenize(load_task(str(ten_sentences)).splits["validation"], tokenizer, max_length=4)
    assert set(tokens.column_names) == {"input_ids", "attention_mask", "token_type_ids", "labels", "length"}
    assert tokens[0]["input_ids"] == [2, 5, 12, 3]  # [CLS] a superb [SEP], film is cut
    assert tokens["length"][:] == [4, 4, 4, 4] and tokens["labels"][:] == [1, 0, 1, 0]
    assert tokens.features["labels"].dtype == "int64"
    assert tokens.cache_files == [] and capfd.readouterr().err == ""
    assert datasets.is_progress_bar_enabled()


def test_tokens_of_pairs_and_of_a_regression(tmp_path, tokenizer):
    rows = [{"text": "a film", "text_pair": "dull " * n, "label": n + 0.5} for n in range(1, 9)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = load_task(str(tmp_path / "mine.jsonl"))
    tokens = tokenize(data.splits["train"], tokenizer, max_length=9)
    assert tokens.features["labels"].dtype == "float32"
    for row in tokens:
        n = int(row["labels"])  # [CLS] a film [SEP] dull ... [SEP]; the longer text is cut
        assert row["length"] == len(row["input_ids"]) == min(9, 5 + n)
        assert sum(row["token_type_ids"]) == min(5, n + 1)


def test_of_a_path_that_is_there_others_see_the_last_part(tmp_path, monkeypatch):
    """However it is written; the name of a model on the hub stays whole."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clients" / "acme").mkdir(parents=True)
    (tmp_path / "clients" / "acme" / "tickets.csv").touch()
    for path in ("clients/acme/tickets.csv", "./clients/acme/tickets.csv"):
        assert public(path) == "tickets.csv"
    assert public("clients/elsewhere") == "clients/elsewhere"
