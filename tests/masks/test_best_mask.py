"""On a problem small enough to try all masks, AdaPrune finds the best one."""

import itertools

import pytest
import torch

from tests.masks.reference import best_mask
from tests.masks.small_theta import masked_optimiser, threshold


def masked_logistic(seed):
    """Masked logistic regression, d = 10, whose labels come from w0 with every second weight removed."""
    generator = torch.Generator().manual_seed(seed)
    w0 = torch.randn(10, dtype=torch.float64, generator=generator)
    w0 = w0.sign() * (0.4 + w0.abs())
    x = torch.randn(400, 10, dtype=torch.float64, generator=generator)
    y = (x @ (w0 * torch.tensor([1.0, 0.0] * 5, dtype=torch.float64)) > 0).double()
    return w0, lambda mask: torch.nn.functional.binary_cross_entropy_with_logits(x @ (w0 * mask), y)


def learn_mask(w0, loss_of_mask, seed, penalty=0.0, steps=600):
    """theta and threshold after full-batch AdaPrune from a normal start, with dL/dm at the hard mask."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.nn.Parameter(0.01 + 0.001 * torch.randn(10, dtype=torch.float64, generator=generator))
    optimiser = masked_optimiser(theta, lr=2e-4, penalty=penalty)
    for _ in range(steps):
        mask = (theta.detach() > threshold(optimiser)).double().requires_grad_()
        (theta.grad,) = torch.autograd.grad(loss_of_mask(mask), mask)
        optimiser.step()
    return theta.detach(), threshold(optimiser)


@pytest.mark.parametrize("seed", range(5))
def test_finds_the_best_of_all_masks(seed):
    w0, loss_of_mask = masked_logistic(seed)
    best, lowest = best_mask(loss_of_mask, 10)
    theta, level = learn_mask(w0, loss_of_mask, seed)
    found = float(loss_of_mask((theta > level).double()))
    assert found == pytest.approx(lowest, abs=1e-12), f"best {best}"
    assert lowest < 0.9 * float(loss_of_mask(torch.ones(10).double()))


@pytest.mark.parametrize("seed", range(5))
def test_finds_the_best_of_all_masks_of_one_size(seed):
    w0, loss_of_mask = masked_logistic(seed)
    best, lowest = best_mask(loss_of_mask, 10, kept=5)
    theta, _ = learn_mask(w0, loss_of_mask, seed)
    kept = torch.zeros(10, dtype=torch.float64).index_fill(0, theta.topk(5).indices, 1.0)
    by_magnitude = torch.zeros(10, dtype=torch.float64).index_fill(0, w0.abs().topk(5).indices, 1.0)
    assert float(loss_of_mask(kept)) == pytest.approx(lowest, abs=1e-12), f"best {best}"
    assert float(loss_of_mask(by_magnitude)) > lowest


def test_reference_search_tries_every_mask():
    wanted = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    assert best_mask(lambda mask: (mask - wanted).abs().sum(), 4) == ((1, 0, 1, 1), 0.0)
    assert best_mask(lambda mask: (mask - wanted).abs().sum(), 4, kept=1)[1] == 2.0
    tried = []
    best_mask(lambda mask: tried.append(tuple(mask.tolist())) or 0.0, 3)
    assert sorted(tried) == list(itertools.product((0.0, 1.0), repeat=3))
