"""Reads a user's own texts and labels and refuses what cannot be meant, with the place and the remedy.

Every format ends up as the same value, `Rows`: a dict of equally long lists. Nothing read is ever executed.
"""

import csv
import io
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Rows = dict[str, list]

SPLIT_SEED = 0  # of every split made here; not the run's seed, so that all runs share the splits
COLUMNS = ("text", "text_pair", "label")
SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")

_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_KINDS = {bool: "boolean", int: "integer", float: "float", str: "word"}


def read_own(path: Path) -> tuple[Rows, Rows | None, list[str]]:
    """The training rows, the validation rows (None without a file), the class names (empty = regression).

    Labels come back as class numbers (places in the sorted class names) or as floats. Words, integers and
    booleans are classes; floats, or integers among floats, are a regression. In .csv and .tsv, where
    everything is text, a label column of numbers alone counts as numbers.

    Raises:
        FileNotFoundError: no such path, or a folder without a `train.*` file.
        ValueError: anything else that is wrong with a file; names file, row and column, and says what to do.
    """
    files = _find_files(path)
    tables = {split: _checked(read_table(file), file) for split, file in files.items()}
    kinds = {split: _kind_of_labels(table["label"], files[split]) for split, table in tables.items()}
    train, validation = tables["train"], tables.get("validation")
    _refuse_single_label(train["label"], files["train"])
    if validation is not None:
        _refuse_different_splits(tables, kinds, files)
    if kinds["train"] == "float":
        for table in tables.values():
            table["label"] = [float(label) for label in table["label"]]
        return train, validation, []
    names = sorted(set(train["label"]))
    for split, table in tables.items():
        table["label"] = _class_numbers(table["label"], names, files[split])
    return train, validation, [str(name) for name in names]


def read_table(path: Path) -> Rows:
    """The columns of one .parquet, .csv, .tsv or .jsonl file (of a .parquet, only those in `COLUMNS`)."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: unknown file extension {path.suffix!r}; use one of {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty; it needs the columns text and label, and rows")
    if path.suffix.lower() == ".parquet":
        return read_parquet(path, required=("text", "label"), optional=("text_pair",))
    return _read_jsonl(path) if path.suffix.lower() == ".jsonl" else _read_delimited(path)


def read_parquet(path: Path, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> Rows:
    """The required columns of a Parquet file, and the optional ones that it has, as plain Python values.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a Parquet file, a damaged one, or one that lacks a required column.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            table = file.read([name for name in (*required, *optional) if name in names])
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: cannot be read as Parquet ({error}); write the file anew") from error
    _require(required, names, path)
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _require(columns: tuple[str, ...], names: Sequence[str], path: Path) -> None:
    for column in columns:
        if column not in names:
            found = ", ".join(names) or "none"
            raise ValueError(f"{path}: lacks the column {column!r} (it has: {found}); rename or add one")


def hold_out(rows: Rows, fraction: float, strata: Sequence[Hashable] | None = None) -> tuple[Rows, Rows]:
    """The rows that stay and the rows held out, both in their old order; the same ones at every call.

    Identical inputs (up to surrounding blanks) stay together, so nothing leaks; `fraction` is therefore one
    of distinct inputs. Each stratum (a class, say) gives in proportion to its size, so that a class seen only
    once stays, unless every class is.

    >>> hold_out({"text": ["bad", "good", "good"], "label": [0, 1, 1]}, 0.5, strata=[0, 1, 1])
    ({'text': ['bad'], 'label': [0]}, {'text': ['good', 'good'], 'label': [1, 1]})

    Raises:
        ValueError: fewer than two distinct inputs.
    """
    texts = [rows[name] for name in ("text", "text_pair") if name in rows]
    inputs = (tuple(text.strip() for text in pair) for pair in zip(*texts, strict=True))
    first_row: dict[tuple[str, ...], int] = {}
    twins = [first_row.setdefault(key, row) for row, key in enumerate(inputs)]
    if len(first_row) < 2:
        raise ValueError(f"{len(first_row)} distinct text(s) cannot be split in two; give more rows")
    distinct = list(first_row.values())
    strata = [0] * len(twins) if strata is None else strata
    sizes, ranks, places = Counter(strata[row] for row in distinct), Counter(), []
    for index in np.random.RandomState(SPLIT_SEED).permutation(len(distinct)):  # a stream that numpy keeps
        stratum = strata[distinct[index]]
        place = (ranks[stratum] + 0.5) / sizes[stratum]  # evenly spaced in (0, 1) within a stratum
        places.append((place, distinct[index]))
        ranks[stratum] += 1
    count = max(1, round(fraction * len(distinct)))
    held = {row for _, row in sorted(places, key=lambda place: place[0])[:count]}
    is_held = [twin in held for twin in twins]
    return select(rows, [not flag for flag in is_held]), select(rows, is_held)


def select(rows: Rows, flags: list[bool]) -> Rows:
    """The rows whose flag is set."""
    return {name: list(itertools.compress(values, flags)) for name, values in rows.items()}


