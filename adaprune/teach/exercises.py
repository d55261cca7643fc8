"""What the walkthroughs in notebooks/teach share: errors of one sentence, exercises that check themselves."""

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
done: set[str] = set()  # the names of the functions that `check` has found right


def begin() -> None:
    """From now on an error of this notebook is one sentence, and a missing name sends the reader to the cells above.

    (Undo: ``%xmode Context``.) Loading a model, which takes a second, shows no bar.
    """
    logging.disable_progress_bar()
    if shell := get_ipython():
        shell.InteractiveTB.set_mode("Minimal")
        shell.set_custom_exc((NameError,), _tell_order)


def check(function: Callable[..., Any]) -> None:
    """Runs the reader's ``function`` on the cases of the exercise of that name, and says what came of it.

    An exercise that is still empty is invited, not judged. Which ones are right is kept in `done`.

    Raises:
        AssertionError: it is not right; one sentence says what is wrong, on which input.
        TypeError: no function. ValueError: no exercise has its name.

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
    """Prints that several routes led to the same values, or stops where they did not.

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
    """Hides what a short training prints to standard error: its progress bars and warnings."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def say(*sentences: str) -> None:
    """Shows sentences that were computed as text, like the cells that a person wrote (Markdown)."""
    text = "\n".join(textwrap.fill(sentence, 88, break_long_words=False) for sentence in sentences)
    display(Markdown(text))


def reveal(prediction: Any, told: str, runs: int = 1, sweep: str = "") -> None:
    """Prints ``told`` after what the reader predicted; without ``runs`` that there is no record, and what makes one.

    >>> reveal(0.4, "It is 0.06.")
    You predicted 0.4.
    It is 0.06.
    >>> reveal(..., "never shown", runs=0, sweep="sweeps/topology.tsv")
    You have not entered a prediction. Guess first: surprises stick.
    No record answers this yet. The runs that would are in sweeps/topology.tsv.
    """
    entered = prediction is not ... and prediction is not None
    nothing = "You have not entered a prediction. Guess first: surprises stick."
    print(f"You predicted {prediction}." if entered else nothing)
    print(told if runs else f"No record answers this yet. The runs that would are in {sweep}.")


def _tell_order(shell: Any, kind: type, error: NameError, trace: Any, tb_offset: int | None = None) -> None:
    error.args = (f"{error}. {ORDER}",)
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
