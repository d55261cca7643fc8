"""Exercises that check themselves, and the sentences a reader gets."""

import numpy as np
import pytest
import torch
from IPython import get_ipython
from IPython.core.interactiveshell import InteractiveShell
from transformers.utils import logging

from adaprune.teach import exercises
from adaprune.teach.exercises import EXACT, check

EMPTY = "Yours to fill in: put your answer in place of the dots above, and run this cell again.\n"


@pytest.mark.parametrize("nothing", [..., None])
def test_an_empty_answer_is_invited_not_judged(capsys, nothing):
    check(nothing, lambda answer: 1 / 0, "never read")
    assert capsys.readouterr().out == EMPTY


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (0.5, 1 / 2),
        (14746, torch.tensor(14746)),
        ([[True, False]], torch.tensor([[True, False]])),
        (torch.ones(2), [1, 1]),
        (3, lambda answer: answer > 2),
    ],
)
def test_right_answers(capsys, answer, right):
    check(answer, right, "a hint")
    assert capsys.readouterr().out == "Right.\n"


@pytest.mark.parametrize(
    ("answer", "right", "said"),
    [
        (0.6, 0.5, r"Not yet, 0.6. a hint"),
        (1_062_000, 1_061_683, "Not yet"),
        ([1], [1, 1], r"Not yet, \[1\]"),
        (1, lambda answer: answer > 2, "Not yet, 1"),
        ("four", 4, "Not an answer that can be checked, 'four'"),
        ([[1], [1, 2]], 4, "Not an answer"),
        ("x", lambda answer: answer > 2, "Not an answer"),
    ],
)
def test_wrong_answers_end_with_the_hint(answer, right, said):
    with pytest.raises(AssertionError, match=said) as caught:
        check(answer, right, "a hint", within=1e-4)
    assert str(caught.value).endswith("a hint")
    assert caught.value.__cause__ is None


def test_how_close_is_close_enough():
    check(1.0005, 1, "a hint")
    with pytest.raises(AssertionError):
        check(1.0005, 1, "a hint", within=1e-6)
    check(np.float32(0.1), 0.1, "a hint")


@pytest.mark.parametrize("right", [32, 184_756, 1_061_683, 50_000])
def test_a_whole_number_has_no_neighbours(right):
    for answer in (right, float(right), np.int64(right), np.float32(right), torch.tensor(right), right / 7 * 7):
        check(answer, right, "a hint", within=EXACT)
    for answer in (right - 1, right + 1, right + 0.03):
        with pytest.raises(AssertionError, match="Not yet"):
            check(answer, right, "a hint", within=EXACT)


def test_a_name_from_a_cell_above_is_asked_for(monkeypatch, capsys):
    shell = InteractiveShell.instance()
    monkeypatch.setattr(exercises, "get_ipython", lambda: shell)
    try:
        exercises.begin()
        assert not logging.is_progress_bar_enabled()
        assert not shell.run_cell("weight * 2").success
        said = capsys.readouterr().out
        assert "name 'weight' is not defined. Cells build on those above: choose Run > Run All Above" in said
        assert "Traceback" not in said
        assert not shell.run_cell("raise ValueError('one sentence')").success
        assert capsys.readouterr().out.strip().endswith("one sentence")
    finally:
        logging.enable_progress_bar()
        InteractiveShell.clear_instance()


def test_outside_a_notebook_only_the_bars_go(capsys):
    assert get_ipython() is None
    try:
        exercises.begin()
        assert not logging.is_progress_bar_enabled() and capsys.readouterr() == ("", "")
    finally:
        logging.enable_progress_bar()
