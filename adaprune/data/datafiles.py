"""Reads a user's own texts and labels and refuses what cannot be meant, with the place and the remedy.

Every format ends up as the same value, `Rows`: a dict of equally long lists. Nothing read is ever executed.
"""

import itertools
import warnings
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from unicodedata import category, normalize

import numpy as np

from adaprune.data.labels import kind_of_labels, refuse_surrogates, say_if_doubtful, to_follow
from adaprune.data.tables import COLUMNS, SUFFIXES, Rows, read_table

KEPT = 0.9  # of a regression's different labels must be different in float32
SPLIT_SEED = 0  # of every split made here; not the run's seed, so that all runs share the splits

NAMES = {"train": {"train", "training"}, "validation": {"validation", "valid", "val", "dev"}}  # of a folder's files


def read_own(path: Path) -> tuple[Rows, Rows | None, list[str]]:
    """The training rows, the validation rows (None without a file), the class names (empty = regression).

    Labels come back as class numbers (places in the sorted class names) or as floats. Words, integers and
    booleans are classes; floats, or integers among floats, are a regression. In .csv and .tsv, where
    everything is text, a label column of numbers alone counts as numbers, unless they are codes (`labels.as_written`).

    Raises:
        FileNotFoundError: no such path, or a folder without a `train.*` file.
        ValueError: anything else that is wrong with a file; names file, row and column, and says what to do.
    """
    files = _find_files(path)
    tables, kinds, like = {}, {}, ""
    for split, file in files.items():  # train first
        tables[split] = read_rows(file, like=like)
        kinds[split] = kind_of_labels(tables[split]["label"], file)
        like = to_follow(tables[split]["label"])
    train, validation = tables["train"], tables.get("validation")
    _refuse_no_task(train["label"], kinds["train"], files["train"])
    _refuse_few_texts(train, 2 if validation else 3, files["train"])
    say_if_doubtful(train["label"], kinds["train"], files["train"])
    if validation is not None:
        _refuse_different_splits(tables, kinds, files)
    if kinds["train"] == "float":
        for table in tables.values():
            table["label"] = [float(label) for label in table["label"]]
        _say_doubles(tables, [], files)
        return train, validation, []
    names = sorted(set(train["label"]))
    for split, table in tables.items():
        table["label"] = _class_numbers(table["label"], names, files[split])
    _say_doubles(tables, names, files)
    return train, validation, [str(name) for name in names]


def read_rows(path: Path, labelled: bool = True, like: str = "") -> Rows:
    """The columns in use of one file, each text known to be a string that says something; labels are as they stand.

    Args:
        labelled: False for texts to be labelled: the file may lack the column label, which is left out.
        like: how labels are to be read, see `labels.to_follow`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: anything that is wrong with the file; names file, row and column, and says what to do.
    """
    table = read_table(path, labelled, like)
    check_texts(table, path)
    return {name: table[name] for name in COLUMNS if name in table and (labelled or name != "label")}


def check_texts(table: Rows, place: str | Path) -> None:
    """ValueError, with ``place``, row and column, if a text is empty or not a text, or there are no rows."""
    if not table["text"]:
        raise ValueError(f"{place}: holds no rows; write at least one")
    for name in [name for name in ("text", "text_pair") if name in table]:
        for row, text in enumerate(table[name], 1):
            where = f"{place}: row {row}, column {name!r}: "
            if text is None or (isinstance(text, str) and says_nothing(text)):
                raise ValueError(f"{where}the text is empty; write one or delete the row")
            if not isinstance(text, str):
                raise ValueError(f"{where}{text!r:.80} is not a string; put it in quotes")
            refuse_surrogates(text, where)
    names = {name for name in COLUMNS if name in table}
    for row, values in enumerate(zip(*(table[name] for name in sorted(names)), strict=True), 1):
        if len(names) > 1 and {str(value).strip().lower() for value in values} == names:
            raise ValueError(f"{place}: row {row} repeats the names of the columns; delete it")


def says_nothing(text: str) -> bool:
    """Whether nothing of a text can be seen."""
    return all(c.isspace() or category(c) == "Cf" for c in text)


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
    first_row: dict[tuple[str, ...], int] = {}
    twins = [first_row.setdefault(key, row) for row, key in enumerate(_inputs(rows))]
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


def _inputs(rows: Rows) -> Iterator[tuple[str, ...]]:
    """The texts of each row, without surrounding blanks."""
    texts = [rows[name] for name in ("text", "text_pair") if name in rows]
    return (tuple(text.strip() for text in pair) for pair in zip(*texts, strict=True))


def select(rows: Rows, flags: list[bool]) -> Rows:
    """The rows whose flag is set."""
    return {name: list(itertools.compress(values, flags)) for name, values in rows.items()}


