"""Where theta starts, and which rows are protected from a cut."""

import pytest
import torch

from adaprune.masks.cuts import keep_top
from adaprune.masks.theta import INITIAL, MEAN, SPREAD, initial_theta, protect


def weights(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (200, 100), "b": (50, 300)}
    return {name: torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for name, s in shapes.items()}


def begin(kind, seed=0, dtype=torch.float32):
    return initial_theta(weights(dtype), kind, torch.Generator().manual_seed(seed))


def values(thetas):
    return torch.cat([theta.flatten() for theta in thetas.values()])


@pytest.mark.parametrize("kind", INITIAL)
def test_theta_starts_with_the_papers_mean_and_the_weights_shapes(kind):
    thetas = begin(kind)
    assert {name: theta.shape for name, theta in thetas.items()} == {name: w.shape for name, w in weights().items()}
    assert float(values(thetas).mean()) == pytest.approx(MEAN, rel=0.01) and MEAN == 0.01
    assert (values(thetas) >= 0).all()
    assert not any(theta.requires_grad for theta in thetas.values())


def test_constant_start():
    assert values(begin("constant")).unique().tolist() == pytest.approx([0.01])


def test_normal_start_is_positive_everywhere_and_the_printed_variance_would_not_be():
    drawn = values(begin("normal"))
    assert float(drawn.std()) == pytest.approx(SPREAD, rel=0.02) and SPREAD == 0.001
    assert (drawn > 0).all()
    printed = (drawn - MEAN) / SPREAD * 0.001**0.5 + MEAN
    assert float((printed < 0).float().mean()) == pytest.approx(0.38, abs=0.01)  # notes, point 2


def test_uniform_start_covers_its_range():
    drawn = values(begin("uniform"))
    assert 0 <= float(drawn.min()) < 1e-5 and 0.02 - 1e-5 < float(drawn.max()) <= 0.02
    assert float(drawn.std()) == pytest.approx(0.02 / 12**0.5, rel=0.02)


def test_magnitude_start_is_proportional_to_all_weights_together():
    thetas, given = begin("magnitude"), {name: weight.detach() for name, weight in weights().items()}
    ratios = values(thetas) / values(given).abs()
    assert float(ratios.min()) == pytest.approx(float(ratios.max()), rel=1e-5)
    for density in (0.1, 0.5):
        first_cut = keep_top(thetas, density)
        magnitude = keep_top({name: w.abs() for name, w in given.items()}, density)
        assert all(torch.equal(first_cut[name], magnitude[name]) for name in given)


def test_magnitude_start_by_hand():
    theta = initial_theta({"w": torch.tensor([-1.0, 3.0])}, "magnitude", torch.Generator())["w"]
    torch.testing.assert_close(theta, torch.tensor([0.005, 0.015]))


def test_relative_start_by_hand():
    """Each matrix has the mean 0.01, so that a matrix of small weights is not emptied by the first cut."""
    given = {"large": torch.tensor([-10.0, 30.0]), "small": torch.tensor([0.3, -0.1])}
    theta = initial_theta(given, "relative", torch.Generator())
    torch.testing.assert_close(theta["large"], torch.tensor([0.005, 0.015]))
    torch.testing.assert_close(theta["small"], torch.tensor([0.015, 0.005]))


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_random_starts_follow_their_seed(kind):
    assert torch.equal(values(begin(kind, 1)), values(begin(kind, 1)))
    assert not torch.equal(values(begin(kind, 1)), values(begin(kind, 2)))


@pytest.mark.parametrize("kind", INITIAL)
def test_the_start_does_not_share_memory_with_the_weights(kind):
    given = weights()
    before = values(given).clone()
    for theta in initial_theta(given, kind, torch.Generator()).values():
        theta.zero_()
    assert torch.equal(values(given), before)


def test_unknown_start_is_refused():
    with pytest.raises(ValueError, match="constant, normal, uniform, magnitude, relative, got 'zeros'"):
        begin("zeros")


def test_weights_that_are_all_zero_have_no_magnitude_to_start_from():
    with pytest.raises(ValueError, match="not all 0 in w"):
        initial_theta({"w": torch.zeros(3)}, "magnitude", torch.Generator())
    given = {"w": torch.ones(3), "v": torch.zeros(3)}
    initial_theta(given, "magnitude", torch.Generator())  # one matrix of them is fine: it goes first
    with pytest.raises(ValueError, match="not all 0 in v"):
        initial_theta(given, "relative", torch.Generator())


def rows(*seen):
    return torch.tensor(seen, dtype=torch.bool)


def test_unseen_rows_are_kept_first():
    scores = {"w": torch.arange(10.0, 20.0), "table": torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])}
    guarded = protect(scores, {"table": rows(True, False, True)}, 0.25)
    assert guarded["table"].tolist() == [[1.0, 2.0], [torch.inf, torch.inf], [5.0, 6.0]]
    assert torch.equal(guarded["w"], scores["w"]) and scores["table"][1].tolist() == [3.0, 4.0]
    masks = keep_top(guarded, 0.25)  # 4 of 16: the unseen row, then the two largest
    assert masks["table"].tolist() == [[False, False], [True, True], [False, False]]
    assert masks["w"].nonzero().flatten().tolist() == [8, 9]


def test_unseen_rows_compete_where_they_do_not_fit():
    # 4 scores of 2 unseen rows against k = 4: none would be left for what was seen.
    scores = {"w": torch.arange(10.0, 20.0), "table": torch.ones(3, 2)}
    found = protect(scores, {"table": rows(False, True, False)}, 4 / 16)
    assert torch.equal(found["table"], scores["table"])
    assert torch.isinf(protect(scores, {"table": rows(False, True, False)}, 5 / 16)["table"]).sum() == 4


@pytest.mark.parametrize("each", [True, False])
def test_unseen_rows_must_fit_in_the_share_that_is_kept_of_their_table(each):
    # 4 scores of 2 unseen rows: all 3 that stay of the table's 6, where each tensor is cut to a half for itself
    scores = {"w": torch.arange(10.0), "table": torch.ones(3, 2)}
    found = protect(scores, {"table": rows(False, True, False)}, 0.5, each)
    assert torch.isinf(found["table"]).sum() == (0 if each else 4)


def test_without_tables_nothing_is_protected():
    scores = {"w": torch.arange(3.0)}
    assert protect(scores, {}, 0.5) == scores
    everything_seen = protect({"t": torch.ones(2, 2)}, {"t": rows(True, True)}, 0.5)
    assert torch.equal(everything_seen["t"], torch.ones(2, 2))
