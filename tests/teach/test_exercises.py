"""Exercises that run a reader's function: right ones pass, usual mistakes are named, anything else gets a sentence."""

import inspect
import math

import numpy as np
import pytest
import torch
from IPython import get_ipython
from IPython.core.interactiveshell import InteractiveShell
from transformers.utils import logging

from adaprune.teach import exercises, judging, solutions
from adaprune.teach.exercises import EXERCISES, agree, check, done
from adaprune.teach.judging import same, show

T, F = True, False
# By hand: name -> (arguments, value), one or more.
BY_HAND = {
    "keep_largest": [((torch.tensor([2.0, 5.0, 2.0, 2.0]), 3), [T, T, T, F])],
    "flips": [((torch.tensor([T, F, F, T]), torch.tensor([T, T, T, F])), (2, 1))],
    "my_score": [((torch.tensor([[-2.0, 1.0]]), torch.tensor([3.0, 4.0])), [[6, 4]])],
    # sigmoid(log 3) = 3/4: 1 - 0.5 * 2 * 1 * 3/16 - 0.1
    "straight_through": [((torch.tensor([math.log(3)]), torch.tensor([2.0]), 0.5, 0.1, 1.0), [math.log(3) - 0.2875])],
    "cubic_schedule": [((2, 0, 4, 0.8), 0.7), ((4, 0, 4, 0.8), 0.8), ((0, 1, 4, 0.8), 0)],
    "comebacks": [((torch.tensor([[T, F], [F, T], [T, F], [F, T]]),), [1, 2])],
    "best_mask": [((lambda m: float((3 * m[0] - 2 * m[1] + m[2] * m[1])), 3), [0, 1, 0])],
    "bumps": [((lambda v: -v.square().sum(-1), torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [1.0]])), 1)],
    # 1 / (c sqrt(1)) + c 4 (1 + 3) (1 + 0) / 1 = 1 / c + 16 c: lowest at 1/4
    "best_rate": [((1, 2.0, 3.0), 0.25)],
    # 1 in both, 3 in either; half kept each of 4: 1/4 / (1 - 1/4)
    "jaccard_and_chance": [((torch.tensor([[T, T, F, F]]), torch.tensor([[F, T, T, F]])), (1 / 3, 1 / 3))],
    "working": [((torch.tensor([[T, F], [T, T]]), torch.tensor([[T, F]])), 2)],
    "parts": [((torch.tensor([[T, F], [F, F]]),), 3)],
    "share_negative": [((1.0, 1.0), 0.158655), ((0.0, 5.0), 0.5)],
    "linear_share": [((60, 20, 20, 0.4), 0.5), ((60, 20, 20, 0.9), 1)],
    "paired_difference": [(([("a", 0, "x", 3.0), ("a", 0, "y", 1.0), ("b", 0, "x", 9.0)], "x", "y"), 2)],
    "majority_score": [(([1, 1, 0], [0, 0, 1, 0]), 0.25)],
    "nearest_mean": [
        (
            (torch.tensor([[0.0], [2.0], [9.0], [11.0]]), torch.tensor([0, 0, 1, 1]), torch.tensor([[4.0], [7.0]])),
            [0, 1],
        )
    ],
    "share_of_gain": [(([0.7, 0.9, 0.6], [0.5, 0.89, 0.5], [0.9, 0.91, 0.8]), 3 / 7)],
    "to_gaps": [((torch.tensor([F, T, T, F]), torch.tensor([T, T, F, T])), [0, 1, 0])],
    "from_gaps": [(([0, 1, 0], torch.tensor([T, T, F, T])), [F, T, T, F])],
    "least_bits": [((8, 2), 8 * (2 / 4 + 3 / 4 * math.log2(4 / 3)))],
}


def named(name, function):
    """A function under an exercise's name."""
    function.__name__ = name
    return function


def test_every_exercise_has_a_solution_and_nothing_else_is_there():
    own = [name for name, value in vars(solutions).items() if inspect.isfunction(value)]
    assert own == list(EXERCISES) == list(BY_HAND)


@pytest.mark.parametrize("name", EXERCISES)
def test_solutions_are_right_by_hand_and_pass(capsys, name):
    solution = getattr(solutions, name)
    for arguments, value in BY_HAND[name]:
        assert same(solution(*arguments), value, within=1e-5)
    check(solution)
    assert capsys.readouterr().out == f"Right, on all {len(EXERCISES[name].cases)} cases.\n"
    assert name in done


@pytest.mark.parametrize("name", EXERCISES)
def test_an_empty_function_is_invited_not_judged(capsys, name):
    def empty(*arguments): ...

    check(getattr(solutions, name))
    check(named(name, empty))
    assert f"Yours to write: replace the dots in {name}" in capsys.readouterr().out
    assert name not in done


@pytest.mark.parametrize(
    ("name", "sentence"), [(name, sentence) for name, exercise in EXERCISES.items() for sentence in exercise.slips]
)
def test_a_usual_mistake_is_named(name, sentence):
    mistaken = EXERCISES[name].slips[sentence]
    with pytest.raises(AssertionError) as caught:
        check(named(name, lambda *arguments: mistaken(*arguments)))
    assert str(caught.value) == f"Not yet. {sentence}"


