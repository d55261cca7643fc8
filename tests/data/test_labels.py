"""Labels that look like numbers: codes and amounts, how to choose, and numbers beyond a limit."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp

from adaprune.data.datafiles import read_own
from adaprune.data.labels import as_written, parsed, taken_as, to_follow, unlike
from adaprune.data.tasks import load_task
from adaprune.given import columns_of, number_of, rows_to_judge

OFTEN = 8  # rows of a label


def table(path, labels, start=0):
    """A file in which each text is another one."""
    if path.suffix == ".jsonl":
        lines = [json.dumps({"text": f"text {start + n}", "label": label}) for n, label in enumerate(labels)]
    else:
        mark = {".csv": ",", ".tsv": "\t"}[path.suffix]
        lines = [f"text{mark}label", *(f"text {start + n}{mark}{label}" for n, label in enumerate(labels))]
    path.write_text("\n".join(lines) + "\n")
    return path


CODES = {
    ("1.10", "1.2", "2.0"): True,
    ("1.1", "1.10"): True,  # one number, two codes
    ("3", "2.50", "1.00"): True,
    ("1.2.3", "1.2", "1"): True,
    ("10.0.0.1", "10.0.0.2"): True,
    ("000", "001"): True,
    ("1", "9223372036854775808"): True,
    ("1E5", "2E5"): True,
    ("1e-05", "2e-05"): False,  # as programs write small amounts
    ("0.0", "1.0"): False,  # as programs write 0 and 1
    ("0.5", "1.0", "2.25"): False,
    ("1.10", "1.20", "2.00"): False,  # as spreadsheets write amounts
    ("1", "2", "3"): False,
    ("-1.10", "1.2"): False,
    ("1.10", "1.2", "1.5e3"): False,
    ("0.5", "2", "1e5"): False,  # an exponent
    ("1.10", "1.2", "good"): False,
}


@pytest.mark.parametrize("labels", CODES)
def test_codes_are_kept_as_they_are_written(labels):
    assert as_written(labels * OFTEN) == CODES[labels]
    assert (parsed([*labels] * OFTEN) == [*labels] * OFTEN) == CODES[labels]
    if CODES[labels] and {*".E"} & {*"".join(labels)}:  # measured once each, these are amounts
        assert not as_written(labels)


@pytest.mark.parametrize("name", ["m.csv", "m.tsv"])
def test_versions_are_classes_and_said_to_be(tmp_path, name):
    path = table(tmp_path / name, ["1.10", "1.2", "2.0"] * OFTEN)
    said = r"1\.10, 1\.2, 2\.0 are taken as 3 classes; for amounts .* with equally many decimals"
    with pytest.warns(UserWarning, match=said):
        assert load_task(str(path)).labels == ["1.10", "1.2", "2.0"]
    path = table(tmp_path / name, ["1.10", "1.20", "2.00"] * OFTEN)
    said = r"1\.1, 1\.2, 2\.0 are taken as amounts \(a regression\); for classes write them as words, such as v2\.0"
    with pytest.warns(UserWarning, match=said):
        assert load_task(str(path)).labels == []
    path = table(tmp_path / name, [f"{n / 8:.3f}".rstrip("0") + "0" for n in range(24)])  # 24 amounts, written by hand
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_task(str(path)).labels == []


def test_the_validation_file_is_read_as_the_training_file_is(tmp_path):
    table(tmp_path / "train.csv", ["1.10", "1.2", "2.0"] * OFTEN)
    table(tmp_path / "dev.csv", ["1.2", "2.0"], start=100)  # alone, a regression
    with pytest.warns(UserWarning, match="taken as 3 classes"):
        assert read_own(tmp_path)[1]["label"] == [1, 2]
    table(tmp_path / "train.csv", ["007", "12"] * OFTEN)
    table(tmp_path / "dev.csv", ["12", "12"], start=100)  # alone, a whole number
    assert read_own(tmp_path)[1:] == ({"text": ["text 100", "text 101"], "label": [1, 1]}, ["007", "12"])
    table(tmp_path / "train.csv", [f"{n}.5" for n in range(12)])
    table(tmp_path / "dev.csv", ["1.10", "1.2"] * OFTEN, start=100)  # alone, two classes
    assert read_own(tmp_path)[1]["label"] == [1.1, 1.2] * OFTEN


def test_labels_to_judge_by_are_read_like_the_models(tmp_path):
    path = table(tmp_path / "m.csv", ["1.2", "1.10"])
    rows = rows_to_judge(str(path), None, "", known := ["1.10", "1.2", "2.0"])
    assert [number_of(label, known, 1) for label in rows["label"]] == [1, 0]
    path = table(tmp_path / "m.csv", ["1.2", "1.10"] * OFTEN)
    assert rows_to_judge(str(path), None, "", [])["label"] == [1.2, 1.1] * OFTEN
    path = table(tmp_path / "m.csv", ["12", "7"])
    assert [number_of(n, ["7", "12"], 1) for n in rows_to_judge(path, None, "", ["7", "12"])["label"]] == [1, 0]


def test_what_labels_follow():
    assert [to_follow(labels) for labels in ([], [1, 0.5], [1, 2], ["a", "1"], ["1.10", "2"], [None])] == [
        "float", "float", "", "", "word", "",
    ]  # fmt: skip


def test_which_kind_of_task_is_said_with_the_other():
    assert taken_as([0.0, 1.0]).endswith("because some have a decimal point; for classes write them without it")
    assert taken_as(["0", "1"]).endswith("2 classes; for amounts (a regression) write them with a decimal point")
    assert taken_as([False, True]) == "the labels False, True are taken as 2 classes"
    assert taken_as([np.float32(0.1).item(), 2.5]).startswith("the labels 0.1, 2.5 are taken as amounts")
    assert taken_as([*"abcde"]) == "the labels a, b, c, d, ... are taken as 5 classes"


@pytest.mark.parametrize("huge", [2**63, 10**30, -(10**30), 10**18])
@pytest.mark.parametrize("small", [1, 0.5])
def test_a_number_beyond_the_limit_is_named_with_it(tmp_path, huge, small):
    limit = "at most 18" if small == 1 else "too large for a regression (at most 1e+18 in size)"
    labels = [small, 2, huge, 3] * 3
    path = table(tmp_path / "m.jsonl", labels)
    frame = pd.DataFrame({"text": ["a"] * 12, "label": labels}, dtype=object)
    ways = ((load_task, [str(path)], path), (columns_of, [["a"] * 12, labels], "data"), (columns_of, [frame], "data"))
    for read, given, place in ways:
        with pytest.raises(ValueError) as caught:
            read(*given)
        assert f"{place}: row 3, column 'label': {huge}" in str(caught.value) and limit in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            ["1", "2", "?", "1", "2", "1"],
            r"integers \(first in row 1\) and words \(first in row 3\).* \(row 3 has '\?'\)",
        ),
        (
            ["a", "b", "a", "20", "a", "b"],
            r"words .* and integers .*; write all labels as one of them \(row 4 has 20\)",
        ),
        (["0.5", "1.5", "None", "0.5", "1.5", "2"], r"\(row [36] has (2|'None')\)"),
        (["2,5e3", "1,5e3"] * 3, r"row 1, column 'label': '2,5e3' is a number with a comma"),
        ([f"id{n}" for n in range(6)], r"each of the 6 rows has a class of its own, such as 'id0'; is it an id"),
        ([1.00000001, 1.00000002, 1.00000003], r"keeps 7 digits, and of 3 different labels such as 1\.00000001 only 1"),
        (
            [1.7e9 + n + 0.5 for n in range(9)],
            r"of 9 different labels such as 1700000000\.5 only 1; subtract a constant",
        ),
        ([1e-320, 2e-320, 1e-320], r"of 2 different labels such as 1e-320 only 1; .* or multiply all by one"),
        (["0.5", "2", "1e400"], r"row 3, column 'label': the label is infinite"),
        ([*range(6)], r"each of the 6 rows has a class of its own, such as 0; .* with a decimal point"),
    ],
)
def test_the_label_that_cannot_be_meant_is_named(tmp_path, labels, said):
    path = table(tmp_path / "m.tsv", labels)
    with pytest.raises(ValueError, match=said):
        load_task(str(path))


@pytest.mark.parametrize("word", ["None", "NULL", "N/A", "?", r"\N"])
def test_a_word_that_may_stand_for_no_label_is_said_to_be_a_class(tmp_path, word):
    path = table(tmp_path / "m.csv", ["yes", "no", word] * OFTEN)
    with pytest.warns(UserWarning, match="is a class; if it stands for none, delete its rows") as said:
        assert word in load_task(str(path)).labels
    assert len(said) == 1 and repr(word) in str(said[0].message)


@pytest.mark.parametrize("word", ["a;b", "b, a", "a|b"])
def test_several_labels_in_one_are_said_to_be_one_class(tmp_path, word):
    path = table(tmp_path / "m.tsv", ["a", "b", word] * OFTEN)
    with pytest.warns(UserWarning, match="is a class of its own, not several labels: a row has one label"):
        assert len(load_task(str(path)).labels) == 3
    path = table(tmp_path / "m.tsv", ["x", word] * OFTEN)  # no other row has its parts
    assert len(load_task(str(path)).labels) == 2


def test_a_long_label_is_cut_in_messages(tmp_path):
    table(tmp_path / "train.csv", ["x" * 5000, "y"] * OFTEN)
    table(tmp_path / "dev.csv", ["z" * 5000], start=100)
    with pytest.raises(ValueError) as caught:
        read_own(tmp_path)
    assert "dev.csv: row 1" in str(caught.value) and "z" * 90 not in str(caught.value)
    assert len(taken_as(["x" * 5000, "y"])) < 150


def test_names_of_many_digits_may_stand_together(tmp_path):
    long = ["1" * 30, "2" * 30]
    assert load_task(str(table(tmp_path / "m.jsonl", [int(label) for label in long] * 6))).labels == long
    assert load_task(str(table(tmp_path / "n.jsonl", [*long, "x"] * 6))).labels == [*long, "x"]


@pytest.mark.parametrize("seed", range(3))
def test_first_rows_unlike_the_rest_are_those_of_scipys_test(seed):
    draw = np.random.default_rng(seed)
    for count, shift in ((30, 0.0), (30, 1.0), (200, 0.3), (200, 0.5), (12, 3.0)):
        one, other = draw.normal(size=count).round(1).tolist(), draw.normal(shift, size=300).round(1).tolist()
        distance = ks_2samp(one, other).statistic
        limit = 1.9495 * np.sqrt((len(one) + len(other)) / (len(one) * len(other)))  # of tables, at 0.001
        assert unlike(one, other) == (distance > limit)


def near(labels, seed=0):
    """Nearly sorted: every tenth row is elsewhere."""
    draw, labels = np.random.default_rng(seed), sorted(labels)
    for place in range(0, len(labels), 10):
        other = int(draw.integers(len(labels)))
        labels[place], labels[other] = labels[other], labels[place]
    return labels


@pytest.mark.parametrize("kind", ["amounts", "reversed", "classes", "rare first"])
def test_rows_nearly_sorted_are_drawn_from_all(tmp_path, kind):
    labels = near([n / 8 for n in range(400)]) if kind in ("amounts", "reversed") else near("abcd" * 100)
    labels = labels[::-1] if kind == "reversed" else labels
    if kind == "rare first":  # all classes are among the first rows, in other shares
        labels = [*"ab" * 50, *"a" * 300]
    path = str(table(tmp_path / "m.csv", labels))
    with pytest.warns(UserWarning, match=r"not in random order .* of the first 100 .*: 100 of the 360 are drawn"):
        task = load_task(path, max_train_examples=100)
    used = [*task.splits["train"]["label"], *task.splits["selection"]["label"]]
    mean = {"amounts": 25, "reversed": 25, "classes": 1.5, "rare first": 50 / 400}[kind]
    assert len(used) == 100 and abs(np.mean(used) - mean) < 0.15 * {"rare first": 1}.get(kind, mean)
    assert 0 < len({int(text.split()[1]) for text in task.splits["train"]["text"]} & {*range(300, 400)})


def test_rows_in_random_order_are_the_first():
    orders = (np.random.default_rng(seed).permutation(400).tolist() for seed in range(500))
    assert sum(unlike(order[:100], order[100:]) for order in orders) <= 4  # at most 0.5 are expected
