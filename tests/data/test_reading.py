"""What was read, on rows that can be counted by hand."""

import pandas as pd
import pytest

from adaprune import load_encoder, load_task
from adaprune.data import reading


@pytest.fixture
def task(tmp_path):
    (tmp_path / "mine").mkdir()
    rows = [("a fine film", "good"), ("zebra quark film", "bad"), ("see it twice", "good"), ("dull and long", "bad")]
    texts = pd.DataFrame(rows * 5, columns=["text", "label"])
    texts["text"] += [" film" * (n // 4) for n in range(20)]  # 3, 4, ... 7 words, four of each
    texts.to_csv(tmp_path / "mine" / "train.csv", index=False)
    held = pd.DataFrame({"text": ["a film", "zebra", "film " * 12], "label": ["good", "good", "bad"]})
    held.to_csv(tmp_path / "mine" / "validation.csv", index=False)
    return load_task(str(tmp_path / "mine"))


def test_rows_and_classes_are_counted(task):
    rows = reading.rows_read(task)
    assert rows.loc["validation"].to_dict() == {"rows": 3, "bad": 1, "good": 2}
    assert rows.loc[["train", "selection"], "rows"].tolist() == [18, 2]
    assert rows.loc[["train", "selection"], ["bad", "good"]].sum().tolist() == [10, 10]


def test_a_regression_has_its_range(tmp_path):
    values = [n / 4 for n in range(40)]
    pd.DataFrame({"text": [f"film {n}" for n in range(40)], "label": values}).to_csv(tmp_path / "m.csv", index=False)
    rows = reading.rows_read(load_task(str(tmp_path / "m.csv")))
    assert list(rows.columns) == ["rows", "least", "mean", "greatest"]
    assert (rows["least"].min(), rows["greatest"].max()) == (0.0, 9.75)
    assert (rows["mean"] * rows["rows"]).sum() == pytest.approx(sum(values), rel=1e-6)


def test_lengths_cuts_and_unknown_words_are_counted(task, tiny_model_dir):
    tokenizer = load_encoder(str(tiny_model_dir)).tokenizer
    held = reading.texts_read(task, tokenizer, 8).loc["validation"].to_dict()
    # [CLS] a film [SEP], [CLS] [UNK] [SEP], [CLS] 12 films [SEP]: 4, 3 and 14 tokens; 1 of 15 words is unknown
    assert held == {"median": 4, "longest": 14, "cut": pytest.approx(1 / 3), "unknown": pytest.approx(1 / 15)}


def test_examples_are_the_first_rows_with_long_texts_cut(task):
    rows = reading.examples(task, 2, width=10)
    train = task.splits["train"]
    assert rows["label"].tolist() == [task.labels[n] for n in train["label"][:2]]
    assert rows["text"].tolist() == [t if len(t) <= 10 else t[:7] + "..." for t in train["text"][:2]]
    assert all(len(text) <= 10 for text in rows["text"])
