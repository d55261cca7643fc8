"""Files as people have them: other separators, stray quotes, odd labels, sorted rows, other names of splits."""

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adaprune.data.datafiles import read_rows
from adaprune.data.tables import read_lines, read_table
from adaprune.data.tasks import load_task

WORDS = [(f"text {number}", "good" if number % 2 else "bad") for number in range(12)]


def write(path, rows, separator=",", header="text,label", encoding="utf-8"):
    lines = [header.replace(",", separator), *(separator.join(map(str, row)) for row in rows)]
    path.write_bytes(("\n".join(lines) + "\n").encode(encoding))
    return path


def texts_of(data):
    return sorted(text for split in data.splits.values() for text in split["text"])


@pytest.mark.parametrize("name", ["m.csv", "m.tsv"])
@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
def test_the_header_tells_the_separator(tmp_path, name, separator):
    path = write(tmp_path / name, WORDS, separator)
    assert read_table(path) == {"text": [text for text, _ in WORDS], "label": [label for _, label in WORDS]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_byte_order_marks(tmp_path, encoding):
    path = write(tmp_path / "m.tsv", [("Grüße", "é"), ("b", "f")], "\t", encoding=encoding)
    if encoding == "utf-16-le":  # without a mark nothing says so
        with pytest.raises(ValueError, match=r"m\.tsv: line [12] .*save it as UTF-8"):
            read_table(path)
    else:
        assert read_table(path) == {"text": ["Grüße", "b"], "label": ["é", "f"]}


@pytest.mark.parametrize("separator", ["\t", ","])
@pytest.mark.parametrize("first", [2, 5])
@pytest.mark.parametrize("last", [6, 11])
def test_a_stray_quote_that_swallows_rows_is_refused_with_its_lines(tmp_path, separator, first, last):
    rows = [*WORDS]
    rows[first - 2] = ('"It opens a quote', "good")
    rows[last - 2] = ('and closes one"', "bad")
    path = write(tmp_path / "m.csv", rows, separator)
    with pytest.raises(ValueError, match=rf"m\.csv: a double quote in line {first} .* lines {first} to {last}"):
        read_table(path)


def test_a_stray_quote_in_the_second_of_three_columns(tmp_path):
    rows = [(f"a {n}", f"b {n}", n % 2) for n in range(8)]
    rows[3], rows[4] = ("a 3", '"b 3', 1), ("a 4", 'b 4"', 0)
    path = write(tmp_path / "m.tsv", rows, "\t", "text,text_pair,label")
    with pytest.raises(ValueError, match="a double quote in line 5 makes one row of the lines 5 to 6"):
        read_table(path)


def test_a_quote_that_never_closes_names_the_line_it_opens_in(tmp_path):
    path = write(tmp_path / "m.csv", [("a", "x"), ('"b', "y"), ("c", "x")])
    with pytest.raises(ValueError, match=r"cannot be parsed at line 3 .* up to line 4"):
        read_table(path)


def test_texts_of_several_lines_stay(tmp_path):
    texts = ["Dear A, and B,\n1, this is\n\nyours", 'he said "no",\nthen left', "plain", "a\r\nb, 3"]
    with (tmp_path / "m.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("label", "text"), *(("xy"[n % 2], text) for n, text in enumerate(texts))])
    assert read_table(tmp_path / "m.csv")["text"] == texts


def test_a_long_field_is_read_and_the_limit_of_the_process_stays(tmp_path):
    before = csv.field_size_limit()
    path = write(tmp_path / "m.csv", [("word " * 40_000, "x"), ("b", "y")])
    assert len(read_table(path)["text"][0]) == 200_000
    assert csv.field_size_limit() == before == 131_072


@pytest.mark.parametrize("end", ["   ", "\t\t", " , ", "\n\n  \n", '""'])
def test_blank_lines_are_no_rows(tmp_path, end):
    path = write(tmp_path / "m.csv", WORDS)
    path.write_text(path.read_text() + end)
    assert len(read_table(path)["text"]) == 12


@pytest.mark.parametrize("rows", [[("text", "label")], [(" text", "label ")], [("Text", "LABEL")], [("label", "text")]])
def test_a_repeated_header_is_named(tmp_path, rows):
    path = write(tmp_path / "m.csv", [*WORDS, *rows, *WORDS])
    with pytest.raises(ValueError, match=r"m\.csv: line 14 repeats the header; delete it"):
        read_table(path)


def test_a_header_among_rows_of_json_is_named(tmp_path):
    rows = [*WORDS[:5], ("Text", "label"), *WORDS[5:]]
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in rows))
    with pytest.raises(ValueError, match=r"m\.jsonl: row 6 repeats the names of the columns; delete it"):
        load_task(str(path))
    path.write_text("\n".join(json.dumps({"text": text, "label": "text"}) for text, _ in rows[:6]))
    assert read_rows(path)["label"] == ["text"] * 6  # a class may be called so


