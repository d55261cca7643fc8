"""Theorem 1: its bound by hand, its constant by brute force, its problems by other routes."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit

from adaprune.teach import theory
from tests.masks.reference import algorithm_1, best_mask
from tests.masks.small_theta import masked_optimiser


def test_bound_by_hand():
    # T = 1: 1/c + c G^2 (1 + C).  T = 4, c = 1/2, G = 2, C = 3: 1 / (1/2 * 2) + 2 * 4 (1 + log 4) / 4
    assert theory.bound(1, c=0.5, G=2, C=3) == 2 + 8
    assert theory.bound(np.array([1, 4]), 0.5, 2, 3) == pytest.approx([10, 1 + 2 * (1 + math.log(4))])
    assert theory.bound(4, 0.5, 2, 3, distance=5) == pytest.approx(5 + 2 * (1 + math.log(4)))


def test_constant_by_hand():
    # g = 1/4 at M = 0: (1 - t_l t_s / 16)^2, so 0 at t_l t_s = 16 and 9/16 at 4; as M grows 1 + (t_l t_s / 16)^2
    assert [theory.constant(t, t, M=0) for t in (4, 2)] == [0, 9 / 16]
    assert theory.constant(4, 4, M=1e9) == 2
    assert theory.gmax(math.log(3), 1) == pytest.approx(3 / 16)
    assert theory.constant(1e5, 1, M=0.02) == pytest.approx(3.9e7, rel=0.01)  # the paper's temperatures


@pytest.mark.parametrize("temperatures", [(1, 1), (4, 4), (10, 0.1), (30, 2)])
@pytest.mark.parametrize("M", [0.01, 0.5, 3])
def test_constant_bounds_the_error_of_every_step(temperatures, M):
    t_l, t_s = temperatures
    theta = np.linspace(-M, M, 2001)
    slope = t_l * expit(t_l * theta) * expit(-t_l * theta) * t_s * expit(t_s * theta) * expit(-t_s * theta)
    assert ((1 - slope) ** 2).max() <= theory.constant(t_l, t_s, M) + 1e-12


@pytest.mark.parametrize("make", [lambda: theory.logistic(6, 50), lambda: theory.two_layers(2, 50)])
def test_every_mask_is_tried(make):
    problem = make()
    masks, losses = theory.every_mask(problem)
    found, lowest = best_mask(lambda mask: problem.whole(mask[None]), 6)
    assert losses[0] == pytest.approx(lowest, abs=1e-12) and masks[0].tolist() == list(found)
    assert len(torch.unique(masks, dim=0)) == 2**6 and (losses.diff() >= 0).all()


def test_losses_by_another_route():
    problem = theory.logistic(3, 20)
    v = torch.tensor([[0.5, 1.0, 0.0]], dtype=torch.float64)
    x, w, y = problem.x.numpy(), problem.w0.numpy(), problem.y.numpy()
    probability = expit(x[:, 0] * w[0] / 2 + x[:, 1] * w[1])
    assert float(problem.whole(v)) == pytest.approx(-np.log(np.where(y == 1, probability, 1 - probability)).mean())
    net = theory.two_layers(2, 20)
    w, x = net.w0.numpy(), net.x.numpy()
    neurons = [np.maximum(x @ w[2 * i : 2 * i + 2], 0) for i in range(2)]
    probability = expit(neurons[0] * w[4])  # the second neuron's output is removed
    v = torch.tensor([[1, 1, 1, 1, 1, 0]], dtype=torch.float64)
    right = np.where(net.y.numpy() == 1, probability, 1 - probability)
    assert float(net.whole(v)) == pytest.approx(-np.log(right).mean())


@pytest.mark.parametrize("make", [theory.logistic, theory.two_layers])
def test_rows_of_their_own_are_scored_like_shared_ones(make):
    problem = make()
    v = torch.rand(3, len(problem.w0), dtype=torch.float64)
    own = problem.loss(v, problem.x[:5].expand(3, -1, -1), problem.y[:5].expand(3, -1))
    torch.testing.assert_close(own, problem.loss(v, problem.x[:5], problem.y[:5]))


def test_relaxed_optimum_has_no_way_down():
    # Convex: where every slope points out of the box, or is 0 inside, nothing is lower (Karush, Kuhn, Tucker).
    problem = theory.logistic(12, seed=3)
    v, value = theory.relaxed_optimum(problem)
    mask = v[None].requires_grad_()
    problem.whole(mask).sum().backward()
    slope, inside = mask.grad[0], (v > 0) & (v < 1)
    assert (v >= 0).all() and (v <= 1).all() and 0 < inside.sum() < 12
    assert (slope[v == 0] >= 0).all() and (slope[v == 1] <= 0).all() and slope[inside].abs().max() < 1e-6
    assert value <= theory.every_mask(problem)[1][0]


def test_one_problem_is_convex_and_the_other_is_not():
    bent = {}
    for problem in (theory.logistic(12), theory.two_layers(4)):
        one, other = torch.rand(2, 500, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        above = problem.whole((one + other) / 2) - (problem.whole(one) + problem.whole(other)) / 2
        bent[len(problem.x[0])] = int((above > 1e-9).sum())
    assert bent[12] == 0 and bent[2] > 20


def test_no_gradient_of_a_row_exceeds_the_norm_of_the_weights():
    problem = theory.logistic(10)
    v = torch.rand(200, 10, dtype=torch.float64).requires_grad_()
    problem.loss(v, problem.x[:, None], problem.y[:, None]).sum().backward()  # row n under mask n
    assert 0 < v.grad.norm(dim=1).max() <= problem.w0.norm()


def test_descent_is_algorithm_1_and_the_optimiser_s_step():
    one = theory.logistic(5, rows=1)  # one row: every batch is the same
    looks = list(range(1, 21))
    done = theory.descend(one, c=2.0, t_l=1e5, t_s=1.0, looks=looks, runs=1, batch=1)
    assert done.M == pytest.approx(float(done.thetas.abs().max()))
    theta = done.thetas[0, 0]
    twin = torch.nn.Parameter(theta.clone())
    optimiser = masked_optimiser(twin, rule="sgd")
    for step in looks[1:]:
        mask = (theta > 0).double()[None].requires_grad_()
        (grad,) = torch.autograd.grad(one.whole(mask).sum(), mask)
        (theta,) = algorithm_1(theta, [grad[0]], 2.0 / math.sqrt(step), 0.0, 1.0, "sgd")
        twin.grad, optimiser.param_groups[0]["lr"] = grad[0].clone(), 2.0 / math.sqrt(step)
        optimiser.step()
        torch.testing.assert_close(done.thetas[step - 1, 0], theta)
        torch.testing.assert_close(twin.detach(), theta)


def test_descents_differ_by_run_and_seed_and_stay_below_the_bound():
    problem = theory.logistic(8)
    looks = [1, 10, 100, 1000]
    done, other = (theory.descend(problem, 1.0, 4.0, 4.0, looks, runs=8, seed=seed) for seed in (0, 1))
    assert not torch.equal(done.thetas[:, 0], done.thetas[:, 1]) and not torch.equal(done.thetas, other.thetas)
    assert torch.equal(done.thetas, theory.descend(problem, 1.0, 4.0, 4.0, np.array(looks), runs=8).thetas)
    lowest = theory.relaxed_optimum(problem)[1]
    gaps = torch.stack([problem.whole((4 * theta).sigmoid()) for theta in done.thetas]).mean(1) - lowest
    limit = theory.bound(np.array(looks), 1.0, float(problem.w0.norm()), theory.constant(4, 4, done.M))
    assert (gaps > 0).all() and (gaps.numpy() < limit).all() and gaps[-1] < gaps[0] / 5


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: theory.bound(0, 1, 1, 1), "T counts steps and must be at least 1 and finite, got 0"),
        (lambda: theory.bound(9, 0, 1, 1), "c must be finite and positive, got 0"),
        (lambda: theory.bound(9, 1, -1, 1), "G must be finite and not negative, got -1"),
        (lambda: theory.bound(9, 1, 1, math.nan), "C must be finite and not negative, got nan"),
        (
            lambda: theory.bound(np.array([9, math.inf]), 1, 1, 1),
            "T counts steps and must be at least 1 and finite, got inf",
        ),
        (lambda: theory.bound(9, math.inf, 1, 1), "c must be finite and positive, got inf"),
        (lambda: theory.constant(0, 1, 1), "t must be finite and positive, got 0"),
        (lambda: theory.gmax(1, -1), "M must be finite and not negative, got -1"),
        (lambda: theory.logistic(15), "whole number in 1 ... 14, got 15"),
        (lambda: theory.logistic("ten"), "whole number in 1 ... 14, got 'ten'"),
        (lambda: theory.two_layers(5), "whole number in 1 ... 14, got 15"),
        (lambda: theory.descend(theory.logistic(2), 1, 1, 1, [], 1), "one or more"),
        (lambda: theory.descend(theory.logistic(2), 1, 1, 1, [5, 2], 1), "rising whole numbers of steps"),
        (lambda: theory.descend(theory.logistic(2), 1, 1, 0, [1], 1), "t_s must be finite and positive, got 0"),
        (lambda: theory.descend(theory.logistic(2), math.inf, 1, 1, [1], 1), "c must be finite and positive, got inf"),
        (lambda: theory.descend(theory.logistic(2), 1, 1, 1, [1.5], 1), "rising whole numbers of steps"),
        (
            lambda: theory.descend(theory.logistic(2), 1, 1, 1, [1], 1.5),
            "runs must be a whole number, at least 1, got 1.5",
        ),
        (lambda: theory.logistic(True), "whole number in 1 ... 14, got True"),
        (lambda: theory.logistic(3, rows=0), "rows must be a whole number, at least 1, got 0"),
        (lambda: theory.two_layers(2, rows=-1), "rows must be a whole number, at least 1, got -1"),
    ],
)
def test_nonsense_is_refused_in_a_sentence(call, said):
    with pytest.raises(ValueError, match=said):
        call()
