"""Reads users' data as columns: frames, data sets, lists and files, and labels to evaluate a model with."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from adaprune.data import KNOWN_TASKS, expanded, load_task
from adaprune.data.datafiles import check_texts, read_own, read_rows
from adaprune.data.labels import kind_of_labels, to_follow
from adaprune.data.tables import COLUMNS, SUFFIXES, read_lines, shown


def columns_of(data: Any, labels: Sequence | None = None) -> dict[str, list]:
    """The columns text, text_pair (if there is one) and label of a frame, a `datasets.Dataset` or two lists.

    Raises:
        ValueError: a column is missing or occurs twice, the lists differ in length, or a row cannot be right.
        TypeError: any other kind of data.
    """
    if labels is None and isinstance(data, (list, tuple)) and len(data) == 2 and not isinstance(data[0], str):
        data, labels = data
    if labels is not None:
        if isinstance(data, (str, Path)):
            raise TypeError(
                f"data is one text or path, {str(data)[:80]!r}, beside labels: give a list of texts, or no labels"
            )
        for name, values in (("data", data), ("labels", labels)):
            if isinstance(values, (str, dict, set, frozenset)):
                raise TypeError(f"{name} is a {type(values).__name__}, which has no order of rows: give a list")
        texts, labels = _listed(data), _listed(labels)
        if len(texts) != len(labels):
            raise ValueError(f"{len(texts)} texts and {len(labels)} labels: give a label for each text")
        pairs = bool(texts) and all(map(is_pair, texts))
        columns = {"text": [t[0] for t in texts], "text_pair": [t[1] for t in texts]} if pairs else {"text": texts}
        columns["label"] = labels
    else:
        columns = _columns(data, ("text", "label"))
    if _is_dataset(data) and hasattr(kind := data.features["label"], "int2str"):  # numbered class names
        columns["label"] = [None if n is None or n < 0 else kind.int2str(n) for n in columns["label"]]
    columns = {name: [_plain(value) for value in columns[name]] for name in COLUMNS if name in columns}
    check_texts(columns, "data")
    columns["label"] = [label.strip() if isinstance(label, str) else label for label in columns["label"]]
    if kind_of_labels(columns["label"], "data") == "float":
        columns["label"] = [float(label) for label in columns["label"]]
    return columns


def texts_of(data: Any) -> list:
    """The texts to label, or pairs of texts, as a list; from a list, a frame or a `datasets.Dataset`.

    Raises:
        ValueError: a table without the column text.
        TypeError: any other kind of data.
    """
    if isinstance(data, pd.DataFrame) or _is_dataset(data):
        columns = _columns(data, ("text",))
        pairs = zip(columns["text"], columns["text_pair"], strict=True) if "text_pair" in columns else None
        return list(pairs or columns["text"])
    if isinstance(data, (dict, bytes, set, frozenset)) or not isinstance(data, Iterable):
        raise TypeError(
            f"texts are of the type {type(data).__name__}: give a text, a list of texts or of pairs (text, text_pair), "
            "a pandas frame or a datasets.Dataset"
        )
    return list(data)


def _is_dataset(data: Any) -> bool:
    """Whether it is a `datasets.Dataset`: not if nobody has loaded that library, which takes a second."""
    library = sys.modules.get("datasets")
    return library is not None and isinstance(data, library.Dataset)


def _columns(data: Any, needed: tuple[str, ...]) -> dict[str, list]:
    """The columns of a table that we read: text, text_pair and label."""
    if _is_dataset(data):
        names = data.column_names
    elif isinstance(data, pd.DataFrame):
        names = data.columns.tolist()
    else:
        raise TypeError(
            f"data is of the type {type(data).__name__}: give a path or a task's name, a pandas frame, a "
            "datasets.Dataset (one split of it) or two lists, texts and labels"
        )
    for name in needed:
        if names.count(name) != 1:
            wrong = f"has the column {name!r} twice" if name in names else f"lacks the column {name!r}"
            raise ValueError(f"data {wrong} (it has: {', '.join(shown(str(name)) for name in names)}): rename one")
    return {name: list(data[name]) for name in COLUMNS if names.count(name) == 1}


def rows_to_judge(data: Any, labels: Sequence | None, data_dir: str, known: Sequence[str]) -> dict[str, list]:
    """The columns of data to evaluate on, with labels as they are; in a file they are read like the ``known`` ones."""
    if not isinstance(data, (str, Path)) or labels is not None:
        return columns_of(data, labels)
    path, is_known = expanded(data), str(data) in KNOWN_TASKS
    if path.is_file() and not is_known:
        rows = read_rows(path, like=to_follow(known))
        kind_of_labels(rows["label"], path)
        return rows
    if is_known or not path.is_dir():
        task = load_task(str(data), data_dir)
        held, names = task.splits["validation"], task.labels
        rows = {name: list(held[name]) for name in held.column_names}
    else:
        _, rows, names = read_own(path)
        if rows is None:
            raise ValueError(f"{path} has no validation file: give the file to judge on")
    return {**rows, "label": [names[label] for label in rows["label"]] if names else rows["label"]}


def texts_to_label(path: str | Path) -> dict[str, list[str]]:
    """The columns text and text_pair of a table, which needs no labels; for other files the lines, see `in_columns`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: any error in the file, as for training data.
    """
    path = expanded(path)
    if path.suffix.lower() in SUFFIXES:
        return read_rows(path, labelled=False)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return in_columns(read_lines(path.read_bytes(), str(path)))


def in_columns(lines: list[str]) -> dict[str, list[str]]:
    """One text per line or, if each line has one tab, a text and its pair."""
    pairs = [line.split("\t") for line in lines]
    if lines and all(len(pair) == 2 for pair in pairs):
        return {"text": [pair[0] for pair in pairs], "text_pair": [pair[1] for pair in pairs]}
    return {"text": lines}


def number_of(label: Any, labels: list[str], row: int, place: str = "") -> float:
    """A label as the metrics need it: its class number, or the value of a regression; ``place`` names it in errors."""
    if labels and str(label) in labels:
        return labels.index(str(label))
    if labels or isinstance(label, (str, bool)) or label is None:
        known = f"the labels are {', '.join(labels)}" if labels else "this is a regression, whose labels are numbers"
        raise ValueError(f"{place}row {row}: the model does not know the label {label!r}: {known}")
    return float(label)


def is_pair(value: Any) -> bool:
    """Whether this is a pair of texts."""
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(text, str) for text in value)


def _listed(values: Any) -> list:
    """A list of Python values, also of an array, a tensor or a series."""
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _plain(value: Any) -> Any:
    """A Python value, None for what pandas calls missing; as in files, a whole number over 18 digits is a name."""
    value = value.item() if isinstance(value, np.generic) else value
    if type(value) is int and abs(value) >= 10**18:
        return str(value)
    return None if value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value) else value
