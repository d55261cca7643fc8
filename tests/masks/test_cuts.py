"""Cuts of exact size: against sorting, against torch's own global pruning, and where scores tie."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import prune

from adaprune.masks.cuts import keep_top
from adaprune.masks.layers import maskable
from tests.tiny import encoder


def scores_of(*tensors):
    return {f"s{index}": torch.as_tensor(tensor) for index, tensor in enumerate(tensors)}


def flat(masks):
    return torch.cat([mask.flatten() for mask in masks.values()]).tolist()


# Few distinct values, so that most draws have ties at the cut.
values = st.lists(st.sampled_from([-torch.inf, -1.0, 0.0, 0.5, 1.0, torch.inf]), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(parts=st.lists(values, min_size=1, max_size=4), density=st.floats(0, 1), minimum=st.integers(0, 3))
def test_exactly_k_survive_and_they_are_the_largest_by_position(parts, density, minimum):
    scores = scores_of(*parts)
    sizes = [len(part) for part in parts]
    k = round(density * sum(sizes))
    forced = [min(minimum, size) for size in sizes]
    if sum(forced) > k:
        with pytest.raises(ValueError, match=f"needs {sum(forced)} connections.* keeps {k}: lower minimum_kept"):
            keep_top(scores, density, minimum)
        return
    masks = keep_top(scores, density, minimum)
    assert sum(flat(masks)) == k
    assert [int(mask.sum()) >= least for mask, least in zip(masks.values(), forced, strict=True)] == [True] * len(parts)
    # By sorting: each part's best by (score, position), then the best of the rest.
    entries = [(-value, part, place) for part, row in enumerate(parts) for place, value in enumerate(row)]
    chosen = {e for part, least in enumerate(forced) for e in sorted(e for e in entries if e[1] == part)[:least]}
    chosen |= set(sorted(set(entries) - chosen)[: k - len(chosen)])
    assert [(part, place) for part, mask in enumerate(masks.values()) for place in mask.nonzero().flatten().tolist()] \
        == sorted((part, place) for _, part, place in chosen)  # fmt: skip


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


def test_a_minimum_is_kept_even_beside_infinite_scores():
    scores = scores_of([torch.inf] * 5, [1.0, 2.0, 3.0, 4.0, 5.0])
    masks = keep_top(scores, 0.5, minimum_kept=1)
    assert flat(masks) == [True, True, True, True, False] + [False, False, False, False, True]


def test_a_minimum_guards_against_layer_collapse_and_changes_nothing_else():
    scores = scores_of(torch.arange(10.0), torch.arange(10.0) + 100)
    assert int(keep_top(scores, 0.25)["s0"].sum()) == 0
    masks = keep_top(scores, 0.25, minimum_kept=2)
    assert masks["s0"].nonzero().flatten().tolist() == [8, 9]
    assert masks["s1"].nonzero().flatten().tolist() == [7, 8, 9]
    plenty = keep_top(scores, 0.75, minimum_kept=2)
    assert flat(plenty) == flat(keep_top(scores, 0.75))


def test_not_a_number_is_refused_by_name():
    with pytest.raises(ValueError, match="s1: a score is not a number"):
        keep_top(scores_of([1.0], [0.0, torch.nan]), 0.5)


def test_scores_that_rank_nothing_and_a_negative_minimum_are_refused():
    with pytest.raises(ValueError, match="scores must hold at least one tensor"):
        keep_top({}, 0.5)
    with pytest.raises(ValueError, match="s1: scores must be real numbers, got torch.bool"):
        keep_top(scores_of([1.0], [True, False]), 0.5)
    with pytest.raises(ValueError, match="minimum_kept must not be negative, got -1"):
        keep_top(scores_of([1.0, 2.0]), 0.5, minimum_kept=-1)


@pytest.mark.parametrize("density", [-0.01, 1.01, float("nan"), float("inf")])
def test_density_outside_the_unit_interval_is_refused(density):
    with pytest.raises(ValueError, match=r"density must lie in \[0, 1\]"):
        keep_top(scores_of([1.0]), density)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_scores_of_any_real_type_are_ranked(dtype):
    scores = {"w": torch.tensor([3, 1, 2, 0], dtype=dtype)}
    assert keep_top(scores, 0.5, minimum_kept=1)["w"].tolist() == [True, False, True, False]
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
