"""Reads one file of texts and labels, in any of four formats, into `Rows`: a dict of equally long lists.

What a format leaves open (separators, quotes, byte order, numbers written as text) is settled here, or refused with
the line. Nothing read is ever executed.
"""

import codecs
import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adaprune.data.labels import DECIMAL, INTEGER, parsed

Rows = dict[str, list]

COLUMNS = ("text", "text_pair", "label")
SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")
SEPARATORS = {".csv": ",\t;|", ".tsv": "\t,;|"}  # tried in this order on the header

# What a file begins with that is no text, whatever its ending says.
OTHERS = {
    b"\x1f\x8b": "packed by gzip: unpack it",
    b"PK\x03\x04": "a zip archive or an Excel workbook: unpack it, or save it as CSV (UTF-8)",
    b"\xd0\xcf\x11\xe0": "an Excel workbook: save it as CSV (UTF-8)",
    b"PAR1": "a Parquet file: let its name end in .parquet",
}

_ENDS = re.compile("\r\n|\n|\r")


def read_table(path: Path, labelled: bool = True, like: str = "") -> Rows:
    """The columns of one .parquet, .csv, .tsv or .jsonl file (of a .parquet, only those in `COLUMNS`).

    Labels that are texts come without the blanks around them.

    Args:
        labelled: False for texts to be labelled, whose file may lack the column label.
        like: what labels that are all text have to follow, see `labels.to_follow`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown ending, or a file that cannot be read as what its ending says; names the line.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: unknown file extension {path.suffix!r}; use one of {', '.join(SUFFIXES)}")
    needed = ("text", "label") if labelled else ("text",)
    if not path.is_file():
        lost = f", only a link to {path.readlink()}, which is none" if path.is_symlink() else ""
        raise FileNotFoundError(f"{path}: no such file{lost}")
    if path.stat().st_size == 0:
        columns = "the columns text and label" if labelled else "the column text"
        raise ValueError(f"{path}: the file is empty; it needs {columns}, and rows")
    if suffix == ".parquet":
        table = read_parquet(path, needed, optional=tuple(name for name in COLUMNS if name not in needed))
    else:
        table = _read_jsonl(path, needed) if suffix == ".jsonl" else _read_delimited(path, needed, like)
    if "label" in table:
        table["label"] = [label.strip() if isinstance(label, str) else label for label in table["label"]]
    return table


def read_parquet(path: Path, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> Rows:
    """The required columns of a Parquet file, and the optional ones that it has, as plain Python values.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a Parquet file, a damaged one, or one that lacks a required column or has it twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _refuse_twins(names, path)
            table = file.read([name for name in (*required, *optional) if name in names])
        _require(required, names, path)
        return {name: table.column(name).to_pylist() for name in table.column_names}
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as Parquet ({error}); write the file anew") from error


def _require(columns: tuple[str, ...], names: Sequence[str], path: Path) -> None:
    """ValueError where one of ``columns`` is not among a file's ``names``."""
    for column in columns:
        if column not in names:
            found = ", ".join(shown(name) for name in names) or "none"
            raise ValueError(f"{path}: lacks the column {column!r} (it has: {found}); rename or add one")


def shown(name: str) -> str:
    """A column's name in a message, in quotes where something of it cannot be seen."""
    return name if name.isprintable() and name == name.strip() else ascii(name)


def _refuse_twins(names: Sequence[str], path: Path) -> None:
    twins = [name for name, count in Counter(names).items() if count > 1 and name in COLUMNS]
    if twins:
        raise ValueError(f"{path}: a column name appears twice in the header, {', '.join(twins)}; rename one")


def read_lines(raw: bytes, place: str) -> list[str]:
    """The lines of a plain text, without those of blanks alone; ``place`` names it in messages.

    Raises:
        ValueError: bytes that are no text (names the line), or no text in them.
    """
    lines = [line for line in _ENDS.split(_decoded(raw, place)) if line.strip()]
    if not lines:
        raise ValueError(f"{place}: holds no text; write one per line")
    return lines


def _decoded(raw: bytes, place: str | Path) -> str:
    """The text in bytes: UTF-8, or UTF-16 where a byte order mark says so, as spreadsheets write it."""
    if said := next((said for mark, said in OTHERS.items() if raw.startswith(mark)), ""):
        raise ValueError(f"{place}: this is not text, it is {said}")
    marked = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{place}: line {line} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{place}: line {line} holds a NUL character, as no UTF-8 text does; save it as UTF-8")
    return text


