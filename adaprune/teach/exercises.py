"""What the walkthroughs in notebooks/teach share: errors of one sentence, and exercises that check themselves."""

from typing import Any

import numpy as np
from IPython import get_ipython
from transformers.utils import logging

ORDER = "Cells build on those above: choose Run > Run All Above Selected Cell, then run this one again."
EXACT = 1e-9  # a whole number, as a division of floats gives it; no neighbour


def begin() -> None:
    """From now on an error of this notebook is one sentence, and a missing name is told to come from above.

    (Undo: ``%xmode Context``.) Loading a model, which takes a second, shows no bar.
    """
    logging.disable_progress_bar()
    if shell := get_ipython():
        shell.InteractiveTB.set_mode("Minimal")
        shell.set_custom_exc((NameError,), _tell_order)


def check(answer: Any, right: Any, hint: str, within: float = 1e-3) -> None:
    """Says that ``answer`` is right; while it is still ``...``, says where it goes.

    Args:
        answer: a number, or what numpy makes an array of.
        right: the value it has to have, or a function that says of an answer whether it is right.
        hint: for who is not there yet.
        within: how far, relative to ``right``, a number may be off; `EXACT` for whole numbers.

    Raises:
        AssertionError: not right; ends with the hint.

    >>> check(..., 4, "two and two")
    Yours to fill in: put your answer in place of the dots above, and run this cell again.
    >>> check(4, 4, "two and two")
    Right.
    """
    if answer is ... or answer is None:
        print("Yours to fill in: put your answer in place of the dots above, and run this cell again.")
        return
    try:
        fits = bool(right(answer)) if callable(right) else _equal(answer, right, within)
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise AssertionError(f"Not an answer that can be checked, {answer!r} ({error}). {hint}") from None
    if not fits:
        raise AssertionError(f"Not yet, {answer!r}. {hint}")
    print("Right.")


def reveal(prediction: Any, told: str, runs: int = 1, sweep: str = "") -> None:
    """Prints ``told`` beside what the reader predicted; without ``runs`` that there is no record, and where from.

    >>> reveal(0.4, "It is 0.06.")
    You predicted 0.4.
    It is 0.06.
    >>> reveal(..., "never shown", runs=0, sweep="sweeps/topology.tsv")
    You predicted nothing. What surprises is remembered: try it first.
    No record yet says anything of this. The runs would be those of sweeps/topology.tsv.
    """
    nothing = prediction is ... or prediction is None
    print("You predicted", "nothing. What surprises is remembered: try it first." if nothing else f"{prediction}.")
    print(told if runs else f"No record yet says anything of this. The runs would be those of {sweep}.")


def _equal(answer: Any, right: Any, within: float) -> bool:
    found, wanted = np.asarray(answer, dtype=float), np.asarray(right, dtype=float)
    return found.shape == wanted.shape and np.allclose(found, wanted, rtol=within, atol=1e-12)


def _tell_order(shell: Any, kind: type, error: NameError, trace: Any, tb_offset: int | None = None) -> None:
    error.args = (f"{error}. {ORDER}",)
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
