"""Cuts of exact size: against sorting, against torch's own global pruning, and where scores tie."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import prune

from adaprune.masks.cuts import keep_each, keep_top
from adaprune.masks.layers import maskable
from tests.tiny import encoder


def scores_of(*tensors):
    return {f"s{index}": torch.as_tensor(tensor) for index, tensor in enumerate(tensors)}


def flat(masks):
    return torch.cat([mask.flatten() for mask in masks.values()]).tolist()


# Few distinct values, so that most draws have ties at the cut.
values = st.lists(st.sampled_from([-torch.inf, -1.0, 0.0, 0.5, 1.0, torch.inf]), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(parts=st.lists(values, min_size=1, max_size=4), density=st.floats(0, 1))
def test_exactly_k_survive_and_they_are_the_largest_by_position(parts, density):
    k = round(density * sum(len(part) for part in parts))
    masks = keep_top(scores_of(*parts), density)
    assert sum(flat(masks)) == k
    entries = [(-value, part, place) for part, row in enumerate(parts) for place, value in enumerate(row)]
    assert [(part, place) for part, mask in enumerate(masks.values()) for place in mask.nonzero().flatten().tolist()] \
        == sorted((part, place) for _, part, place in sorted(entries)[:k])  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(values, min_size=1, max_size=4), data=st.data())
def test_each_part_keeps_its_own_number_and_they_are_its_largest(parts, data):
    scores = scores_of(*parts)
    counts = {name: data.draw(st.integers(0, score.numel())) for name, score in scores.items()}
    for name, mask in keep_each(scores, counts).items():
        whole = keep_top({name: scores[name]}, counts[name] / scores[name].numel())[name]
        assert int(mask.sum()) == counts[name] and torch.equal(mask, whole)


@pytest.mark.parametrize("density", [0.0, 0.1, 1 / 3, 0.5, 0.999, 1.0])
def test_all_ties_are_kept_in_order_of_position(density):
    masks = keep_top(scores_of(torch.zeros(10, 7), torch.zeros(31)), density)
    k = round(density * 101)
    assert flat(masks) == [True] * k + [False] * (101 - k)
    assert masks["s0"].shape == (10, 7) and masks["s0"].dtype == torch.bool


def test_infinity_comes_first_and_minus_infinity_last():
    scores = scores_of([5.0, torch.inf, -torch.inf], [torch.inf, 1.0, 9.0])
    assert flat(keep_top(scores, 2 / 6)) == [False, True, False, True, False, False]
    assert flat(keep_top(scores, 5 / 6)) == [True, True, False, True, True, True]


def test_not_a_number_is_refused_by_name():
    with pytest.raises(ValueError, match="s1: a score is not a number"):
        keep_top(scores_of([1.0], [0.0, torch.nan]), 0.5)


def test_scores_that_rank_nothing_are_refused():
    with pytest.raises(ValueError, match="scores must hold at least one tensor"):
        keep_top({}, 0.5)
    with pytest.raises(ValueError, match="s1: scores must be real numbers, got torch.bool"):
        keep_top(scores_of([1.0], [True, False]), 0.5)


@pytest.mark.parametrize("density", [-0.01, 1.01, float("nan"), float("inf")])
def test_density_outside_the_unit_interval_is_refused(density):
    with pytest.raises(ValueError, match=r"density must lie in \[0, 1\]"):
        keep_top(scores_of([1.0]), density)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_scores_of_any_real_type_are_ranked(dtype):
    scores = {"w": torch.tensor([3, 1, 2, 0], dtype=dtype)}
    assert keep_top(scores, 0.5)["w"].tolist() == [True, False, True, False]
    assert scores["w"].tolist() == [3, 1, 2, 0]


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9, 0.99])
def test_magnitude_agrees_with_torch_global_pruning(sparsity):
    model = encoder()
    modules = maskable(model)
    ours = keep_top({name: module.weight.abs() for name, module in modules.items()}, 1 - sparsity)
    pairs = [(module, "weight") for module in modules.values()]
    prune.global_unstructured(pairs, prune.L1Unstructured, amount=round(sparsity * 14_336))
    for name, module in modules.items():
        assert torch.equal(ours[name], module.weight_mask.bool()), name


@pytest.mark.parametrize(
    ("score", "count", "message"),
    [
        ([1.0, math.nan, 2.0], 1, "w: a score is not a number"),
        ([1.0, 2.0], 3, "w: cannot keep 3 of 2 connections"),
        ([1.0, 2.0], -1, "w: cannot keep -1 of 2 connections"),
        ([True, False], 1, "w: scores must be real numbers, got torch.bool"),
    ],
)
def test_a_cut_of_each_matrix_refuses_what_it_cannot_cut(score, count, message):
    with pytest.raises(ValueError, match=message):
        keep_each({"w": torch.tensor(score)}, {"w": count})
