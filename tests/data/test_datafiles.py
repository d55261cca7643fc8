"""The user's own data: every format, holding out, and every refusal with its place and remedy."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adaprune.data.datafiles import hold_out
from adaprune.data.tasks import load_task


def test_hold_out_is_stratified_and_keeps_rare_classes():
    labels = ["a"] * 60 + ["b"] * 40 + ["rare"]
    rows = {"text": [str(number) for number in range(101)], "label": labels}
    kept, held = hold_out(rows, 0.1, labels)
    assert Counter(held["label"]) == {"a": 6, "b": 4}
    assert sorted(kept["text"] + held["text"]) == sorted(rows["text"])
    assert kept["text"] == sorted(kept["text"], key=int)
    assert held["text"] not in (rows["text"][:6] + rows["text"][60:64], [])  # not the first ones


def test_hold_out_keeps_twins_together():
    rows = {"text": [f" {number % 20}" if number < 20 else str(number % 20) for number in range(100)]}
    kept, held = hold_out(rows, 0.25)
    assert len(held["text"]) == 25
    assert not {text.strip() for text in kept["text"]} & {text.strip() for text in held["text"]}


def test_hold_out_needs_two_texts():
    with pytest.raises(ValueError, match="1 distinct text"):
        hold_out({"text": ["a", "a "], "label": [0, 1]}, 0.1)


def test_folder_of_csv(ten_sentences):
    data = load_task(str(ten_sentences))
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 9,
        "selection": 1,
        "validation": 4,
    }
    assert data.labels == ["bad", "good"] and data.primary == "accuracy"
    assert data.splits["validation"][0] == {"text": "a superb film", "label": 1}
    assert data.name == str(ten_sentences)


def test_folder_without_validation_is_split(ten_sentences):
    (ten_sentences / "validation.csv").unlink()
    data = load_task(str(ten_sentences))
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 8,
        "validation": 1,
        "selection": 1,
    }


ROWS = [{"text": f"text {number}", "text_pair": f"pair {number}", "label": number % 2} for number in range(8)]


def write_rows(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        lines = [separator.join(map(str, values)) for values in ([*rows[0]], *(row.values() for row in rows))]
        path.write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8")


def test_every_format_gives_the_same_data(tmp_path):
    fingerprints = set()
    for suffix in (".parquet", ".csv", ".tsv", ".jsonl"):
        write_rows(tmp_path / f"mine{suffix}", ROWS)
        data = load_task(str(tmp_path / f"mine{suffix}"))
        assert data.labels == ["0", "1"]
        assert data.splits["train"].column_names == ["text", "text_pair", "label"]
        fingerprints.add(data.fingerprint)
    assert len(fingerprints) == 1


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["yes", "no"], ["no", "yes"]),
        ([10, 9], ["9", "10"]),  # sorted as numbers
        ([True, False], ["False", "True"]),
        ([0.5, 2.0], []),
        ([1, 2.5], []),  # integers among floats
    ],
)
def test_kinds_of_labels(tmp_path, labels, expected):
    rows = [{"text": f"text {number}", "label": labels[number % 2]} for number in range(12)]
    write_rows(tmp_path / "mine.jsonl", rows)
    data = load_task(str(tmp_path / "mine.jsonl"))
    assert data.labels == expected
    assert data.num_labels == (len(expected) or 1)
    assert data.splits["train"].features["label"].dtype == ("int64" if expected else "float32")
    assert data.primary == ("accuracy" if expected else "spearman")


def test_csv_words_that_other_readers_take_for_nothing_stay_texts(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text('text,label\nNA,a\nnull,b\n"said ""no"", then\nleft",a\nNone,b\n', encoding="utf-8")
    data = load_task(str(path))
    texts = {text for split in data.splits.values() for text in split["text"]}
    assert texts == {"NA", "null", "None", 'said "no", then\nleft'}


GOOD = "text,label\na,x\nb,y\nc,x\nd,y\n"
BAD_FILES = {
    "empty": ("m.csv", "", r"m\.csv: the file is empty; it needs"),
    "header only": ("m.csv", "text,label\n", r"m\.csv: holds no rows"),
    "not UTF-8": ("m.csv", "text,label\na,x\ncafé,y\n".encode("latin-1"), r"m\.csv: line 3 is not UTF-8"),
    "extension": ("m.xlsx", GOOD, r"m\.xlsx: unknown file extension '\.xlsx'; use one of \.parquet"),
    "no text": ("m.csv", "words,label\na,x\n", r"m\.csv: lacks the column 'text' \(it has: words, label\)"),
    "no label": ("m.jsonl", '{"text": "a", "y": 1}\n', r"m\.jsonl: lacks the column 'label'.*text, y"),
    "empty text": ("m.csv", GOOD + " ,x\n", r"m\.csv: row 5, column 'text': the text is empty; write"),
    "null text": ("m.jsonl", '{"text": null, "label": 1}\n', r"m\.jsonl: row 1, column 'text': the text is"),
    "number as text": ("m.jsonl", '{"text": 7, "label": 1}\n', r"row 1, column 'text': 7 is not a string"),
    "empty pair": ("m.csv", "text,text_pair,label\na,,x\n", r"row 1, column 'text_pair': the text is empty"),
    "empty label": ("m.csv", GOOD + "e,\n", r"m\.csv: row 5, column 'label': the label is empty; write one"),
    "NaN label": ("m.jsonl", '{"text": "a", "label": NaN}\n', r"row 1, column 'label': the label is empty"),
    "infinite": ("m.jsonl", '{"text": "a", "label": Infinity}\n', r"row 1, column 'label': .* infinite"),
    "list label": ("m.jsonl", '{"text": "a", "label": [1]}\n', r"row 1, column 'label': \[1\] is neither"),
    "one class": ("m.csv", "text,label\na,x\nb,x\n", r"m\.csv: column 'label': all are 'x'; give rows"),
    "mixed": ("m.csv", "text,label\na,1\nb,x\n", r"mixes integers \(first in row 1\) and words \(.* 2\)"),
    "mixed booleans": (
        "m.jsonl",
        '{"text": "a", "label": true}\n{"text": "b", "label": 1}\n',
        r"mixes booleans \(first in row 1\) and integers",
    ),
    "extra field": ("m.csv", GOOD + "e,f,x\n", r"m\.csv: row 5 has 3 fields, the header has 2; put"),
    "open quote": ("m.csv", GOOD + '"e,x\n', r"m\.csv: cannot be parsed at line 6 .*double quote"),
    "twin column": ("m.csv", "text,label,text\na,x,b\n", r"m\.csv: a column name appears twice"),
    "not JSON": ("m.jsonl", '{"text": "a", "label": 1}\n{oops\n', r"m\.jsonl: line 2 is not JSON"),
    "not an object": ("m.jsonl", "[1]\n", r"m\.jsonl: line 1 is not an object"),
    "not Parquet": ("m.parquet", GOOD, r"m\.parquet: cannot be read as Parquet"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file_is_refused_with_place_and_remedy(tmp_path, case):
    name, content, message = BAD_FILES[case]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        load_task(str(tmp_path / name))


def test_parquet_without_a_column_and_with_a_null(tmp_path):
    path = tmp_path / "m.parquet"
    write_rows(path, [{"sentence": "a", "label": 1}])
    with pytest.raises(ValueError, match=r"lacks the column 'text' \(it has: sentence, label\)"):
        load_task(str(path))
    write_rows(path, [{"text": "a", "label": 1}, {"text": "b", "label": None}])
    with pytest.raises(ValueError, match="row 2, column 'label': the label is empty"):
        load_task(str(path))


@pytest.mark.parametrize("name", ["m.csv", "folder/m", "m.txt"])
def test_missing_path_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"{name}: no such file or folder"):
        load_task(str(tmp_path / name))


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, FileNotFoundError, r"train\.\*: no such file; the folder needs one of train\.parquet"),
        ({"validation.csv": GOOD}, FileNotFoundError, r"train\.\*: no such file"),
        ({"train.csv": GOOD, "train.tsv": GOOD}, ValueError, r"holds train\.csv and train\.tsv, .* keep one"),
        ({"train.csv": GOOD, "validation.txt": GOOD}, ValueError, r"validation\.txt: unknown file extension"),
        (
            {"train.csv": GOOD, "validation.csv": "text,label\na,x\nb,z\n"},
            ValueError,
            r"validation\.csv: row 2, column 'label': 'z' never occurs in training.* x, y: add",
        ),
        (
            {"train.csv": GOOD, "validation.csv": "text,label\na,1\n"},
            ValueError,
            r"validation\.csv: column 'label' holds integers, but .*train\.csv holds words; write both alike",
        ),
        (
            {"train.csv": GOOD, "validation.csv": "text,text_pair,label\na,b,x\n"},
            ValueError,
            r"train\.csv: lacks the column 'text_pair', which .*validation\.csv has",
        ),
    ],
)
def test_bad_folder_is_refused(tmp_path, files, error, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(error, match=message):
        load_task(str(tmp_path))