@pytest.mark.parametrize("row", [("only one",), ("a", "b", "c")])
def test_a_ragged_row_is_named(tmp_path, row):
    path = write(tmp_path / "m.csv", [*WORDS, row])
    with pytest.raises(ValueError, match=rf"row 13 has {len(row)} fields, the header has 2; .* \(line 14\)"):
        read_table(path)


def test_columns_without_a_name_do_not_clash(tmp_path):
    path = write(tmp_path / "m.csv", [(*row, "", "") for row in WORDS], header="text,label,,")
    assert len(read_table(path)["label"]) == 12


def test_twin_columns_in_json_and_parquet_are_refused(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "a", "text": "b", "label": 0}\n')
    with pytest.raises(ValueError, match=r"m\.jsonl: line 2 gives text twice"):
        read_table(tmp_path / "m.jsonl")
    pq.write_table(pa.Table.from_arrays([["a"], ["b"], [1]], names=["text", "text", "label"]), tmp_path / "m.parquet")
    with pytest.raises(ValueError, match="appears twice in the header, text"):
        read_table(tmp_path / "m.parquet")


@pytest.mark.parametrize("column", ["text", "label"])
def test_lone_surrogates_are_named_by_file_and_row(tmp_path, column):
    row = {"text": "a", "label": "x"}
    lines = [json.dumps(row), json.dumps({**row, column: "half \ud83d"})]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=rf"m\.jsonl: row 2, column '{column}': .*lone surrogate '\\ud83d'"):
        load_task(str(tmp_path / "m.jsonl"))


def test_what_no_json_number_should_be(tmp_path):
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"deep\.jsonl: line 1 is not JSON"):
        read_table(tmp_path / "deep.jsonl")
    rows = [f'{{"text": "t{n}", "label": {"9" * 5000 if n % 2 else "1" * 5000}}}' for n in range(12)]
    (tmp_path / "long.jsonl").write_text("\n".join(rows))
    assert load_task(str(tmp_path / "long.jsonl")).labels == ["1" * 5000, "9" * 5000]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["000", "001"], ["000", "001"]),
        (["007", "12"], ["007", "12"]),
        (["7", "12"], ["7", "12"]),
        (["pos ", " pos", "neg"], ["neg", "pos"]),
        (["1" * 30, "2" * 30], ["1" * 30, "2" * 30]),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_names_of_classes_are_kept(tmp_path, labels, expected, suffix):
    rows = [(f"t{n}", labels[n % len(labels)]) for n in range(24)]
    path = tmp_path / f"m{suffix}"
    if suffix == ".csv":
        write(path, rows)
    else:
        path.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in rows))
    labels = load_task(str(path)).labels
    assert labels == expected if suffix == ".csv" else sorted(labels) == sorted(expected)  # words there, not numbers