def _find_files(path: Path) -> dict[str, Path]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if not path.is_dir():
        return {"train": path}
    files = {}
    for split in ("train", "validation"):
        found = sorted(path.glob(f"{split}.*"))
        if len(found) > 1:
            names = " and ".join(file.name for file in found)
            raise ValueError(f"{path}: holds {names}, which all claim to be the {split} split; keep one")
        if found:
            files[split] = found[0]
    if "train" not in files:
        choices = ", ".join(f"train{suffix}" for suffix in SUFFIXES)
        raise FileNotFoundError(f"{path / 'train.*'}: no such file; the folder needs one of {choices}")
    return files


def _decode(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")  # spreadsheets like to put a byte order mark in front
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}: line {line} is not UTF-8 ({error.reason}); save it as UTF-8") from error


def _read_delimited(path: Path) -> Rows:
    """Columns of a .csv or .tsv with a header; double quotes around fields, as spreadsheets write them."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(_decode(path), newline=""), delimiter=delimiter, strict=True)
    try:
        table = [row for row in reader if row]
    except csv.Error as error:
        raise ValueError(
            f"{path}: cannot be parsed at line {reader.line_num} ({error}); a field that starts with a "
            "double quote must end with one, and those inside must be doubled"
        ) from error
    header, body = (table[0], table[1:]) if table else ([], [])
    if len(set(header)) < len(header):
        raise ValueError(f"{path}: a column name appears twice in the header {header}; rename one")
    for number, row in enumerate(body, 1):
        if len(row) != len(header):
            raise ValueError(
                f"{path}: row {number} has {len(row)} fields, the header has {len(header)}; "
                "put fields that hold the separator in double quotes"
            )
    columns = {name: [row[place] for row in body] for place, name in enumerate(header)}
    if "label" in columns:
        columns["label"] = [_parse_label(word.strip()) for word in columns["label"]]
    return columns


def _parse_label(word: str) -> int | float | str | None:
    if _INTEGER.fullmatch(word):
        return int(word)
    return float(word) if _DECIMAL.fullmatch(word) else word or None


def _read_jsonl(path: Path) -> Rows:
    objects = []
    for number, line in enumerate(_decode(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: line {number} is not JSON ({error}); one object a line") from error
        if not isinstance(value, dict):
            raise ValueError(f'{path}: line {number} is not an object; write {{"text": ..., "label": ...}}')
        objects.append(value)
    names = dict.fromkeys(name for value in objects for name in value)
    return {name: [value.get(name) for value in objects] for name in names}


def _checked(table: Rows, path: Path) -> Rows:
    """The columns in use, after every text was found to be a string that says something."""
    _require(("text", "label"), tuple(table), path)
    if not table["label"]:
        raise ValueError(f"{path}: holds no rows; write at least one")
    for name in [name for name in ("text", "text_pair") if name in table]:
        for row, text in enumerate(table[name], 1):
            where = f"{path}: row {row}, column {name!r}: "
            if text is None or (isinstance(text, str) and not text.strip()):
                raise ValueError(f"{where}the text is empty; write one or delete the row")
            if not isinstance(text, str):
                raise ValueError(f"{where}{text!r} is not a string; put it in quotes")
    return {name: table[name] for name in COLUMNS if name in table}


def _kind_of_labels(labels: list, path: Path) -> str:
    """What all labels are: boolean, integer, float or word. Integers among floats are floats."""
    first: dict[str, int] = {}
    for row, label in enumerate(labels, 1):
        where = f"{path}: row {row}, column 'label': "
        if label is None or label == "" or (isinstance(label, float) and math.isnan(label)):
            raise ValueError(f"{where}the label is empty; write one or delete the row")
        if type(label) not in _KINDS:
            raise ValueError(f"{where}{label!r} is neither a word, an integer, a boolean nor a float")
        if isinstance(label, float) and math.isinf(label):
            raise ValueError(f"{where}the label is infinite; write a finite number or delete the row")
        first.setdefault(_KINDS[type(label)], row)
    if set(first) == {"integer", "float"}:
        return "float"
    if len(first) > 1:
        places = " and ".join(f"{kind}s (first in row {row})" for kind, row in first.items())
        raise ValueError(f"{path}: column 'label' mixes {places}; write all labels as one of them")
    return next(iter(first))


def _refuse_single_label(labels: list, path: Path) -> None:
    if len(set(labels)) < 2:
        raise ValueError(f"{path}: column 'label': all are {labels[0]!r}; give rows with at least two labels")


def _refuse_different_splits(tables: dict[str, Rows], kinds: dict[str, str], files: dict[str, Path]) -> None:
    train, validation = kinds["train"], kinds["validation"]
    if train != validation and (train, validation) != ("float", "integer"):
        raise ValueError(
            f"{files['validation']}: column 'label' holds {validation}s, but {files['train']} "
            f"holds {train}s; write both alike"
        )
    for one, other in (("train", "validation"), ("validation", "train")):
        if "text_pair" in tables[one] and "text_pair" not in tables[other]:
            raise ValueError(f"{files[other]}: lacks the column 'text_pair', which {files[one]} has; write both alike")


def _class_numbers(labels: list, names: list, path: Path) -> list[int]:
    numbers = {name: number for number, name in enumerate(names)}
    for row, label in enumerate(labels, 1):
        if label not in numbers:
            raise ValueError(
                f"{path}: row {row}, column 'label': {label!r} never occurs in training; "
                f"the training labels are {', '.join(map(str, names))}: add such rows or delete this one"
            )
    return [numbers[label] for label in labels]
