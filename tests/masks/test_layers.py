"""Masked forward and backward passes against torch's own autograd, and exact cuts."""

import copy

import pytest
import torch
from torch.func import functional_call
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

from adaprune.masks.layers import (
    MaskedEmbedding,
    MaskedLinear,
    attach,
    detach,
    maskable,
    masked,
    set_masks,
    thetas_of,
    threshold_of,
)
from adaprune.masks.optim import AdaPrune
from adaprune.training.encoders import tensor_hashes
from tests.tiny import FAMILIES, FIVE, batch, encoder

BOTH = "encoder+embeddings"


def states(model, inputs):
    return model(**inputs, output_hidden_states=True).hidden_states


def random_thetas(model, scope="encoder", seed=1):
    """theta in (-0.5, 0.5): about half of each matrix is pruned at threshold 0."""
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.rand(m.weight.shape, generator=generator) - 0.5 for n, m in maskable(model, scope).items()}


def objective(hidden):
    """A scalar that depends on every layer's output, unequally."""
    weights = torch.linspace(0.5, 1.5, hidden[-1].numel()).view_as(hidden[-1])
    return sum((index * layer * weights).sin().sum() for index, layer in enumerate(hidden[1:], start=1))


def autograd_reference(model, thetas, inputs):
    """Hidden states and dL/d(w0 m) by functional_call on a plain model whose weights are replaced by w0 * m."""
    plain = dict(model.named_parameters())
    products = {n: (plain[n] * (t > 0)).detach().requires_grad_() for n, t in thetas.items()}
    hidden = functional_call(model, products, kwargs={**inputs, "output_hidden_states": True}).hidden_states
    gradients = torch.autograd.grad(objective(hidden), list(products.values()))
    return hidden, dict(zip(products, gradients, strict=True))


@pytest.mark.parametrize("with_theta", [True, False])
def test_biases_that_are_to_learn_get_their_gradients(with_theta):
    """Also beside a fixed mask; theta's own gradients stay what they were."""
    model, inputs = encoder(), batch()
    thetas = random_thetas(model)
    plain = dict(model.named_parameters())
    biases = {name.removesuffix("weight") + "bias" for name in thetas}
    replaced = {n: p.detach() * (thetas[n] > 0) if n in thetas else p.detach().clone() for n, p in plain.items()}
    replaced |= {name: replaced[name].requires_grad_() for name in biases}
    hidden = functional_call(model, replaced, kwargs={**inputs, "output_hidden_states": True}).hidden_states
    expected = dict(zip(biases, torch.autograd.grad(objective(hidden), [replaced[n] for n in biases]), strict=True))
    gradients = []
    for learned in (False, True):
        parameters = attach(model, thetas)
        for theta in parameters.values():
            theta.requires_grad_(with_theta)
        for name in biases if learned else ():
            model.get_parameter(name).requires_grad_()
        if with_theta or learned:
            objective(states(model, inputs)).backward()
        gradients.append([theta.grad for theta in parameters.values()])
    for name in biases:
        torch.testing.assert_close(model.get_parameter(name).grad, expected[name], rtol=1e-4, atol=1e-5, msg=name)
    assert not with_theta or all(map(torch.equal, *gradients))


