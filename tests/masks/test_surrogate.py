"""Eqs. 2 to 4 by hand, and the slope against torch's own derivative."""

import math

import pytest
import torch

from adaprune.masks.surrogate import relaxed_mask, surrogate_gradient, surrogate_slope


def test_relaxed_mask_is_a_step_at_a_large_temperature():
    theta = torch.tensor([-0.01, -1e-3, 0.0, 1e-3, 0.01])
    assert relaxed_mask(theta, 1e5).tolist() == [0, 0, 0.5, 1, 1]
    # sigmoid(2 * 0.5) = 1 / (1 + 1/e)
    assert float(relaxed_mask(torch.tensor(0.5), 2.0)) == pytest.approx(1 / (1 + math.exp(-1)))


def test_surrogate_slope_by_hand():
    # At sigmoid = 3/4 (theta = ln 3): 2 * 3/4 * 1/4 = 3/8 with t = 2 and theta = ln(3) / 2.
    assert float(surrogate_slope(torch.tensor(math.log(3) / 2), 2.0)) == pytest.approx(3 / 8)
    assert float(surrogate_slope(torch.tensor(0.0), 1e-2)) == pytest.approx(0.0025)
    assert surrogate_slope(torch.tensor([-50.0, 50.0, -torch.inf, torch.inf]), 10.0).tolist() == [0, 0, 0, 0]


def test_surrogate_gradient_by_hand():
    # dL/dm = (4, -2, 1) at theta = (0, ln 3, -ln 3), t = 1: times (1/4, 3/16, 3/16).
    theta = torch.tensor([0.0, math.log(3), -math.log(3)])
    found = surrogate_gradient(torch.tensor([4.0, -2.0, 1.0]), theta, 1.0)
    torch.testing.assert_close(found, torch.tensor([1.0, -0.375, 0.1875]))


@pytest.mark.parametrize("temperature", [1e-2, 1.0, 10.0])
def test_surrogate_slope_is_the_derivative_of_the_relaxed_mask(temperature):
    theta = torch.linspace(-3, 3, 61, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(torch.sigmoid(temperature * theta).sum(), theta)
    torch.testing.assert_close(surrogate_slope(theta.detach(), temperature), slope)


def test_theta_is_read_relative_to_the_threshold():
    theta = torch.tensor([-0.3, 0.1, 0.4], dtype=torch.float64)
    for function in (relaxed_mask, surrogate_slope):
        torch.testing.assert_close(function(theta, 7.0, 0.25), function(theta - 0.25, 7.0))


def test_nothing_that_is_handed_in_is_written():
    theta, grad = torch.tensor([-0.3, 0.1]), torch.tensor([2.0, 3.0])
    for temperature in (1.0, 7.0):
        relaxed_mask(theta, temperature)
        surrogate_gradient(grad, theta, temperature)
    assert torch.equal(theta, torch.tensor([-0.3, 0.1])) and torch.equal(grad, torch.tensor([2.0, 3.0]))