def test_a_decimal_comma_is_refused_by_row(tmp_path):
    path = write(tmp_path / "m.csv", [(f"t{n}", n if n % 2 else f"{n},5") for n in range(8)], ";")
    with pytest.raises(ValueError, match=r"row 1, column 'label': '0,5' is a number with a comma; write 0\.5"):
        load_task(str(path))


@pytest.mark.parametrize("first", ["1,234.50", "1.234,50", "1 234", "1\u202f234,5", "1'234", "\u22120,5", "\u22127"])
def test_a_number_as_only_people_write_it_is_refused_by_row(tmp_path, first):
    rows = [(f"t{n}", f"{n}") for n in range(8)]
    rows[3] = ("t3", first)
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in rows))
    with pytest.raises(ValueError, match=r"row 4, column 'label': .* is a number with a (comma|sign); write 0"):
        load_task(str(path))


@pytest.mark.parametrize(
    ("label", "said"), [("{}.5", "0.5, 1.5, 2.5"), ("{}0%", "00%, 10%, 20%"), ("${}", r"\$0, \$1, \$2")]
)
def test_words_that_are_amounts_are_said_to_be_classes(tmp_path, label, said):
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"t{n}", "label": label.format(n % 3)}) for n in range(30)))
    with pytest.warns(UserWarning, match=f"{said} are taken as 3 classes; for amounts .* as numbers, without quotes"):
        assert len(load_task(str(path)).labels) == 3


@pytest.mark.parametrize("word", ["nan", "NaN", "<NA>", "#N/A"])
def test_nan_is_no_label_and_a_fine_text(tmp_path, word):
    data = load_task(str(write(tmp_path / "m.csv", [*WORDS, (word, "good")])))
    assert word in texts_of(data)
    with pytest.raises(ValueError, match=rf"row 13, column 'label': '{word}' stands for no label"):
        load_task(str(write(tmp_path / "m.csv", [*WORDS, ("t", word)])))


def test_numbers_that_may_be_classes_and_classes_that_may_be_numbers(tmp_path):
    path = write(tmp_path / "m.csv", [(f"t{n}", float(n % 2)) for n in range(20)])
    with pytest.warns(UserWarning, match=r"0\.0, 1\.0 are taken as amounts \(a regression\).* for classes write"):
        assert load_task(str(path)).labels == []
    path = write(tmp_path / "m.csv", [(f"t{n}", n % 60) for n in range(600)])
    with pytest.warns(UserWarning, match=r"0, 1, 2, 3, \.\.\. are taken as 60 classes; for amounts"):
        assert len(load_task(str(path)).labels) == 60


def test_amounts_too_large_to_square_are_refused(tmp_path):
    path = write(tmp_path / "m.csv", [(f"t{n}", 0.5 + n) for n in range(9)] + [("t", "1e30")])
    with pytest.raises(
        ValueError, match=r"row 10, column 'label': 1e\+30 is too large for a regression \(at most 1e\+18"
    ):
        load_task(str(path))


@pytest.mark.parametrize("name", ["dev.csv", "val.csv", "valid.tsv", "Validation.csv", "VALIDATION.jsonl", "Dev.CSV"])
def test_other_names_of_the_validation_split(tmp_path, name):
    write(tmp_path / "Train.csv", WORDS)
    if name.endswith(".jsonl"):
        (tmp_path / name).write_text("\n".join(json.dumps({"text": t + "!", "label": y}) for t, y in WORDS[:4]))
    else:
        write(tmp_path / name, [(t + "!", y) for t, y in WORDS[:4]])
    data = load_task(str(tmp_path))
    assert sorted(data.splits["validation"]["text"]) == ["text 0!", "text 1!", "text 2!", "text 3!"]


