"""The head by hand, the loss, and the whole model on every family."""

import math

import pytest
import torch

from adaprune.masks.layers import attach, maskable, set_masks
from adaprune.training.heads import (
    AdaptationHead,
    AdaptedModel,
    distillation_losses,
    loss_of,
    missing_label,
    task_losses,
)
from tests.tiny import FAMILIES, batch, encoder


def test_head_by_hand():
    # Two layers of width 2, mixed 1/4 : 3/4. z = (4, 8) / 4 + 3 (0, -4) / 4 = (1, -1); U z + b = (-1, 1) + (0, 1);
    # relu = (0, 2); y = 3 * 2 + 0.5.
    head = AdaptationHead(layers=2, width=2, outputs=1)
    with torch.no_grad():
        head.mix.copy_(torch.tensor([0.0, math.log(3)]))
        head.hidden.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        head.hidden.bias.copy_(torch.tensor([0.0, 1.0]))
        head.output.weight.copy_(torch.tensor([[7.0, 3.0]]))
        head.output.bias.fill_(0.5)
    first = torch.tensor([[[4.0, 8.0], [9.0, 9.0]]])  # (1 sentence, 2 tokens, width 2): only token 0 counts
    second = torch.tensor([[[0.0, -4.0], [5.0, 5.0]]])
    torch.testing.assert_close(head((first, second)), torch.tensor([[6.5]]))


def test_a_fresh_head_weighs_all_layers_alike():
    head = AdaptationHead(layers=3, width=4, outputs=2)
    layers = [torch.randn(2, 5, 4) for _ in range(3)]
    mean = torch.stack(layers).mean(0)
    torch.testing.assert_close(head(tuple(layers)), head((mean, mean, mean)))


def test_a_linear_head_by_hand():
    # Halves of (4, 8) and (0, -4) are (2, 2); y = 7 * 2 + 3 * 2 + 0.5, and no ReLU: with -z it is -20 + 0.5.
    head = AdaptationHead(layers=2, width=2, outputs=1, kind="linear")
    with torch.no_grad():
        head.output.weight.copy_(torch.tensor([[7.0, 3.0]]))
        head.output.bias.fill_(0.5)
    states = (torch.tensor([[[4.0, 8.0]]]), torch.tensor([[[0.0, -4.0]]]))
    torch.testing.assert_close(head(states), torch.tensor([[20.5]]))
    torch.testing.assert_close(head(tuple(-state for state in states)), torch.tensor([[-19.5]]))
    assert set(head.state_dict()) == {"mix", "output.weight", "output.bias"}


@pytest.mark.parametrize(
    ("outputs", "kind", "said"), [(2, "MLP", "mlp, linear, got 'MLP'"), (0, "mlp", "at least 1, got 0")]
)
def test_no_such_head(outputs, kind, said):
    with pytest.raises(ValueError, match=said):
        AdaptationHead(2, 16, outputs, kind=kind)


def test_head_has_the_papers_size():
    # 12 mixing weights, 768 * 768 + 768 hidden, 768 * 2 + 2 out: about 0.5 % of BERT-base's 109.5 million.
    size = sum(parameter.numel() for parameter in AdaptationHead(12, 768, 2).parameters())
    assert size == 12 + 590_592 + 1_538
    assert size / 109_482_240 == pytest.approx(0.005, abs=0.0005)


@pytest.mark.parametrize("outputs", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_model_on_every_family(family, outputs):
    torch.manual_seed(0)
    model = AdaptedModel.for_task(encoder(family), outputs)
    assert (model.head.mix.numel(), model.head.hidden.in_features) == (2, 32)
    labels = torch.tensor([0, 0, 0]) if outputs == 1 else torch.tensor([0, outputs - 1, 1])
    found = model(**batch(), labels=labels)
    assert found.logits.shape == (3, outputs) and found.loss.shape == ()
    found.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.head.parameters())
    assert model(**batch()).loss is None


def test_logits_depend_on_every_layer_but_not_on_the_embedding_layer_directly():
    body = encoder()
    model = AdaptedModel.for_task(body, 2)
    states = body(**batch(), output_hidden_states=True).hidden_states
    assert len(states) == 3
    torch.testing.assert_close(model(**batch()).logits, model.head(states[1:]))


def test_padding_does_not_change_the_logits():
    model = AdaptedModel.for_task(encoder(), 2)
    ids = batch()["input_ids"]
    short = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    padded = torch.cat([ids, torch.zeros(3, 4, dtype=torch.long)], dim=1)
    attention = torch.cat([torch.ones_like(ids), torch.zeros(3, 4, dtype=torch.long)], dim=1)
    torch.testing.assert_close(model(input_ids=padded, attention_mask=attention).logits, short, rtol=1e-4, atol=1e-5)


