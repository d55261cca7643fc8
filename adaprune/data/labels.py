"""Labels as people write them: which kind of task they make, what that leaves open, and what no label can be.

Words, integers and booleans are classes; floats, or integers among floats, are a regression. In .csv and .tsv, where
everything is text, a column of numbers counts as numbers unless they are codes (`as_written`).
"""

import math
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
import scipy  # loads its parts when they are used

FEW, MANY = 20, 50  # so few different numbers may be classes; so many classes may be amounts
OFTEN, VERY_OFTEN = 3, 8  # rows of each label, on average: repeated, as codes are; more often than amounts are
UNLIKELY = 0.001  # how often first rows are found unlike the rest where the order is random
LARGEST = 1e18  # of a regression's labels, whose squares float32 has to hold

INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)  # longer ones are names, no numbers
DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_LONG = re.compile(r"[+-]?\d{19,}", re.ASCII)
_CODE = re.compile(r"0\d+|[+-]?\d{19,}", re.ASCII)
_VERSION = re.compile(r"\d+((\.\d+)*|[eE]\d+)", re.ASCII)  # 1.10 and 1.2.3; 1E5, which no program writes for a number
_GROUPED = re.compile(
    r"[+\u2212-]?(\d+,\d+([eE][+-]?\d+)?|\d{1,3}([.,'\u2019 \u00a0\u202f]\d{3})+([.,]\d+)?)", re.ASCII
)  # 0,5 and 1.234,50
_AMOUNT = re.compile(r"[+\u2212-]?[$€£]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)? ?[%$€£]?", re.ASCII)
SEPARATING = ",'\u2019 \u00a0\u202f\u2212"  # and a minus sign that is no hyphen
NO_LABEL = {"nan", "<na>", "#n/a"}  # what pandas and spreadsheets write for nothing
MAYBE_NONE = {"none", "null", "na", "n/a", "\\n", "?", "-", "--"}  # may be words, and may stand for nothing
_PARTS = re.compile(r" *[,;|] *")  # between several labels in one field
_KINDS = {bool: "boolean", int: "integer", float: "float", str: "word"}


def parsed(words: list[str], like: str = "") -> list[int | float | str | None]:
    """The labels of a .csv or .tsv: numbers and words; words alone where they are codes.

    Args:
        like: what the labels have to follow, see `to_follow`; empty: nothing, they decide themselves.

    >>> parsed(["7", "12"]), parsed(["007", "12"]), parsed(["0.5", "12"])
    ([7, 12], ['007', '12'], [0.5, 12])
    """
    if like == "word" or (like != "float" and as_written(words)):
        return [word or None for word in words]
    return [_number(word) for word in words]


def as_written(words: Collection[str]) -> bool:
    """Whether words that look like numbers are codes, which numbers would not keep apart or not give back.

    They are if some have zeros in front or more than 18 digits (``007``); or, where each is repeated, if they have
    several points (``1.2.3``), a bare exponent (``1E5``), or unequally many decimals and zeros at the end (``1.10``
    beside ``1.2``).
    """
    distinct = set(words)
    if any(map(_CODE.fullmatch, distinct)) and not any("." in word for word in distinct):
        return True
    if len(distinct) > MANY or len(words) < OFTEN * len(distinct) or not all(map(_VERSION.fullmatch, distinct)):
        return False
    decimals = {len(word.partition(".")[2]) for word in distinct}
    zeros = any(re.search(r"\.\d+0$", word) for word in distinct)  # 2.0 is how programs write the number 2
    if any("e" in word.lower() for word in distinct):  # beside 0.5 it is an exponent
        return not any("." in word for word in distinct)
    return any(word.count(".") > 1 for word in distinct) or (zeros and len(decimals) > 1)


def _number(word: str) -> int | float | str | None:
    if INTEGER.fullmatch(word):
        return int(word)
    return float(word) if DECIMAL.fullmatch(word) else word or None


def to_follow(labels: Iterable[int | float | str]) -> str:
    """How to read other labels of a task with these: ``float`` for a regression, ``word`` for codes, else empty."""
    labels = set(labels)
    if any(isinstance(label, float) for label in labels) or not labels:
        return "float"
    return "word" if all(isinstance(label, str) and _VERSION.fullmatch(label) for label in labels) else ""


