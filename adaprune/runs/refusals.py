"""Says what is wrong with a run's parameters, in sentences that name the parameter and the choices."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from adaprune.runs.method import METHODS
from adaprune.runs.retired import RETIRED, farewell

_TYPES = {
    "string_type": "text",
    "bool_type": "True or False",
    "int_type": "a whole number",
    "float_type": "a number",
}


def explain(error: ValidationError, fields: Mapping[str, FieldInfo]) -> str:
    """One line and sentence per wrong parameter, and the list of all ``fields`` if a name is unknown."""
    culprits = error.errors(include_url=False, include_context=False)
    sentences = [_sentence(culprit, fields) for culprit in culprits]
    if any(culprit["type"] == "extra_forbidden" and culprit["loc"][0] not in RETIRED for culprit in culprits):
        sentences.append(f"The parameters are {', '.join(fields)}.")
    return "\n".join(sentences)


def _sentence(culprit: Any, fields: Mapping[str, FieldInfo]) -> str:
    """Says what is wrong with one parameter: its name, what it can be, and what it is."""
    name, kind, value = culprit["loc"][0], culprit["type"], culprit["input"]
    got = f"got {_shown(value)}"
    if kind == "extra_forbidden":
        return farewell(name) if name in RETIRED else f"unknown parameter {name!r}{_nearest(name, fields)}"
    field = fields[name]
    if kind in ("literal_error", "unknown_method"):  # the second is Run's own
        choices = get_args(field.annotation) if kind == "literal_error" else tuple(METHODS)
        listed = ", ".join("'' (the default)" if choice == "" else repr(choice) for choice in choices)
        return f"{name} must be one of {listed}, {got}{_nearest(value, choices)}"
    if kind in _TYPES:
        got = f"{got} ({type(value).__name__}){_remedy(name, kind, value)}"
        return f"{name} must be {_TYPES[kind]}, {got}"
    if kind == "finite_number":
        return f"{name} must be a finite number, {got}"
    if kind == "string_pattern_mismatch":
        return f"{name} must not be empty, {got}"
    if kind.startswith(("greater_than", "less_than")):
        return f"{name} must {_range(field.metadata)}, {got}"
    return f"{name}: {culprit['msg']}, {got}"


def _shown(value: Any) -> str:
    """A value as it appears in a sentence: its repr, shortened if it is very long."""
    if isinstance(value, int) and abs(value) >= 10**100:  # repr refuses numbers with thousands of digits
        return "a number of over 100 digits"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _nearest(value: Any, choices: Iterable[str]) -> str:
    """The end of a sentence that suggests the choice closest to a misspelt one, if there is one."""
    close = difflib.get_close_matches(str(value).lower(), list(filter(None, choices)), n=1)
    return f": did you mean {close[0]!r}?" if close else ""


def _remedy(name: str, kind: str, value: Any) -> str:
    """The end of a sentence about a value whose type papermill's -p guessed wrongly."""
    if kind == "bool_type" and str(value).lower() in ("true", "false"):
        return f": write {str(value).capitalize()}, with a capital letter"
    if kind == "string_type" and isinstance(value, (bool, int, float)):
        return f": write it in quotes, or with papermill `-r {name} VALUE`"
    return ""


def _range(bounds: Iterable[Any]) -> str:
    """The range that a field's bounds allow, as the end of "must ..."."""
    low, high = None, None
    for bound in bounds:
        low = getattr(bound, "ge", low)
        high = f"{bound.le}]" if hasattr(bound, "le") else f"{bound.lt})" if hasattr(bound, "lt") else high
    return f"be at least {low}" if high is None else f"lie in [{low}, {high}"
