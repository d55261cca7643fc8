"""Directions of a step by hand, and the state that each rule makes for itself."""

import math

import pytest
import torch

from adaprune.masks.steps import (
    AVERAGE,
    RULES,
    adafactor_direction,
    adam_direction,
    direction,
    new_state,
    sgd_direction,
)

BETAS = (0.9, 0.999)


def test_adam_direction_by_hand():
    # First step: m_hat = g, v_hat = g^2, so the direction is the sign. Second, g = 1 then 3 (betas 0.5, 0.75):
    # m = 0.25 + 1.5 = 1.75, m_hat = 1.75 / 0.75; v = 0.1875 + 2.25 = 2.4375, v_hat = 2.4375 / 0.4375.
    state = {"step": 1, "exp_avg": torch.zeros(1), "exp_avg_sq": torch.zeros(1)}
    assert float(adam_direction(torch.tensor([1.0]), state, (0.5, 0.75), 0.0)) == pytest.approx(1.0)
    state["step"] = 2
    expected = (1.75 / 0.75) / math.sqrt(2.4375 / 0.4375)
    assert float(adam_direction(torch.tensor([3.0]), state, (0.5, 0.75), 0.0)) == pytest.approx(expected)


def test_adafactor_direction_by_hand():
    # First step, no first moment: row means of g^2 are (5, 25), column means (5, 25), their mean 15, so
    # v_hat = r_i c_j / 15 = ((5/3, 25/3), (25/3, 125/3)).
    grad = torch.tensor([[1.0, 3.0], [-3.0, math.sqrt(41)]])
    state = {"step": 1, "row_square": torch.zeros(2), "column_square": torch.zeros(2)}
    found = adafactor_direction(grad.clone(), state, (0.0, 0.75), 0.0)
    torch.testing.assert_close(found, grad / torch.tensor([[5 / 3, 25 / 3], [25 / 3, 125 / 3]]).sqrt())
    torch.testing.assert_close(state["row_square"], torch.tensor([5.0, 25.0]) / 4)


def test_each_rule_keeps_what_it_needs_and_no_more():
    weight = torch.zeros(4, 3)
    states = {rule: new_state(weight, rule, 0.9) for rule in RULES}
    assert [state.pop("step") for state in states.values()] == [0, 0, 0]
    shapes = {rule: {name: tuple(value.shape) for name, value in state.items()} for rule, state in states.items()}
    assert shapes == {
        "adam": {"exp_avg": (4, 3), "exp_avg_sq": (4, 3)},
        "sgd": {},
        "adafactor": {"exp_avg": (4, 3), "row_square": (4,), "column_square": (3,)},
    }
    assert states["adafactor"]["exp_avg"].dtype == torch.bfloat16 == AVERAGE[torch.float32]
    assert "exp_avg" not in new_state(weight, "adafactor", 0.0)  # the first moment is the gradient then


@pytest.mark.parametrize("rule", RULES)
def test_the_direction_is_that_of_the_rule_the_state_was_made_for(rule):
    grad = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one, other = ({**new_state(grad, rule, 0.9), "step": 1} for _ in range(2))
    expected = {
        "adam": lambda: adam_direction(grad.clone(), one, BETAS, 1e-12),
        "sgd": lambda: sgd_direction(grad, one),
        "adafactor": lambda: adafactor_direction(grad.clone(), one, BETAS, 1e-12),
    }[rule]()
    assert torch.equal(direction(grad.clone(), other, BETAS, 1e-12), expected)