def test_two_validation_splits_are_refused_and_what_is_not_used_is_named(tmp_path):
    for name in ("train.csv", "dev.csv", "test.csv", "notes.txt"):
        write(tmp_path / name, [(f"{text} of {name}", label) for text, label in WORDS])
    with pytest.warns(UserWarning, match="not used: notes.txt, test.csv$"):
        load_task(str(tmp_path))
    write(tmp_path / "validation.csv", WORDS)
    with pytest.raises(ValueError, match=r"holds dev\.csv and validation\.csv, which all claim to be the validation"):
        load_task(str(tmp_path))
    (tmp_path / "train.csv").unlink()
    (tmp_path / "validation.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.\*: no such file; .* \(it holds notes\.txt, test\.csv\)"):
        load_task(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (".dev.csv", r"\.dev\.csv \(hidden, or it would be the validation split: rename or delete it\)"),
        ("._train.csv", r"\._train\.csv \(hidden, or it would be the train split: rename or delete it\)"),
        (".DS_Store", r"\.DS_Store"),
        (".validation.csv.swp", r"\.validation\.csv\.swp"),
        ("Thumbs.db", r"Thumbs\.db"),
    ],
)
def test_hidden_files_are_named_and_not_read(tmp_path, name, said):
    write(tmp_path / "train.csv", WORDS)
    (tmp_path / name).write_bytes(b"\x00\xff")
    with pytest.warns(UserWarning, match=f"not used: {said}$"):
        data = load_task(str(tmp_path))
    assert sum(map(len, data.splits.values())) == 12
    (tmp_path / "train.csv").unlink()
    with pytest.raises(FileNotFoundError, match=rf"train\.\*: no such file; .* \(it holds {said}\)"):
        load_task(str(tmp_path))


def test_a_split_that_is_a_lost_link_is_refused_and_a_folder_of_its_name_is_said(tmp_path):
    write(tmp_path / "train.csv", WORDS)
    (tmp_path / "val").mkdir()
    with pytest.warns(UserWarning, match=r"not used: val \(a folder, not a file of the validation split\)"):
        load_task(str(tmp_path))
    (tmp_path / "val").rmdir()
    (tmp_path / "dev.csv").symlink_to("nowhere.csv")
    with pytest.raises(FileNotFoundError, match=r"dev\.csv: no such file, only a link to nowhere\.csv, which is none"):
        load_task(str(tmp_path))