@pytest.mark.parametrize("name", EXERCISES)
@pytest.mark.parametrize("value", ["many", {"a": 1}, [[1], [1, 2]], 7.25, torch.full((2, 9), math.nan)])
def test_a_wrong_type_gets_a_sentence(name, value):
    if name == "best_rate" and isinstance(value, float):
        pytest.skip("a number it might be")
    with pytest.raises(AssertionError, match="^Not yet. .+") as caught:
        check(named(name, lambda *arguments: value))
    assert caught.value.__cause__ is None and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda scores: scores, "keep_largest is called with 2 arguments (scores, k), in this order"),
        (lambda scores, k: scores[99], "keep_largest(scores=[0.2, 0.9, 0.5], k=1) stopped with IndexError: index 99"),
        (lambda scores, k: scores, "returned [0.2, 0.9, 0.5]. The right value is [False, True, False]"),
        (lambda scores, k: solutions.keep_largest(scores, k) if k == 1 else None, "returned nothing: is a return"),
        (lambda scores, k: print("almost"), "k=1) returned nothing: is a return missing?"),
        (lambda scores, k: solutions.keep_largest(scores.mul_(2), k), "changed its argument scores. Work on a copy"),
        (lambda scores, k: True, "returned True. It should return 3 entries, each True or False, such as [False,"),
        (lambda scores, k: "kept", "returned text, 'kept'. It should return 3 entries, each True or False."),
    ],
)  # fmt: skip
def test_what_else_can_go_wrong(function, said):
    with pytest.raises(AssertionError) as caught:
        check(named("keep_largest", function))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "function", "said"),
    [
        ("majority_score", lambda train, dev: train.append(1) or 0.5, "Work on a copy: train.copy()."),
        ("to_gaps", lambda mask, base: [[1, 2], [3]], "returned a list that is not an array of numbers, [[1, 2], [3]]"),
        ("to_gaps", lambda mask, base: solutions.to_gaps(mask, base) or 0, "It should return an empty list."),
        ("nearest_mean", lambda vectors, labels, new: 1, "vectors=<tensor of shape (20, 3)>, labels=[0, 1, 0, 1"),
        ("bumps", lambda loss, one, other: one @ other, "one=<tensor of shape (20, 3)>, other=<tensor of shape (20,"),
        ("least_bits", lambda weights, flips: {number: "flip" for number in range(99)}, "25: 'flip…. It should"),
        ("best_mask", lambda loss, d: "all", "best_mask has to return 3 numbers, each 0 or 1; yours returned 'all'."),
        ("keep_largest", lambda scores, k: [], "returned []. It should return 3 entries, each True or False, such as"),
        ("best_rate", lambda T, G, C: [1, 2], "best_rate has to return a positive number; yours returned [1, 2]."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_briefly(name, function, said):
    with pytest.raises(AssertionError) as caught:
        check(named(name, function))
    assert said in str(caught.value) and len(str(caught.value)) < 400


def test_of_a_long_error_the_first_line_is_told():
    def keep_largest(scores, k):
        raise RuntimeError("the first line.\nand a second")

    with pytest.raises(AssertionError, match=r"stopped with RuntimeError: the first line\.$"):
        check(keep_largest)


def test_best_mask_and_best_rate_say_what_is_better():
    with pytest.raises(
        AssertionError, match=r"For loss with d=3 you found \[1, 1, 1\] with loss 1, but \[1, 0, 1\] has 0"
    ):
        check(named("best_mask", lambda loss, d: torch.ones(d)))
    with pytest.raises(AssertionError, match="the lowest is .*, at a smaller c"):
        check(named("best_rate", lambda T, G, C: 1e3))


@pytest.mark.parametrize("value", [torch.zeros(2, 2), torch.full((2, 3), math.nan), torch.ones(2, 3)])
def test_a_score_must_be_finite_and_tell_weights_apart(value):
    with pytest.raises(AssertionError, match="shape|finite|equal"):
        check(named("my_score", lambda weight, norms: value))


def test_what_is_no_exercise():
    with pytest.raises(TypeError, match=r"check takes the function itself, as in check\(keep_largest\); got 3"):
        check(3)
    with pytest.raises(ValueError, match="no exercise is called 'keep_small'"):
        check(named("keep_small", lambda: 1))


def test_routes_agree_or_stop(capsys):
    agree(by_hand=[[1, 0]], by_torch=torch.tensor([[True, False]]), by_numpy=np.array([[1.0, 0.0]]))
    assert capsys.readouterr().out == "by_hand = by_torch = by_numpy: [[1, 0]]\n"
    with pytest.raises(AssertionError, match=r"by_hand gives \[1, 2\], but by_sum gives \[1, 3\]"):
        agree(by_hand=[1, 2], by_sum=[1, 3])
    with pytest.raises(AssertionError):
        agree(by_hand=[1, 2], by_sum=[[1], [2]])


@pytest.mark.parametrize(
    ("value", "shown"),
    [(torch.tensor([0.123456, -0.0]), "[0.1235, 0]"), (np.float64(2), "2"), ((1, [T]), "[1, [True]]"), (len, "len")],
)
def test_values_are_shown_as_a_reader_writes_them(value, shown):
    assert show(value) == shown


def test_cases_are_not_worn_out():
    before = show([case for exercise in EXERCISES.values() for case in exercise.cases])
    for name in EXERCISES:
        check(getattr(solutions, name))
    assert show([case for exercise in EXERCISES.values() for case in exercise.cases]) == before
    assert judging.copies((len, [1]))[0] is len


def test_a_name_from_a_cell_above_is_asked_for(monkeypatch, capsys):
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)  # IPython warns where another one is active
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
