"""What the lessons in notebooks/teach share: errors in one sentence, exercises that check themselves."""

import contextlib
import io
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from IPython import get_ipython
from IPython.display import Markdown, display
from transformers.utils import logging

from adaprune.teach.cases import MASKS
from adaprune.teach.cases_of_claims import CLAIMS
from adaprune.teach.judging import Exercise, fault_of, same, show

EXERCISES: dict[str, Exercise] = MASKS | CLAIMS
ORDER = "Cells build on those above: choose Run > Run All Above Selected Cell, then run this one again."
done: set[str] = set()  # names of the functions that `check` has found right


def begin() -> None:
    """From now on this notebook shows an error as one sentence; a missing name points to the cells above.

    (``%xmode Context`` undoes this.) Loading a model takes a second and shows no progress bar.
    """
    logging.disable_progress_bar()
    if shell := get_ipython():
        shell.InteractiveTB.set_mode("Minimal")
        shell.set_custom_exc((NameError,), _tell_order)


def check(function: Callable[..., Any]) -> None:
    """Runs the reader's ``function`` on the cases of the exercise of the same name, and prints the outcome.

    A function that is still empty is not judged. The names of those that are right are kept in `done`.

    Raises:
        AssertionError: the function is not right; one sentence says what is wrong, and on which input.
        TypeError: not a function.
        ValueError: no exercise has its name.

    >>> check(lambda mask, base: None)
    Traceback (most recent call last):
    ValueError: no exercise is called '<lambda>': keep the name of the function as it was
    """
    name = getattr(function, "__name__", None)
    if not callable(function) or name is None:
        raise TypeError(f"check takes the function itself, as in check(keep_largest); got {function!r}")
    if name not in EXERCISES:
        raise ValueError(f"no exercise is called {name!r}: keep the name of the function as it was")
    done.discard(name)
    exercise = EXERCISES[name]
    fault = fault_of(function, exercise)
    if fault is None:
        print(f"Yours to write: replace the dots in {name} and run this cell again. The hints are above.")
    elif fault:
        raise AssertionError(f"Not yet. {fault}")
    else:
        done.add(name)
        print(f"Right, on all {len(exercise.cases)} cases.")


def agree(**routes: Any) -> None:
    """Prints that several routes lead to the same values, or stops with an AssertionError where they do not.

    >>> agree(by_hand=[0.5, 2], by_division=(1 / 2, 4 / 2))
    by_hand = by_division: [0.5, 2]
    """
    first, *others = routes.items()
    for name, value in others:
        if not same(value, first[1]):
            raise AssertionError(f"{first[0]} gives {show(first[1])}, but {name} gives {show(value)}")
    print(f"{' = '.join(name for name, _ in (first, *others))}: {show(first[1])}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides what a short training run prints to standard error: progress bars and warnings."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def say(*sentences: str) -> None:
    """Shows computed sentences as Markdown, so that they look like the text cells."""
    text = "\n".join(textwrap.fill(sentence, 88, break_long_words=False) for sentence in sentences)
    display(Markdown(text))


def reveal(prediction: Any, told: str, runs: int = 1, sweep: str = "") -> None:
    """Prints the reader's prediction and then ``told``; if ``runs`` is 0, says which sweep would make the records.

    >>> reveal(0.4, "It is 0.06.")
    You predicted 0.4.
    It is 0.06.
    >>> reveal(..., "never shown", runs=0, sweep="sweeps/topology.tsv")
    You have not entered a prediction. Guess first: surprises stick.
    No record answers this yet. The runs to make are in sweeps/topology.tsv.
    """
    entered = prediction is not ... and prediction is not None
    nothing = "You have not entered a prediction. Guess first: surprises stick."
    print(f"You predicted {prediction}." if entered else nothing)
    print(told if runs else f"No record answers this yet. The runs to make are in {sweep}.")


def _tell_order(shell: Any, kind: type, error: NameError, trace: Any, tb_offset: int | None = None) -> None:
    error.args = (f"{error}. {ORDER}",)
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