def test_losses_by_hand():
    # Squared errors 1 and 4; cross-entropy of even odds is ln 2.
    values, labels = torch.tensor([[1.0], [2.0]]), torch.tensor([2.0, 4.0])
    assert task_losses(values, labels).tolist() == [1.0, 4.0]
    assert float(loss_of(values, labels)) == 2.5
    assert task_losses(torch.zeros(3, 2), torch.tensor([0, 1, 1])).tolist() == pytest.approx([math.log(2)] * 3)
    assert loss_of(values, None) is None


def test_regression_takes_whole_numbers_and_does_not_broadcast():
    # (batch, 1) against (batch,) would give a (batch, batch) matrix of errors.
    logits = torch.tensor([[1.0], [2.0], [3.0]])
    assert task_losses(logits, torch.tensor([1, 2, 3])).tolist() == [0.0, 0.0, 0.0]
    assert task_losses(logits[:1], torch.tensor([3.0])).tolist() == [4.0]


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_row_without_a_label_learns_from_its_teacher_alone(outputs):
    logits = torch.randn(2, outputs, generator=torch.Generator().manual_seed(0), requires_grad=True)
    teacher = torch.ones(2, outputs).cumsum(1)
    known = 0.5 if outputs == 1 else 2
    labels = torch.tensor([known, missing_label(classes=outputs > 1)])
    losses = [loss_of(logits[[row]], labels[[row]], teacher[[row]]) for row in (0, 1)]
    of_labels, of_teacher = task_losses(logits, labels), distillation_losses(logits, teacher)
    assert losses[0].item() == pytest.approx((of_labels[0] + of_teacher[0]).item() / 2)
    assert losses[1].item() == pytest.approx(of_teacher[1].item())
    both = loss_of(logits, labels, teacher)
    assert both.item() == pytest.approx((losses[0] + losses[1]).item() / 2)
    both.backward()  # through no NaN
    assert torch.isfinite(logits.grad).all() and (logits.grad != 0).all()


def test_loss_is_computed_in_float32():
    logits = torch.tensor([[300.0], [1.0]], dtype=torch.float16, requires_grad=True)
    loss = loss_of(logits, torch.tensor([0.0, 0.0]))  # 90,000 overflows float16
    assert loss.dtype == torch.float32 and float(loss.detach()) == pytest.approx(45_000.5)
    odds = torch.tensor([[3.0, 0.0]], dtype=torch.bfloat16)
    entropy = loss_of(odds, torch.tensor([0]))
    assert entropy.dtype == torch.float32 and float(entropy) == pytest.approx(math.log(1 + math.exp(-3)), rel=1e-5)