def _find_files(path: Path) -> dict[str, Path]:
    """The file of each split; a warning names all other files of a folder, and those that look like a split."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder (a relative path starts at {Path.cwd()})")
    if not path.is_dir():
        return {"train": path}
    names = {file: file.name.lower().split(".")[0] for file in sorted(path.iterdir())}  # of a hidden file: empty
    files = {}
    for split, known in NAMES.items():
        found = [file for file, name in names.items() if name in known and (file.is_file() or not file.exists())]
        found = [file for file in found if file.suffix.lower() in SUFFIXES] or found
        if len(found) > 1:
            listed = " and ".join(file.name for file in found)
            raise ValueError(f"{path}: holds {listed}, which all claim to be the {split} split; keep one")
        if found:
            files[split] = found[0]
    unused = [file.name + _looks_like_split(file) for file in names if file not in files.values()]
    if "train" not in files:
        choices = ", ".join(f"train{suffix}" for suffix in SUFFIXES)
        held = f" (it holds {', '.join(unused)})" if unused else ""
        raise FileNotFoundError(f"{path / 'train.*'}: no such file; the folder needs one of {choices}{held}")
    if unused:
        warnings.warn(f"{path}: not used: {', '.join(unused)}", stacklevel=2)
    return files


def _looks_like_split(file: Path) -> str:
    """What to say of a hidden file or a folder with the name of a split (``.dev.csv``, ``._train.csv``, ``val/``)."""
    name = file.name.lower().lstrip("._")
    split = next((split for split, known in NAMES.items() if name.split(".")[0] in known), None)
    if split and file.is_dir():
        return f" (a folder, not a file of the {split} split)"
    hidden = split and file.name.startswith(".") and name.endswith(SUFFIXES)
    return f" (hidden, or it would be the {split} split: rename or delete it)" if hidden else ""


def _say_doubles(tables: dict[str, Rows], names: list, files: dict[str, Path]) -> None:
    """Warns of labels that look alike, of texts with two labels, and of validation texts that are training texts."""
    train, validation = tables["train"], tables.get("validation")
    alike = defaultdict(list)
    for name in names:
        seen = "".join(c for c in str(name) if category(c) != "Cf")  # which shows nothing
        alike[normalize("NFKC", seen).casefold()].append(str(name))
    if doubles := [labels for labels in alike.values() if len(labels) > 1]:
        shown = " and ".join(map(ascii, doubles[0]))
        warnings.warn(f"{files['train']}: the labels {shown} count as {len(doubles[0])} classes", stacklevel=3)
    said = defaultdict(set)
    for text, label in zip(_inputs(train), train["label"], strict=True):
        said[text].add(label)
    if names and (twice := sum(len(labels) > 1 for labels in said.values())):
        warnings.warn(f"{files['train']}: {twice} of {len(said)} texts have more than one label", stacklevel=3)
    if validation and (known := sum(text in said for text in _inputs(validation))):
        warnings.warn(
            f"{files['validation']}: {known} of {len(validation['text'])} rows have texts of {files['train'].name}: "
            "scores on these are too good",
            stacklevel=3,
        )


def _refuse_few_texts(train: Rows, least: int, path: Path) -> None:
    if (distinct := len(set(_inputs(train)))) < least:
        raise ValueError(
            f"{path}: column 'text': {distinct} different texts, at least {least} are needed, to train, to choose"
            f"{' and to report' if least > 2 else ''}; are text and label swapped?"
        )


def _refuse_no_task(labels: list, kind: str, path: Path) -> None:
    """ValueError where all labels are one, each row has a class of its own, or float32 makes few labels of many."""
    if (distinct := len(set(labels))) < 2:
        raise ValueError(f"{path}: column 'label': all are {labels[0]!r}; give rows with at least two labels")
    if kind != "float" and distinct == len(labels) > 2:
        raise ValueError(
            f"{path}: column 'label': each of the {distinct} rows has a class of its own, such as {labels[0]!r:.80}; "
            "is it an id or a text? for amounts (a regression) write numbers with a decimal point"
        )
    kept = len(set(np.array(labels, dtype=np.float32).tolist())) if kind == "float" else distinct
    if kept < KEPT * distinct:
        raise ValueError(
            f"{path}: column 'label': float32, in which a regression is learned, keeps 7 digits, and of {distinct} "
            f"different labels such as {labels[0]!r} only {kept}; subtract a constant from all, or multiply all by one"
        )


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
                f"{path}: row {row}, column 'label': {label!r:.80} never occurs in training; the training labels are "
                f"{', '.join(map(str, names[:20]))}{', ...' * (len(names) > 20)}: add such rows or delete this one"
            )
    return [numbers[label] for label in labels]
