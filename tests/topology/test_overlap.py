"""Agreement of masks: worked by hand, and against brute force over weights."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import chi2
from sklearn.metrics import cohen_kappa_score, jaccard_score

from adaprune.topology import overlap
from tests.topology.test_structure import random_mask

A = {"w": torch.tensor([[1, 1, 0, 0]]) == 1}
B = {"w": torch.tensor([[1, 0, 1, 0]]) == 1}
C = {"w": torch.tensor([[1, 1, 1, 0]]) == 1}


def flat(mask):
    return np.concatenate([m.numpy().ravel() for m in mask.values()])


def test_jaccard_by_hand():
    # 1 of 3; by chance 2 * 2 / 4 = 1 shared of 3
    assert overlap.jaccard(A, B) == (1 / 3, 1 / 3, 1 / 3, 1, 3)
    # a full and an empty matrix in both: all the overlap is in how connections are shared out
    full, empty = torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4, dtype=torch.bool)
    pair = {"v": full, "w": empty}
    assert overlap.jaccard(pair, pair) == (1, 1 / 3, 1, 4, 4)


def test_jaccard_of_random_masks_is_at_chance_and_agrees_with_sklearn():
    a, b = (random_mask(0.3, width=60, neurons=90, seed=seed) for seed in (1, 2))
    found = overlap.jaccard(a, b)
    assert found.jaccard == pytest.approx(jaccard_score(flat(a), flat(b)))
    assert found.jaccard == pytest.approx(found.chance, rel=0.05) == pytest.approx(found.chance_by_matrix, rel=0.05)


def test_kappa_and_q_by_hand():
    # c = 3, 2, 2, 0 of 3: agreed pairs 3, 1, 1, 3 of 3 each, mean 2/3; p = 7/12, chance (49 + 25) / 144
    chance = 74 / 144
    assert overlap.fleiss_kappa([A, B, C]) == pytest.approx((2 / 3 - chance) / (1 - chance))
    # G = 2, 2, 3: 2 (3 * 17 - 49) / (3 * 7 - (9 + 4 + 4)) = 4 / 4
    q, p = overlap.cochran_q([A, B, C])
    assert q == pytest.approx(1) and p == pytest.approx(chi2.sf(1, 2))
    assert overlap.fleiss_kappa([A, A]) == 1 and overlap.cochran_q([A, A]) == (0, 1)
    assert {name: array.tolist() for name, array in overlap.kept_by([A, B, C]).items()} == {"w": [[3, 2, 2, 0]]}


def test_random_masks_have_kappa_near_0_and_two_raters_agree_with_scotts_pi():
    masks = [random_mask(0.4, width=60, neurons=90, seed=seed) for seed in range(3)]
    assert abs(overlap.fleiss_kappa(masks)) < 0.02
    # with equal marginals Cohen's kappa is Fleiss' for two raters
    other = {name: mask.flip(0) for name, mask in masks[0].items()}
    assert overlap.fleiss_kappa([masks[0], other]) == pytest.approx(cohen_kappa_score(flat(masks[0]), flat(other)))


def test_q_against_its_sums_and_mcnemar():
    a, b = (random_mask(density, seed=seed) for density, seed in ((0.3, 1), (0.35, 2)))
    one, two = flat(a), flat(b)
    only, other = (one & ~two).sum(), (two & ~one).sum()
    assert overlap.cochran_q([a, b])[0] == pytest.approx((only - other) ** 2 / (only + other))


def test_by_component():
    masks = [random_mask(0.5, seed=seed) for seed in range(3)]
    found = overlap.by_component(masks)
    assert list(found.index) == ["all", "query", "key", "value", "attention_output", "ffn_in", "ffn_out"]
    assert found.loc["all", "kappa"] == overlap.fleiss_kappa(masks)
    keys = [{name: mask[name] for name in mask if "key" in name} for mask in masks]
    assert found.loc["key"].tolist() == [overlap.fleiss_kappa(keys), *overlap.cochran_q(keys)]
    for mask in masks:
        for name in keys[0]:
            mask[name] = torch.ones_like(mask[name])
    assert overlap.by_component(masks).loc["key"].isna().all()  # nothing to agree on


def test_recovery_by_hand():
    rows = [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]
    history = {10 * step: {"w": torch.tensor([row]) == 1} for step, row in enumerate(rows, 1)}
    history[10]["v"] = torch.zeros(1, 1, dtype=torch.bool)  # a mask that keeps all has no topology
    for mask in history.values():
        mask["v"] = torch.zeros(1, 1, dtype=torch.bool)
    found = overlap.recovery(dict(reversed(history.items())))
    assert found.to_dict("list") == {
        "step": [20, 30, 40], "kept": [2, 2, 3], "removed": [2, 1, 0], "returned": [0, 1, 1], "recovered": [0, 1, 2],
        "share": [0, 1 / 2, 2 / 3],
    }  # fmt: skip


def test_recovery_from_a_dense_start():
    """Where sparsity rises late, as under recipe paper, the first snapshots keep everything."""
    dense, half = torch.ones(1, 4, dtype=torch.bool), torch.tensor([[True, True, False, False]])
    found = overlap.recovery({1: {"w": dense}, 2: {"w": dense}, 3: {"w": half}, 4: {"w": half.flip(1)}})
    assert found["recovered"].tolist() == [0, 0, 2] and found["removed"].tolist() == [0, 2, 2]
    with pytest.raises(ValueError, match="keeps 4 of 4 connections: there is no topology to study"):
        overlap.jaccard({"w": dense}, {"w": half})


@pytest.mark.parametrize("size", [0, 5, -1])
def test_a_damaged_snapshot_is_named(tmp_path, size):
    for step in (1, 2):
        save_file(A, tmp_path / f"{step}.safetensors")
    file = tmp_path / "2.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"2\.safetensors is damaged"):
        overlap.history(tmp_path)


def carded(mask, **base):
    return SimpleNamespace(masks=mask, card={"base": {"w": "1", **base}})


def test_masks_that_do_not_compare_are_refused():
    both = {**A, "v": A["w"]}
    with pytest.raises(ValueError, match="masks 0 and 1 have different scopes: v is in one alone"):
        overlap.jaccard(A, both)
    with pytest.raises(ValueError, match="different bases: w has other shapes"):
        overlap.jaccard(A, {"w": A["w"].T})
    with pytest.raises(ValueError, match="made for different bases: w differs"):
        overlap.fleiss_kappa([carded(A), carded(B), carded(C, w="2")])
    assert overlap.jaccard(carded(A), carded(B)) == overlap.jaccard(A, B)
    with pytest.raises(ValueError, match="two masks or more, got 1"):
        overlap.fleiss_kappa([A])
    with pytest.raises(ValueError, match="keeps 4 of 4"):
        overlap.jaccard(A, {"w": torch.ones(1, 4, dtype=torch.bool)})
