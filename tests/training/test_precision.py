"""bfloat16 on processors without instructions for it: the same numbers as with them, and not ten times as slow."""

import warnings

import numpy as np
import pytest
import torch

import adaprune
from adaprune.training.precision import precision_for, products_of

PRODUCTS = {
    "mm": lambda x, y: x @ y,
    "addmm": lambda x, y: torch.addmm(x[0, :5], x, y),
    "bmm": lambda x, y: torch.stack([x, x]) @ torch.stack([y, -y]),
    "baddbmm": lambda x, y: torch.baddbmm(x[:, :5].expand(2, 7, 5), torch.stack([x, x]), torch.stack([y, y]), beta=0.5),
    "linear": lambda x, y: torch.nn.functional.linear(x, y.t(), x[0, :5]),
    "linear of a batch": lambda x, y: torch.nn.functional.linear(x.reshape(1, 7, 9), y.t()),
}


@pytest.fixture
def without_instructions(monkeypatch):
    monkeypatch.setattr("adaprune.training.precision.lacks_bf16", lambda: True)


@pytest.fixture
def matrices():
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=draw).bfloat16() for shape in ((7, 9), (9, 5))]


@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
@pytest.mark.parametrize("inference", [True, False])
def test_a_product_is_that_of_exact_numbers_rounded_once(product, inference, matrices, without_instructions):
    exact = product(*(matrix.double() for matrix in matrices))
    with products_of("bf16"), torch.inference_mode(inference):
        rounded = product(*matrices)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, exact.to(torch.bfloat16))


def test_gradients_are_computed_in_float32_too(matrices, without_instructions):
    x, y = (matrix.requires_grad_() for matrix in matrices)
    with products_of("bf16"):
        (x @ y).sum().backward()
    assert torch.equal(x.grad, y.detach().double().sum(1).expand(7, 9).to(torch.bfloat16))
    assert torch.equal(y.grad, x.detach().double().sum(0)[:, None].expand(9, 5).to(torch.bfloat16))


@pytest.mark.parametrize("precision", ["fp32", "auto", "bf16"])
def test_other_precisions_and_processors_keep_torchs_products(precision, matrices, monkeypatch):
    monkeypatch.setattr("adaprune.training.precision.lacks_bf16", lambda: precision != "bf16")
    with products_of(precision) as mode:
        assert mode is None
    with products_of("bf16"):  # a float32 product in the other mode is torch's own
        single = matrices[0].float() @ matrices[1].float()
    assert single.dtype == torch.float32 and torch.equal(single, matrices[0].float() @ matrices[1].float())


def test_a_run_learns_the_same_with_and_without_instructions(ask, monkeypatch):
    """Two such runs differ by the order of sums; float32 differs from both by bfloat16's rounding."""
    losses = {}
    for name, precision, lacks in (("with", "bf16", False), ("without", "bf16", True), ("fp32", "fp32", False)):
        monkeypatch.setattr("adaprune.training.precision.lacks_bf16", lambda lacks=lacks: lacks)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a machine without instructions
            record = adaprune.adapt(ask(precision=precision, results_dir=name))
        losses[name] = np.array([point["loss"] for point in record["curve"] if "loss" in point])
    assert 0 < np.abs(losses["with"] - losses["fp32"]).max()
    np.testing.assert_allclose(losses["without"], losses["with"], atol=2e-3)


def test_a_family_that_cannot_compute_in_half_precision_is_told_or_computes_in_float32(monkeypatch):
    with pytest.raises(ValueError, match="precision='bf16' does not work with deberta models .*: use precision='fp32'"):
        precision_for("bf16", "deberta")
    assert precision_for("bf16", "deberta-v2") == precision_for("bf16", "bert") == "bf16"
    assert precision_for("fp32", "deberta") == "fp32"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    assert (precision_for("auto", "deberta"), precision_for("auto", "bert")) == ("fp32", "auto")