@pytest.mark.parametrize("scope", ["encoder", BOTH])
@pytest.mark.parametrize("family", FAMILIES)
def test_forward_and_theta_gradients_equal_plain_autograd(family, scope):
    # ALBERT's theta is used in both layers, so its gradient is a sum over them.
    model, inputs = encoder(family), batch()
    thetas = random_thetas(model, scope)
    weights = {name: module.weight.detach().clone() for name, module in maskable(model, scope).items()}
    expected, gradients = autograd_reference(model, thetas, inputs)
    parameters = attach(model, thetas)
    hidden = states(model, inputs)
    for ours, theirs in zip(hidden, expected, strict=True):
        assert torch.equal(ours, theirs)
    objective(hidden).backward()
    assert set(parameters) == set(thetas)
    for name, parameter in parameters.items():
        found = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
        expected_gradient = weights[name] * gradients[name]
        assert expected_gradient.abs().max() > 0, name
        torch.testing.assert_close(found, expected_gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_all_kept_mask_gives_the_base_states_bit_for_bit(family):
    model, inputs = encoder(family), batch()
    base = states(model, inputs)
    set_masks(model, {n: torch.ones(m.weight.shape, dtype=torch.bool) for n, m in maskable(model, BOTH).items()})
    assert all(isinstance(module, MaskedLinear) for n, module in maskable(model).items())
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(states(model, inputs), base, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_pruned_connections_do_not_count(family):
    # Whatever a pruned weight holds, the output is that of a model which holds 0 there.
    model, inputs = encoder(family), batch()
    masks = {name: theta > 0 for name, theta in random_thetas(model, BOTH).items()}
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            zeroed.get_parameter(name).mul_(mask)
            model.get_parameter(name).add_(~mask * 3.0)
    set_masks(model, masks)
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(states(model, inputs), states(zeroed, inputs), strict=True)
    )


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_base_weights_stay_bit_identical_over_20_steps(family, in_backward):
    model = encoder(family)
    before = tensor_hashes(model)
    start = random_thetas(model, BOTH)
    parameters = attach(model, {name: theta.clone() for name, theta in start.items()})
    group = {"params": list(parameters.values()), "masked": True, "threshold": threshold_of(model), "lr": 1e-2}
    optimiser = AdaPrune([group], penalty=1e-4)
    if in_backward:
        optimiser.step_in_backward()
    for step in range(20):
        optimiser.zero_grad()
        objective(states(model, batch(step))).backward()
        optimiser.step()
    assert all(not torch.equal(parameters[name], theta) for name, theta in start.items())
    assert float(threshold_of(model)) == pytest.approx(20e-4)
    assert tensor_hashes(model) == before
    assert tensor_hashes(detach(model)) == before


def test_only_theta_gets_a_gradient():
    model = encoder()
    parameters = attach(model, random_thetas(model, BOTH))
    objective(states(model, batch())).backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {f"{name.removesuffix('weight')}theta" for name in parameters}
    assert all(not p.requires_grad for n, p in model.named_parameters() if not n.endswith(".theta"))


def test_embedding_gradient_is_sparse_and_only_on_the_rows_of_the_batch():
    model, inputs = encoder(), batch()
    theta = attach(model, random_thetas(model, BOTH))["embeddings.word_embeddings.weight"]
    objective(states(model, inputs)).backward()
    assert theta.grad.is_sparse
    assert theta.grad.coalesce().indices()[0].tolist() == inputs["input_ids"].unique().tolist()
    assert theta.grad._values().shape == (inputs["input_ids"].numel(), 32)


def test_all_layers_follow_one_threshold():
    model, inputs = encoder(), batch()
    attach(model, random_thetas(model, BOTH))
    threshold_of(model).fill_(0.25)
    moved = states(model, inputs)
    expected, _ = autograd_reference(encoder(), {n: t - 0.25 for n, t in random_thetas(model, BOTH).items()}, inputs)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(moved, expected, strict=True))
    threshold_of(model).fill_(1.0)
    assert not torch.equal(states(model, inputs)[-1], moved[-1])


def test_a_theta_equal_to_the_threshold_is_pruned():
    weight = torch.tensor([1.0, -2.0, 3.0])
    assert masked(weight, torch.tensor([0.0, 1e-30, -1e-30]), 0.0).tolist() == [0.0, -2.0, 0.0]
    assert masked(weight, torch.tensor([torch.inf, -torch.inf, 0.5]), 0.5).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("per_matrix", [False, True])
def test_without_recovery_exactly_what_is_at_minus_infinity_is_pruned(per_matrix):
    """Wherever the threshold stands, and in no gradient's way: dL/dm is that of the same mask made of plain numbers."""
    model, other, inputs = encoder(), encoder(), batch()
    gone = {name: theta > 0 for name, theta in random_thetas(model, BOTH).items()}
    lowest = torch.finfo(torch.float32).min / 2
    final = {name: torch.full(mask.shape, lowest).masked_fill(mask, -torch.inf) for name, mask in gone.items()}
    parameters = attach(model, final, per_matrix, recovery=False)
    plain = attach(other, {name: (~mask).float() for name, mask in gone.items()}, per_matrix)
    threshold_of(model).fill_(7.0)
    threshold_of(other).fill_(0.5)
    assert torch.equal(states(model, inputs)[-1], states(other, inputs)[-1])
    for made in (model, other):
        objective(states(made, inputs)).backward()
    for name, parameter in parameters.items():
        assert torch.equal(parameter.grad.to_dense(), plain[name].grad.to_dense()), name
    attach(model, {name: theta.detach().clone() for name, theta in plain.items()}, per_matrix)  # and back again
    threshold_of(model).fill_(0.5)
    assert torch.equal(states(model, inputs)[-1], states(other, inputs)[-1])


def test_detach_restores_the_plain_modules():
    model, inputs = encoder(), batch()
    base, names = states(model, inputs), list(model.state_dict())
    kinds = {name: type(module) for name, module in model.named_modules()}
    attach(model, random_thetas(model, BOTH))
    assert any(isinstance(module, MaskedEmbedding) for module in model.modules())
    assert [name for name in model.state_dict() if not name.endswith(".theta")] == names
    assert detach(model) is model
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    assert list(model.state_dict()) == names and thetas_of(model) == {}
    left = [name for name in ("threshold", "theta", "recovery") for m in model.modules() if hasattr(m, name)]
    assert not left
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(states(model, inputs), base, strict=True))


def test_a_copy_has_its_own_threshold_shared_by_its_own_layers():
    model = encoder()
    attach(model, random_thetas(model))
    twin = copy.deepcopy(model)
    threshold_of(twin).fill_(0.3)
    assert float(threshold_of(model)) == 0.0
    assert {float(m.threshold) for m in twin.modules() if isinstance(m, MaskedLinear)} == {0.3}