def test_autocast_gives_a_float32_loss_near_the_exact_one():
    torch.manual_seed(0)
    model = AdaptedModel.for_task(encoder(), 2).train()
    attach(model.encoder, {name: m.weight.detach().abs() for name, m in maskable(model.encoder).items()})
    model.eval()
    labels = torch.tensor([0, 1, 1])
    exact = model(**batch(), labels=labels).loss.detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(**batch(), labels=labels)
    found.loss.backward()
    assert found.loss.dtype == torch.float32
    assert float(found.loss.detach()) == pytest.approx(float(exact), abs=0.05)
    assert {p.grad.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_dropout_is_on_only_where_the_encoder_is_trained():
    model = AdaptedModel.for_task(encoder(), 2)
    masks = {name: torch.ones_like(m.weight, dtype=torch.bool) for name, m in maskable(model.encoder).items()}
    assert model.train().encoder.training  # all weights: fine-tuning
    set_masks(model.encoder, masks)
    assert model.train().head.training and not model.encoder.training
    assert not any(module.training for module in model.encoder.modules())
    first, second = (model(**batch()).logits for _ in range(2))
    assert torch.equal(first, second)
    attach(model.encoder, {name: mask.float() for name, mask in masks.items()})
    assert model.train().encoder.training  # theta is trained
    assert not torch.equal(model(**batch()).logits, model(**batch()).logits)
    assert not model.eval().encoder.training


# Pooling.


def linear_head(pooling):
    """y = 7 z_1 + 3 z_2 + 0.5 of two layers mixed 1/4 : 3/4."""
    head = AdaptationHead(layers=2, width=2, outputs=1, kind="linear", pooling=pooling)
    with torch.no_grad():
        head.mix.copy_(torch.tensor([0.0, math.log(3)]))
        head.output.weight.copy_(torch.tensor([[7.0, 3.0]]))
        head.output.bias.fill_(0.5)
    return head


LAYERS = (  # two sentences of three tokens; the second one's last two are padding, and far away
    torch.tensor([[[4.0, 8.0], [0.0, 0.0], [2.0, -2.0]], [[1.0, 1.0], [1e3, -1e3], [9e5, 9e5]]]),
    torch.tensor([[[0.0, -4.0], [4.0, 0.0], [2.0, 1.0]], [[-1.0, 3.0], [-5e4, 1e3], [7.0, 1e6]]]),
)
PRESENT = torch.tensor([[1, 1, 1], [1, 0, 0]])


def test_mean_pooling_by_hand_leaves_padding_out():
    # Sentence 1: means (2, 2) and (2, -1); z = (2, 2) / 4 + 3 (2, -1) / 4 = (2, -0.25); y = 14 - 0.75 + 0.5.
    # Sentence 2: its only token, (1, 1) and (-1, 3); z = (-0.5, 2.5); y = -3.5 + 7.5 + 0.5.
    found = linear_head("mean")(LAYERS, PRESENT)
    torch.testing.assert_close(found, torch.tensor([[13.75], [4.5]]))
    torch.testing.assert_close(linear_head("mean")(LAYERS, PRESENT.bool()), found)
    torch.testing.assert_close(linear_head("mean")(tuple(layer[:1] for layer in LAYERS)), found[:1])  # all present


def test_cls_pooling_by_hand_reads_no_other_token():
    # Sentence 1: (4, 8) / 4 + 3 (0, -4) / 4 = (1, -1); y = 7 - 3 + 0.5. Sentence 2 as above.
    for mask in (None, PRESENT):
        torch.testing.assert_close(linear_head("cls")(LAYERS, mask), torch.tensor([[4.5], [4.5]]))


def test_a_sentence_of_padding_alone_is_finite():
    found = linear_head("mean")(LAYERS, torch.zeros(2, 3, dtype=torch.long))
    torch.testing.assert_close(found, torch.tensor([[0.5], [0.5]]))


@pytest.mark.parametrize("pooling", ["max", "", "CLS", None, ["cls"], "mean "])
def test_no_such_pooling(pooling):
    with pytest.raises(ValueError, match="pooling must be one of cls, mean, got"):
        AdaptationHead(2, 16, 2, pooling=pooling)
    with pytest.raises(ValueError, match="pooling must be one of cls, mean, got"):
        AdaptedModel.for_task(encoder(), 2, pooling=pooling)


def test_the_default_is_the_papers_and_pooling_is_no_parameter():
    heads = [AdaptationHead(2, 16, 2, pooling=pooling) for pooling in ("cls", "mean")]
    assert AdaptationHead(2, 16, 2).pooling == "cls" and [head.pooling for head in heads] == ["cls", "mean"]
    assert heads[0].state_dict().keys() == heads[1].state_dict().keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_does_not_change_the_logits_of_mean_pooling(family):
    torch.manual_seed(0)
    model = AdaptedModel.for_task(encoder(family), 2, pooling="mean").eval()
    ids = batch()["input_ids"]
    short = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    padded = torch.cat([ids, torch.full((3, 4), model.config.pad_token_id)], dim=1)
    attention = torch.cat([torch.ones_like(ids), torch.zeros(3, 4, dtype=torch.long)], dim=1)
    torch.testing.assert_close(model(input_ids=padded, attention_mask=attention).logits, short, rtol=1e-4, atol=1e-4)
    wrong = model(input_ids=padded, attention_mask=torch.ones_like(attention)).logits
    assert (wrong - short).abs().max() > 1e-3  # padding taken for text does change them


def test_every_token_has_its_share_of_the_gradient_of_a_mean():
    """Of four tokens present each gets a quarter of what the mean gets, and padding nothing."""
    layers = tuple(
        torch.randn(1, 6, 3, generator=torch.Generator().manual_seed(n)).requires_grad_(True) for n in (0, 1)
    )
    head = AdaptationHead(2, 3, 1, kind="linear", pooling="mean")
    head(layers, torch.tensor([[1, 1, 1, 1, 0, 0]])).sum().backward()
    for layer in layers:
        expected = head.output.weight.detach()[0] / 2 / 4
        torch.testing.assert_close(layer.grad[0, :4], expected.expand(4, 3))
        assert not layer.grad[0, 4:].any()


def test_mean_pooling_keeps_half_precision():
    head = AdaptationHead(2, 2, 1, kind="linear", pooling="mean").bfloat16()
    found = head(tuple(layer.clamp(-10, 10).bfloat16() for layer in LAYERS), PRESENT)
    assert found.dtype == torch.bfloat16 and torch.isfinite(found).all()