def test_rows_sorted_by_class_are_drawn_from_all(tmp_path):
    path = str(write(tmp_path / "m.csv", [(f"text {n}", "abc"[n // 20]) for n in range(60)]))
    with pytest.warns(UserWarning, match="training rows are sorted by label: 30 of the 54 are drawn at random"):
        data = load_task(path, max_train_examples=30)
    assert set(data.splits["train"]["label"]) == {0, 1, 2}
    assert len(data.splits["train"]) + len(data.splits["selection"]) == 30
    with pytest.warns(UserWarning, match="drawn"):
        assert load_task(path, max_train_examples=30).fingerprint == data.fingerprint


def test_rows_in_blocks_of_one_class_are_drawn_from_all(tmp_path):
    """They are sorted too, only not by the names of the classes; their first 45 have 5 of the last class."""
    path = str(write(tmp_path / "m.csv", [(f"text {n}", "bca"[n // 20]) for n in range(60)]))
    with pytest.warns(UserWarning, match="training rows are sorted by label: 45 of the 54 are drawn at random"):
        data = load_task(path, max_train_examples=45)
    labels = [*data.splits["train"]["label"], *data.splits["selection"]["label"]]
    assert min(labels.count(number) for number in range(3)) > 10


def test_rows_sorted_by_amount_are_drawn_and_mixed_ones_are_the_first(tmp_path):
    path = str(write(tmp_path / "m.csv", [(f"text {n}", n / 8) for n in range(80)]))
    with pytest.warns(UserWarning, match="sorted by label"):
        data = load_task(path, max_train_examples=20)
    assert max(data.splits["train"]["label"]) > 80 / 8 / 2  # the first 20 of the rows end at 2.5
    path = str(write(tmp_path / "m.csv", [(f"text {n}", n * 7 % 80 / 8) for n in range(80)]))
    data = load_task(path, max_train_examples=20)
    assert max(int(text.split()[1]) for text in data.splits["train"]["text"]) < 25


def test_a_class_that_no_used_row_has_is_refused(tmp_path):
    rows = [(f"text {n}", "abc"[n % 2 if n < 58 else 2]) for n in range(60)]
    path = str(write(tmp_path / "m.csv", rows))
    assert load_task(path).labels == ["a", "b", "c"]
    with (
        pytest.warns(UserWarning, match="lack a class among the first 4: 4 of the 5"),
        pytest.raises(ValueError, match="training rows in use have none of class b; raise max_train_examples"),
    ):
        load_task(path, max_train_examples=4)


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
def test_texts_to_label_need_no_labels_and_get_the_same_checks(tmp_path, separator):
    path = write(tmp_path / "m.csv", [(f"a {n}", f"b {n}") for n in range(8)], separator, "text,text_pair")
    assert read_rows(path, labelled=False) == {
        "text": [f"a {n}" for n in range(8)],
        "text_pair": [f"b {n}" for n in range(8)],
    }
    with pytest.raises(ValueError, match=r"m\.csv: lacks the column 'label' \(it has: text, text_pair"):
        read_rows(path)
    path = write(tmp_path / "m.csv", WORDS, separator)  # a label that is there is left out
    assert read_rows(path, labelled=False) == {"text": [text for text, _ in WORDS]}
    rows = [*WORDS]
    rows[3], rows[7] = ('"It opens a quote', "good"), ('and closes one"', "bad")
    for header, first in (("text,label", 5), ("text,id", 5)):
        path = write(tmp_path / "m.csv", rows, separator, header)
        with pytest.raises(ValueError, match=rf"a double quote in line {first} makes one row of the lines 5 to 9"):
            read_rows(path, labelled=False)


def test_texts_of_several_lines_to_be_labelled_stay(tmp_path):
    texts = ["Dear A, and B,\n1, this is\n\nyours", "Hello, you\nmy screen is black", "a\nb\nc\nd", "plain"]
    for columns in (["text"], ["text", "id"], ["id", "text"]):
        with (tmp_path / "m.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows({name: text if name == "text" else n for name in columns} for n, text in enumerate(texts))
        assert read_rows(tmp_path / "m.csv", labelled=False) == {"text": texts}


def test_lines_end_where_lines_end():
    assert read_lines("a\u2028b\r\nc\n  \n\x0bd\x85\r".encode(), "x") == ["a\u2028b", "c", "\x0bd\x85"]
    assert read_lines("é\nb".encode("utf-16"), "x") == read_lines("é\nb".encode("utf-8-sig"), "x") == ["é", "b"]
    with pytest.raises(ValueError, match="mine: line 2 is not UTF-8"):
        read_lines(b"a\n\xff", "mine")
    with pytest.raises(ValueError, match="mine: holds no text"):
        read_lines(b" \n", "mine")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b"text,label\na,b\n", mtime=0), "packed by gzip"),
        (b"PK\x03\x04rest", "a zip archive or an Excel workbook"),
        (b"\xd0\xcf\x11\xe0rest", "an Excel workbook: save it as CSV"),
        (b"PAR1rest", r"a Parquet file: let its name end in \.parquet"),
    ],
)
@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "m.jsonl"])
def test_what_is_no_text_is_told_by_its_first_bytes(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"m\..*: this is not text, it is {said}"):
        read_table(tmp_path / name)


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_every_kind_of_line_end(tmp_path, name, end):
    lines = ["text,label", *map(",".join, WORDS)]
    if name == "m.jsonl":
        lines = [
            json.dumps({"text": f"{text}\u2028 \x85", "label": label}, ensure_ascii=False) for text, label in WORDS
        ]
    (tmp_path / name).write_bytes(end.join(lines).encode())
    read = read_table(tmp_path / name)
    assert [text[:7].strip() for text in read["text"]] == [text for text, _ in WORDS]
    assert read["label"] == [label for _, label in WORDS]


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
def test_blanks_before_a_quote_are_no_part_of_the_field(tmp_path, separator):
    rows = [(f'"a{separator} {n}"', f' "{label}"') for n, (_, label) in enumerate(WORDS)]
    table = read_table(write(tmp_path / "m.csv", rows, separator))
    assert table == {"text": [f"a{separator} {n}" for n in range(12)], "label": [label for _, label in WORDS]}
    rows = [(f" text {n}", label) for n, (_, label) in enumerate(WORDS)]  # no quotes: the blank is the text's
    assert read_table(write(tmp_path / "m.csv", rows, separator))["text"][3] == " text 3"
    rows = [(f"text {n}", f'"a{separator} ""b"""') for n in range(12)]  # and within a field nothing changes
    assert read_table(write(tmp_path / "m.csv", rows, separator))["label"][3] == f'a{separator} "b"'


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["Good", "good", "bad"], "the labels 'Good' and 'good' count as 2 classes"),
        (["\xe9", "e\u0301", "b"], r"the labels 'e\\u0301' and '\\xe9' count as 2 classes"),
        (["good", "good\u200b", "bad"], r"the labels 'good' and 'good\\u200b' count as 2 classes"),
    ],
)
def test_labels_that_look_alike_are_named(tmp_path, labels, said):
    path = write(tmp_path / "m.csv", [(f"t{n}", labels[n % 3]) for n in range(60)])
    with pytest.warns(UserWarning, match=said):
        assert len(load_task(str(path)).labels) == 3


def test_texts_with_two_labels_and_texts_of_both_splits_are_counted(tmp_path):
    rows = [*WORDS, ("text 3", "bad"), ("text 5 ", "bad"), ("text 7", "good")]
    path = write(tmp_path / "train.csv", rows)
    with pytest.warns(UserWarning, match=r"train\.csv: 2 of 12 texts have more than one label"):
        load_task(str(path))
    write(tmp_path / "train.csv", WORDS)
    write(tmp_path / "dev.csv", [("text 3", "bad"), ("text 4", "bad"), ("new", "good")])
    with pytest.warns(UserWarning, match=r"dev\.csv: 2 of 3 rows have texts of train\.csv: scores on these"):
        load_task(str(tmp_path))


@pytest.mark.parametrize("rows", [[("same", "a"), ("same ", "b")] * 9, [("a", "one"), ("b", "two")] * 9])
def test_too_few_different_texts_are_refused_by_file(tmp_path, rows):
    path = write(tmp_path / "m.csv", rows)
    with pytest.raises(ValueError, match=r"m\.csv: column 'text': [12] different texts, at least 3 are needed"):
        load_task(str(path))


def test_names_of_columns_show_what_cannot_be_seen(tmp_path):
    path = write(tmp_path / "m.csv", WORDS, header="text,label\u200b")
    with pytest.raises(ValueError, match=r"lacks the column 'label' \(it has: text, 'label\\u200b'\)"):
        read_table(path)
    (tmp_path / "m.jsonl").write_text('{"text": "a", "label ": 1}\n')
    with pytest.raises(ValueError, match=r"lacks the column 'label' \(it has: text, 'label '\)"):
        read_table(tmp_path / "m.jsonl")


@pytest.mark.parametrize("text", ["\u200b", " \ufeff \u200d"])
def test_a_text_of_which_nothing_can_be_seen_is_empty(tmp_path, text):
    path = write(tmp_path / "m.csv", [*WORDS, (text, "good")])
    with pytest.raises(ValueError, match="row 13, column 'text': the text is empty"):
        read_rows(path)
    assert read_rows(write(path, [("\U0001f642", "good"), ("\u200bok", "bad")]))["text"] == ["\U0001f642", "\u200bok"]