def test_attaching_again_replaces_the_mask_everywhere():
    model, inputs = encoder(), batch()
    attach(model, random_thetas(model, BOTH))
    name = "encoder.layer.1.output.dense.weight"
    second = {name: random_thetas(model)[name]}
    assert set(attach(model, second)) == {name}
    expected, _ = autograd_reference(encoder(), second, inputs)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(states(model, inputs), expected, strict=True))


def test_a_fixed_mask_has_nothing_to_learn():
    model = encoder()
    masks = {name: theta > 0 for name, theta in random_thetas(model).items()}
    set_masks(model, masks)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    set_masks(model, {name: ~mask for name, mask in masks.items()})
    assert all(torch.equal(theta > 0, ~masks[name]) for name, theta in thetas_of(model).items())


@pytest.mark.parametrize("act", [attach, set_masks])
def test_wrong_names_and_shapes_are_refused_and_leave_the_model_alone(act):
    model = encoder()
    before = {name: (type(module), sorted(module.__dict__)) for name, module in model.named_modules()}
    name = "encoder.layer.0.output.dense.weight"
    good = torch.ones(32, 48)
    with pytest.raises(ValueError, match=r"encoder.layer.9.output.dense.weight cannot be masked in BertModel"):
        act(model, {name: good, "encoder.layer.9.output.dense.weight": good})
    with pytest.raises(ValueError, match=r"encoder.layer.0.output.dense.weight.*\(48, 32\).*\(32, 48\)"):
        act(model, {name: good.t()})
    with pytest.raises(ValueError, match="embeddings.LayerNorm.weight cannot be masked"):
        act(model, {"embeddings.LayerNorm.weight": torch.ones(32)})
    assert {name: (type(module), sorted(module.__dict__)) for name, module in model.named_modules()} == before


def test_unknown_scope_and_a_model_without_linear_layers_are_refused():
    with pytest.raises(ValueError, match="encoder, encoder\\+embeddings, got 'everything'"):
        maskable(encoder(), "everything")
    # GPT-2's layers are Conv1D, with transposed weights.
    decoder = GPT2Model(GPT2Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="GPT2Model has nothing to mask"):
        maskable(decoder)


def test_bert_base_has_72_matrices_and_84934656_weights():
    with torch.device("meta"):
        model = BertModel(BertConfig())
    sizes = [module.weight.numel() for module in maskable(model).values()]
    assert (len(sizes), sum(sizes)) == (72, 84_934_656)
    both = list(maskable(model, BOTH).items())
    assert both[-1][0] == "embeddings.word_embeddings.weight"
    assert both[-1][1].weight.numel() == 30522 * 768 and len(both) == 73


@pytest.mark.parametrize("family", FIVE)
def test_every_linear_layer_of_a_transformer_layer_is_in_scope(family):
    # 4 attention and 2 feed-forward matrices in each of 2 layers: 2 * (4 * 32 * 32 + 2 * 32 * 48).
    sizes = [module.weight.numel() for module in maskable(encoder(family)).values()]
    assert (len(sizes), sum(sizes)) == (12, 14_336)


def test_autocast_computes_in_bfloat16_and_theta_gets_float32_gradients():
    model, inputs = encoder(), batch()
    exact = autograd_reference(model, random_thetas(model, BOTH), inputs)[1]
    weights = {name: module.weight.detach().clone() for name, module in maskable(model, BOTH).items()}
    seen = []
    model.encoder.layer[0].output.dense.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    parameters = attach(model, random_thetas(model, BOTH))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective([layer.float() for layer in states(model, inputs)])
    loss.backward()
    assert seen == [torch.bfloat16]
    for name, parameter in parameters.items():
        found = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
        assert found.dtype == torch.float32 and torch.isfinite(found).all(), name
        cosine = torch.cosine_similarity(found.flatten(), (weights[name] * exact[name]).flatten(), dim=0)
        assert cosine > 0.98, name


@pytest.mark.parametrize("shape", [(32,), (4, 32), (2, 3, 32), (2, 3, 4, 32)])
def test_a_masked_layer_takes_inputs_of_any_rank(shape):
    layer = maskable(model := encoder())["encoder.layer.0.intermediate.dense.weight"]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3), requires_grad=True)
    thetas = random_thetas(model)
    product = (layer.weight * (thetas["encoder.layer.0.intermediate.dense.weight"] > 0)).detach().requires_grad_()
    expected = torch.nn.functional.linear(x, product, layer.bias).square().sum()
    of_x, of_product = torch.autograd.grad(expected, [x, product])
    theta = attach(model, thetas)["encoder.layer.0.intermediate.dense.weight"]
    found = torch.autograd.grad(layer(x).square().sum(), [x, theta])
    torch.testing.assert_close(found[0], of_x)
    torch.testing.assert_close(found[1], of_product * layer.weight)
