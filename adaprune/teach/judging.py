"""Judges a reader's function: runs it on cases, compares with the right values, names its mistake in a sentence."""

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

MOST_SHOWN, MOST_LETTERS = 24, 300  # of a tensor with more numbers, a message shows the shape; longer texts are cut


class Exercise(NamedTuple):
    """A function for the reader to write.

    Args:
        answer: an independent implementation, called with the arguments of a case. Its parameters are the exercise's.
        cases: the arguments of each call.
        slips: common mistakes: a sentence about each -> a function that makes it.
        judge: used where many values are right. Takes the returned value and the arguments; returns what is wrong with
            the value, or "".
    """

    answer: Callable[..., Any]
    cases: tuple[tuple[Any, ...], ...]
    slips: Mapping[str, Callable[..., Any]] = {}
    judge: Callable[..., str] | None = None


def fault_of(function: Callable[..., Any], exercise: Exercise) -> str | None:
    """What is wrong with a reader's function, in a sentence; "" if it is right, None if it is still empty."""
    name, wanted = function.__name__, list(inspect.signature(exercise.answer).parameters)
    try:
        inspect.signature(function).bind(*wanted)
    except TypeError:
        return f"{name} is called with {_counted(wanted)}, in this order; yours does not accept that."
    for case in exercise.cases:
        given = copies(case)
        try:
            found = function(*given)
        except Exception as error:  # a reader's code may raise anything
            return f"{called(name, wanted, case)} stopped with {type(error).__name__}: {_short(error)}."
        if found is None:
            told = f"{called(name, wanted, case)} returned nothing: is a return missing?"
            return None if _is_empty(function) else told
        if changed := [arg for arg, old, new in zip(wanted, case, given, strict=True) if not _untouched(old, new)]:
            own = "clone" if isinstance(case[wanted.index(changed[0])], Tensor) else "copy"
            return f"{name} changed its argument {changed[0]}. Work on a copy: {changed[0]}.{own}()."
        if told := _wrong(found, exercise, case):
            return told if exercise.judge else _slip(function, exercise) or f"{called(name, wanted, case)} {told}"
    return ""


def _is_empty(function: Callable[..., Any]) -> bool:
    """Whether a function that returns None has no more code than one of three dots."""

    def dots(): ...

    code = getattr(function, "__code__", dots.__code__)
    return len(code.co_code) <= len(dots.__code__.co_code)


def same(value: Any, right: Any, within: float = 1e-6) -> bool:
    """Whether two values, lists, arrays or tensors have the same shape and the same numbers."""
    found, wanted = as_array(value), as_array(right)
    return found.shape == wanted.shape and np.allclose(found, wanted, rtol=within, atol=1e-9, equal_nan=True)


def as_array(value: Any) -> np.ndarray:
    """Numbers of any kind as an array of floats; TypeError or ValueError for anything else, or for ragged lists."""
    if isinstance(value, str):
        raise TypeError("text is no number")
    if isinstance(value, Tensor):
        value = value.detach().cpu()
    if isinstance(value, (list, tuple)):
        value = [as_array(part) for part in value]
    return np.asarray(value, dtype=float)


def numbers_in(value: Any) -> Tensor:
    """`as_array` as a tensor, which is empty for anything that is not numbers."""
    try:
        return torch.from_numpy(as_array(value))
    except (TypeError, ValueError):
        return torch.empty(0)


def show(value: Any, digits: int = 4) -> str:
    """A value as a reader would write it, with numbers rounded.

    >>> show(torch.tensor([[True, False]])), show(1 / 3), show(2.0)
    ('[[True, False]]', '0.3333', '2')
    """
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(show(part, digits) for part in value) + "]"
    if isinstance(value, float):
        return f"{value + 0:.{digits}g}"
    return getattr(value, "__name__", None) or repr(value)


def called(name: str, parameters: list[str], case: tuple[Any, ...]) -> str:
    """A call with its arguments, to start a sentence with; of a large tensor only the shape.

    >>> called("flips", ["mask", "base"], (torch.tensor([True]), torch.zeros(20, 3)))
    'flips(mask=[True], base=<tensor of shape (20, 3)>)'
    """
    shown = ", ".join(f"{parameter}={_brief(value)}" for parameter, value in zip(parameters, case, strict=True))
    return f"{name}({shown})"


def _brief(value: Any) -> str:
    """A value as `show` has it, cut after a few lines; of a large tensor only the shape."""
    if isinstance(value, (Tensor, np.ndarray)) and np.prod(value.shape) > MOST_SHOWN:
        return f"<tensor of shape {tuple(value.shape)}>"
    text = show(value)
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}…"


def _short(error: Exception) -> str:
    """The first line of an error's text, without a full stop; torch's texts can have several."""
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")


def copies(case: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies of the arguments, which may be changed; functions are not copied."""
    return tuple(value if callable(value) else copy.deepcopy(value) for value in case)


def _wrong(found: Any, exercise: Exercise, case: tuple[Any, ...]) -> str:
    """What is wrong with one returned value, as the end of a sentence; "" if it is right."""
    if exercise.judge:
        try:
            return exercise.judge(found, *copies(case))
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            return f"Your function returned {_brief(found)}, which cannot be used: {_short(error)}."
    right = exercise.answer(*copies(case))
    wanted = as_array(right)
    try:
        shape = as_array(found).shape
    except (TypeError, ValueError):
        return f"returned {_kind(found)}, {_brief(found)}. It should return {_form(right)}."
    if shape != wanted.shape:
        example = f", such as {show(right)}" if wanted.size else ""
        return f"returned {_brief(found)}. It should return {_form(right)}{example}."
    return "" if same(found, right) else f"returned {show(found)}. The right value is {show(right)}."


def _slip(function: Callable[..., Any], exercise: Exercise) -> str:
    """The sentence about the common mistake that explains every value of the reader's function, or ""."""
    for sentence, mistaken in exercise.slips.items():
        try:
            if all(same(function(*copies(case)), mistaken(*copies(case))) for case in exercise.cases):
                return sentence
        except Exception:  # the reader's code fails on a later case, which this slip does not explain
            continue
    return ""


def _untouched(old: Any, new: Any) -> bool:
    return torch.equal(old, new) if isinstance(old, Tensor) else callable(old) or old == new


def _counted(names: list[str]) -> str:
    return f"{len(names)} argument{'s' if len(names) > 1 else ''} ({', '.join(names)})"


def _form(right: Any) -> str:
    """What to return, by the right value: how many numbers, or entries that are True or False."""
    shape, mask = as_array(right).shape, isinstance(right, Tensor) and right.dtype == torch.bool
    if not shape:
        return "one number"
    if len(shape) > 1:
        return f"{'a mask' if mask else 'numbers'} of shape {shape}"
    if mask:
        return f"{shape[0]} entries, each True or False"
    return {0: "an empty list", 1: "a list of one number"}.get(shape[0], f"{shape[0]} numbers")


def _kind(value: Any) -> str:
    kind = type(value).__name__
    article = "an" if kind[0] in "aeiouAEIOU" else "a"
    names = {"str": "text", "dict": "a dictionary", "list": "a list that is not an array of numbers"}
    return names.get(kind, f"{article} {kind}")