def refuse_surrogates(text: str, where: str) -> None:
    """ValueError where a text holds half a UTF-16 pair, which no tokenizer takes; JSON can write one."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        lone = ascii(text[error.start])
        raise ValueError(f"{where}holds the lone surrogate {lone}, half a character; write the row anew") from None


def kind_of_labels(labels: list, place: str | Path) -> str:
    """What all labels are: boolean, integer, float or word. Integers among floats are floats."""
    first: dict[str, int] = {}
    for row, label in enumerate(labels, 1):
        where = f"{place}: row {row}, column 'label': "
        if label is None or label == "" or (isinstance(label, float) and math.isnan(label)):
            raise ValueError(f"{where}the label is empty; write one or delete the row")
        if type(label) not in _KINDS:
            raise ValueError(f"{where}{label!r:.80} is neither a word, an integer, a boolean nor a float; write one")
        if isinstance(label, float) and math.isinf(label):
            raise ValueError(f"{where}the label is infinite; write a finite number or delete the row")
        if isinstance(label, str):
            refuse_surrogates(label, where)
            if label.lower() in NO_LABEL:
                raise ValueError(f"{where}{label!r} stands for no label; write one, delete the row or rename the class")
        first.setdefault(_KINDS[type(label)], row)
    _refuse_unfit_numbers(labels, place, first)
    if set(first) == {"integer", "float"}:
        return "float"
    if len(first) > 1:
        places = " and ".join(f"{kind}s (first in row {row})" for kind, row in first.items())
        odd = first[Counter(_KINDS[type(label)] for label in labels).most_common()[-1][0]]
        raise ValueError(
            f"{place}: column 'label' mixes {places}; write all labels as one of them (row {odd} has "
            f"{labels[odd - 1]!r:.80})"
        )
    return next(iter(first))


def _refuse_unfit_numbers(labels: list, place: str | Path, kinds: Collection[str]) -> None:
    """ValueError where words are numbers as people write them, or a number is larger than its kind of task allows."""
    words = {row: label for row, label in enumerate(labels, 1) if isinstance(label, str)}
    if words and all(_GROUPED.fullmatch(word) or _AMOUNT.fullmatch(word) for word in words.values()):
        if row := next((row for row, word in words.items() if {*word.rstrip(" %$€£")} & {*SEPARATING}), None):
            mark = "comma" if "," in words[row] else "sign"
            raise ValueError(
                f"{place}: row {row}, column 'label': {words[row]!r} is a number with a {mark}; "
                "write 0.5 for a half and 1000 for a thousand"
            )
    for row, label in enumerate(labels, 1):
        where = f"{place}: row {row}, column 'label': "
        long = isinstance(label, str) and "word" in kinds and len(kinds) > 1 and _LONG.fullmatch(label)
        if (isinstance(label, float) and abs(label) > LARGEST) or (long and "float" in kinds):
            raise ValueError(
                f"{where}{label!s:.40} is too large for a regression (at most {LARGEST:g} in size); "
                "divide all labels by a constant"
            )
        if long and "integer" in kinds:
            raise ValueError(
                f"{where}{label:.40} has {len(label.lstrip('+-'))} digits, and whole numbers have at most 18 (longer "
                "ones are names); write all labels in quotes, as names, or this one shorter"
            )


def taken_as(distinct: Sequence[bool | int | float | str]) -> str:
    """Which kind of task these labels make and, where they are or look like numbers, how to choose the other kind.

    >>> taken_as(["bad", "good"])
    'the labels bad, good are taken as 2 classes'
    >>> taken_as([0.5, 2.25])
    'the labels 0.5, 2.25 are taken as amounts (a regression); for classes write them as words, such as v2.25'
    """
    names = [str(np.float32(label)) if isinstance(label, float) else f"{label!s:.80}" for label in distinct]
    said = f"the labels {', '.join(names[:4])}{', ...' * (len(names) > 4)} are taken as"
    if any(isinstance(label, float) for label in distinct):
        whole = all(float(label).is_integer() for label in distinct)
        why = ", because some have a decimal point" if whole else ""
        how = "without it" if whole else f"as words, such as v{names[-1]}"
        return f"{said} amounts (a regression){why}; for classes write them {how}"
    said = f"{said} {len(names)} classes"
    if all(map(INTEGER.fullmatch, names)):
        return f"{said}; for amounts (a regression) write them with a decimal point"
    if all(map(_AMOUNT.fullmatch, names)):
        how = "as numbers, without quotes or signs and with equally many decimals"
        return f"{said}; for amounts (a regression) write them {how}"
    return said


def say_if_doubtful(labels: list, kind: str, path: Path) -> None:
    """Warns where labels may have been meant as the other kind of task, as no label, or as several labels."""
    distinct = set(labels)
    amounts = kind == "word" and all(map(_AMOUNT.fullmatch, distinct)) and not all(map(str.isdigit, distinct))
    whole = kind == "float" and all(float(label).is_integer() for label in distinct)
    short = kind == "float" and all(round(label, 2) == label for label in distinct)  # as version numbers are
    repeated = short and len(labels) >= VERY_OFTEN * len(distinct)
    few = len(distinct) <= FEW and (whole or repeated)
    if amounts or few or (kind == "integer" and len(distinct) > MANY):
        warnings.warn(f"{path}: {taken_as(sorted(distinct))}", stacklevel=3)
    words = sorted(distinct) if kind == "word" else []
    if nothing := [word for word in words if word.lower() in MAYBE_NONE]:
        warnings.warn(
            f"{path}: the label {nothing[0]!r} is a class; if it stands for none, delete its rows", stacklevel=3
        )
    if several := [word for word in words if len(parts := _PARTS.split(word)) > 1 and distinct.issuperset(parts)]:
        warnings.warn(
            f"{path}: the label {several[0]!r:.80} is a class of its own, not several labels: a row has one label",
            stacklevel=3,
        )


def unlike(one: list, other: list) -> bool:
    """Whether two samples of labels are unlike by the test of Kolmogorov and Smirnov, at a level of 1 in 1,000.

    Classes are compared in the order of their numbers. Ties only make the test stricter.
    """
    return bool(scipy.stats.ks_2samp(one, other, method="asymp").pvalue < UNLIKELY)