def _read_delimited(path: Path, needed: tuple[str, ...], like: str) -> Rows:
    """Columns of a .csv or .tsv with a header; double quotes around fields, as spreadsheets write them.

    The separator is the one that splits the header into columns with those we need; the ending's own comes first.
    """
    text = _decoded(path.read_bytes(), path)
    top = next((line for line in text.splitlines() if line.strip()), "")
    marks, wanted = SEPARATORS[path.suffix.lower()], ({*needed}, {"text"})  # if not all of them, to say what lacks
    fitting = (mark for columns in wanted for mark in marks if columns <= {*_fields(top, mark)})
    delimiter = next(fitting, marks[0])
    (_, header), *body = [*_records(text, delimiter, path)] or [((1, 1), [])]
    header = [name.strip() for name in header]
    _refuse_twins(header, path)
    _require(needed, header, path)
    known = sorted(name.lower() for name in header)
    for number, (lines, row) in enumerate(body, 1):
        if len(row) != len(header):
            raise ValueError(
                f"{path}: row {number} has {len(row)} fields, the header has {len(header)}; "
                f"put fields that hold the separator in double quotes (line {lines[0]})"
            )
        if sorted(field.strip().lower() for field in row) == known:
            raise ValueError(f"{path}: line {lines[0]} repeats the header; delete it")
    place = header.index("label") if "label" in header else None
    _refuse_swallowed(text, body, place, delimiter, path)
    columns = {name: [row[place] for _, row in body] for place, name in enumerate(header)}
    if "label" in columns:
        columns["label"] = parsed([word.strip() for word in columns["label"]], like)
    return columns


def _records(text: str, delimiter: str, path: Path) -> Iterator[tuple[tuple[int, int], list[str]]]:
    """Each row's first and last line, from 1, and its fields; rows of blanks alone are left out."""
    # blanks between a separator and a quoted field; without one they belong to the field
    spaced = (
        re.search(rf'{re.escape(delimiter)} +"[^"]*(?:""[^"]*)*"({re.escape(delimiter)}|[\r\n]|$)', text) is not None
    )
    lines = io.StringIO(text, newline="")
    reader, first = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=spaced), 1
    with _long_fields():
        try:
            for row in reader:
                if any(field.strip() for field in row):
                    yield (first, reader.line_num), row
                first = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(
                f"{path}: cannot be parsed at line {first} ({error}, up to line {reader.line_num}); a field that "
                "starts with a double quote must end with one, and those inside must be doubled"
            ) from error


@contextmanager
def _long_fields() -> Iterator[None]:
    """Within, the csv module reads fields of any length; its limit is one of the whole process."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _fields(line: str, delimiter: str) -> list[str]:
    """The stripped fields of one line, by the csv module where it can, and else with quotes as plain characters."""
    try:
        with _long_fields():
            fields = next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        fields = line.split(delimiter)
    return [field.strip() for field in fields]


def _refuse_swallowed(text: str, body: list, place: int | None, delimiter: str, path: Path) -> None:
    """ValueError where a stray double quote made one row of several, with the lines.

    A row over several lines is taken for that if its first and last line, or most of those between, are rows of
    their own: as many fields as the header has, and a label that other rows have (where labels are numbers: any).
    Without labels (``place`` is None) all its lines, three at least, must be rows of two fields or more: nothing else
    tells a text over several lines from texts.
    """
    if all(first == last for (first, last), _ in body):
        return
    known = (lambda _: True) if place is None else _label_of(body, place)

    def is_row(line: str) -> bool:
        return any(
            len(fields) == len(body[0][1]) and known(fields[place or 0])
            for fields in (_fields(line, delimiter), [field.strip(' "') for field in line.split(delimiter)])
        )

    physical = _ENDS.split(text)
    for (first, last), row in body:
        lines = physical[first - 1 : last]
        inner = [line for line in lines[1:-1] if line.strip()]
        ends, between = len(lines) > 1 and is_row(lines[0]) and is_row(lines[-1]), sum(map(is_row, inner))
        if place is None:
            swallowed = len(row) > 1 and inner and ends and between == len(inner)
        else:
            swallowed = ends or 2 * between > len(inner)
        if swallowed:
            raise ValueError(
                f"{path}: a double quote in line {first} makes one row of the lines {first} to {last}, which look like "
                "rows of their own; double the quotes inside a field and put it in quotes, or save the file as .jsonl"
            )


def _label_of(body: list, place: int) -> Callable[[str], Any]:
    """Whether a word is a label, by those of the rows on one line: a number where all are, else one of them."""
    labels = [row[place].strip() for (first, last), row in body if first == last]
    if labels and all(DECIMAL.fullmatch(label) for label in labels):
        return DECIMAL.fullmatch
    return {*labels, *(row[place].strip() for _, row in body)}.__contains__


def _read_jsonl(path: Path, needed: tuple[str, ...]) -> Rows:
    objects = []
    for number, line in enumerate(_ENDS.split(_decoded(path.read_bytes(), path)), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_once(path, number), parse_int=_whole)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}: line {number} is not JSON ({error}); one object per line") from error
        if not isinstance(value, dict):
            raise ValueError(f'{path}: line {number} is not an object; write {{"text": ..., "label": ...}}')
        objects.append(value)
    names = dict.fromkeys(name for value in objects for name in value)
    _require(needed, tuple(names), path)
    return {name: [value.get(name) for value in objects] for name in names}


def _whole(digits: str) -> int | str:
    """A whole number; one of more than 18 digits is a name, and stays text."""
    return int(digits) if INTEGER.fullmatch(digits) else digits


def _once(path: Path, number: int) -> Callable[[list[tuple]], dict]:
    """Makes a JSON object of its pairs; ValueError where a column we need is given twice, of which json takes one."""

    def made(pairs: list[tuple]) -> dict:
        twins = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1 and name in COLUMNS]
        if twins:
            raise ValueError(f"{path}: line {number} gives {', '.join(twins)} twice; keep one")
        return dict(pairs)

    return made
