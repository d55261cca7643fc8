"""Sparse layers compute what dense ones do, the faster of the two is chosen, and what cannot be is refused."""

import copy
import itertools
import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast, pipeline

from adaprune.deploy import MaskedEncoder, apply_mask, load_mask, save_mask
from adaprune.deploy.runtime import compact, set_runtime, sparse
from adaprune.deploy.runtime.sparse import BLOCK, SIZES, ChosenLinear, PlacedLinear, SparseLinear, sparse_at
from adaprune.masks import maskable
from adaprune.training import AdaptationHead, AdaptedModel, Encoder, load_encoder
from tests import tiny
from tests.deploy.test_compact import masked
from tests.test_families import FAMILIES, REFUSED, made


def linear(outputs: int, inputs: int, density: float, bias: bool = True) -> nn.Linear:
    """A layer with independent kept weights, and an empty row and column."""
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs, bias).requires_grad_(False)
    layer.weight.mul_(torch.rand(outputs, inputs) < density)
    layer.weight[0], layer.weight[:, -1] = 0, 0
    return layer


@pytest.fixture
def mask(tmp_path):
    """Makes the mask of a family's tiny encoder, and its file's content."""

    def make(family: str = "bert", sparsity: float = 0.8):
        encoder = tiny.encoder(family)
        generator = torch.Generator().manual_seed(1)
        masks = {
            name: torch.rand(module.weight.shape, generator=generator) >= sparsity
            for name, module in maskable(encoder).items()
        }
        torch.manual_seed(0)
        head = AdaptationHead(encoder.config.num_hidden_layers, 32, 2).state_dict()
        return load_mask(save_mask(tmp_path / f"{family}.safetensors", masks, head, {"labels": ["no", "yes"]}, encoder))

    return make


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_the_product_is_the_dense_one(density, turned):
    for outputs, inputs in ((48, 32), (32, 48), (1, 5), (7, 3)):
        dense = linear(outputs, inputs, density)
        fast = SparseLinear(dense, turned)
        for shape in ((1, 1), (2, 3), (33,), (2 * BLOCK, 1), (2 * BLOCK + 1,), (5, 77)):
            x = torch.randn(*shape, inputs)
            torch.testing.assert_close(fast(x), dense(x), atol=1e-5, rtol=1e-5)
            other = x.transpose(0, -2).contiguous().transpose(0, -2)  # another layout of the same numbers
            torch.testing.assert_close(fast(other), dense(x), atol=1e-5, rtol=1e-5)
    without = linear(9, 8, 0.5, bias=False)
    x = torch.randn(4, 8)
    torch.testing.assert_close(SparseLinear(without)(x), without(x))


@pytest.mark.parametrize("dtype", sparse.DTYPES)
def test_every_dtype_of_the_kernel(dtype):
    dense = linear(40, 30, 0.3).to(dtype)
    x = torch.randn(5, 30, dtype=dtype)
    torch.testing.assert_close(SparseLinear(dense)(x), dense(x), atol=5e-2 if dtype.itemsize == 2 else 1e-5, rtol=2e-2)


def test_placed_outputs_and_inputs():
    """By hand: outputs 1 and 3 of 5, inputs 0 and 2 of 4."""
    weight, bias = torch.tensor([[1.0, 2.0], [0.0, 4.0]]), torch.tensor([10.0, 20.0])
    rows, columns = torch.tensor([1, 3]), torch.tensor([0, 2])
    placed = PlacedLinear(weight, bias, rows=rows, gives=5, columns=columns, reads=4)
    x = torch.tensor([[1.0, 7.0, 3.0, 7.0]])
    expected = torch.tensor([[0.0, 1 + 6 + 10, 0.0, 12 + 20, 0.0]])
    for layer in (placed, SparseLinear(placed), SparseLinear(placed, turned=True), copy.deepcopy(placed)):
        assert torch.equal(layer(x), expected)
    assert torch.equal(PlacedLinear(weight, bias)(x[:, :2]), nn.functional.linear(x[:, :2], weight, bias))
    assert PlacedLinear(torch.zeros(2, 0), bias)(torch.zeros(3, 0)).tolist() == [[10.0, 20.0]] * 3


@pytest.mark.parametrize("runtime", ["sparse", "auto"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_logits_are_those_of_dense(family, runtime, mask, monkeypatch):
    made = mask(family)
    pretend(monkeypatch, lambda tokens: 2.0 if tokens < 100 else 0.5)  # so that `auto` takes both ways
    dense, fast = apply_mask(tiny.encoder(family), made), apply_mask(tiny.encoder(family), made, runtime=runtime)
    kinds = {type(module) for module in fast.encoder.modules()}
    assert (ChosenLinear in kinds) == (runtime == "auto") and SparseLinear in kinds
    for batch in (tiny.batch(), tiny.batch(rows=50)):
        for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
            with mode():
                torch.testing.assert_close(fast(**batch).logits, dense(**batch).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in REFUSED])
def test_every_known_family_has_every_runtime(family, tmp_path, monkeypatch):
    """Alone and served: the logits of dense, and in half precision too, which T5 asks a layer's weight for."""
    pretend(monkeypatch, lambda tokens: 2.0 if tokens < 100 else 0.5)
    folder, generator = made(family, tmp_path / "m"), torch.Generator().manual_seed(1)
    base = load_encoder(folder).model
    masks = {n: torch.rand(m.weight.shape, generator=generator) < 0.3 for n, m in maskable(base).items()}
    torch.manual_seed(0)
    head = AdaptationHead(base.config.num_hidden_layers, base.config.hidden_size, 2, "linear").state_dict()
    kept = load_mask(save_mask(tmp_path / "a.safetensors", masks, head, {"labels": ["a", "b"]}, base), base=base)
    models = {runtime: apply_mask(load_encoder(folder).model, kept, runtime) for runtime in sparse.RUNTIMES}
    for runtime in ("dense", "sparse"):
        models[f"served, {runtime}"] = MaskedEncoder(load_encoder(folder), runtime=runtime)
        models[f"served, {runtime}"].add_task("a", kept)
    batches = tiny.batch(), tiny.batch(rows=50)
    with torch.inference_mode():
        for name, model in models.items():
            for batch in batches:
                expected = models["dense"](**batch).logits
                torch.testing.assert_close(model(**batch).logits, expected, atol=1e-4, rtol=1e-4, msg=name)
        half = [models[runtime].to(torch.bfloat16)(**batches[0]).logits for runtime in sparse.RUNTIMES]
    for found in half[1:]:
        torch.testing.assert_close(found, half[0], atol=5e-2, rtol=5e-2)


def test_auto_does_not_train_where_it_is_dense_either(mask, monkeypatch):
    """A dense layer that learned would leave its sparse twin behind."""
    pretend(monkeypatch, lambda tokens: 2.0 if tokens < 100 else 0.5)
    model = apply_mask(tiny.encoder(), mask(), runtime="auto")
    many = tiny.batch(rows=50)
    with torch.enable_grad():
        model.head.requires_grad_(True)
        assert model(**many).logits.requires_grad  # a head may be trained
        model.requires_grad_(True)
        with pytest.raises(RuntimeError, match="computes and does not train: load the model again with 'dense'"):
            model(**many)


def test_unmasked_matrices_stay_dense(mask):
    made = mask()
    name = next(iter(made.masks))
    made.masks[name][:] = True
    encoder = apply_mask(tiny.encoder(), made, runtime="sparse").encoder
    assert type(encoder.get_submodule(name.removesuffix(".weight"))) is nn.Linear
    assert sum(isinstance(module, SparseLinear) for module in encoder.modules()) == len(made.masks) - 1


@pytest.mark.parametrize("family", tiny.FIVE)
@pytest.mark.parametrize("runtime", ["sparse", "auto"])
def test_a_compact_model_can_be_sparse(family, runtime, monkeypatch):
    pretend(monkeypatch, lambda tokens: 2.0 if tokens < 100 else 0.5)
    for sparsity in (0.5, 0.9, 0.999):
        model = masked(family, sparsity)
        fast = set_runtime(compact(model), runtime)
        for batch in (tiny.batch(), tiny.batch(rows=50)):
            with torch.inference_mode():
                torch.testing.assert_close(fast(**batch).logits, model(**batch).logits, atol=1e-4, rtol=0)


def test_threads_make_no_difference():
    model = set_runtime(masked(sparsity=0.8), "sparse")
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with torch.inference_mode():
                found.append(model(**tiny.batch(rows=50)).logits)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_it_serves_a_pipeline(mask):
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "a", "good", "film"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    texts, made, found = ["a good film", "film"], mask(), []
    for runtime in ("dense", "sparse"):
        model = apply_mask(tiny.encoder(), made, runtime=runtime)
        found.append(pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")(texts))
    small = set_runtime(compact(apply_mask(tiny.encoder(), made)), "sparse")
    found.append(pipeline("text-classification", model=small, tokenizer=tokenizer, device="cpu")(texts, batch_size=2))
    for answers in found[1:]:
        assert [one["label"] for one in answers] == [one["label"] for one in found[0]]
        assert [one["score"] for one in answers] == pytest.approx([one["score"] for one in found[0]], abs=1e-4)
    assert {one["label"] for one in found[0]} <= {"no", "yes"}


def test_memory_is_what_is_said():
    """8 bytes a kept weight, 4 an output for where its weights end (and 4 more), 4 an output for the bias."""
    dense = linear(64, 48, 0.2)
    kept = int((dense.weight != 0).sum())
    stored = sum(buffer.numel() * buffer.itemsize for buffer in SparseLinear(dense).buffers())
    assert stored == 8 * kept + 4 * (64 + 1) + 4 * 64


def pretend(monkeypatch, faster) -> None:
    """Lets the sparse product seem as much faster as ``faster(tokens)`` says."""

    def seconds(module, x):
        return 1.0 / faster(x.shape[1]) if isinstance(module, SparseLinear) else 1.0

    monkeypatch.setattr(sparse, "_seconds", seconds)


@pytest.mark.parametrize(
    "faster, kind",
    [
        (lambda tokens: 1.0, nn.Linear),
        (lambda tokens: 1.09, nn.Linear),
        (lambda tokens: 1.11, SparseLinear),
        (lambda tokens: 2.0 if tokens < 100 else 0.5, ChosenLinear),
    ],
)
def test_auto_takes_what_was_measured_faster(faster, kind, monkeypatch):
    pretend(monkeypatch, faster)
    model = masked(sparsity=0.9)
    names = [name.removesuffix(".weight") for name in maskable(model.encoder)]
    set_runtime(model, "auto")
    assert {type(model.encoder.get_submodule(name)) for name in names} == {kind}


def test_auto_decides_again_for_each_number_of_tokens(monkeypatch):
    pretend(monkeypatch, lambda tokens: 2.0 if tokens < 100 else 0.5)
    model = masked(sparsity=0.9)
    set_runtime(model, "auto")
    chosen = next(module for module in model.encoder.modules() if isinstance(module, ChosenLinear))
    asked = []
    for way in ("dense", "sparse"):
        getattr(chosen, way).register_forward_hook(lambda *_, way=way: asked.append(way))
    for tokens in (4, 39, 40, 41, 128, 1000):
        chosen(torch.zeros(tokens, chosen.sparse.in_features))
    assert asked == ["sparse"] * 3 + ["dense"] * 3


def test_auto_goes_by_the_shortest_times(monkeypatch):
    """Rounds that other work slows down, here most of the dense ones, decide nothing."""
    layer, slow = linear(8, 8, 0.5), itertools.cycle([3.0, 3.0, 1.0, 3.0, 3.0, 3.0, 3.0])
    monkeypatch.setattr(sparse, "_seconds", lambda module, x: next(slow) if module is layer else 0.95)
    assert sparse.wins_of({"a": (layer, SparseLinear(layer))}) == {"a": (False,) * len(SIZES)}


@pytest.mark.parametrize("threads, clock", [(1, "thread_time"), (2, "perf_counter")])
def test_one_thread_is_measured_by_the_time_of_the_processor(threads, clock, monkeypatch):
    ticks = {name: itertools.count(step=step) for name, step in (("thread_time", 1), ("perf_counter", 2))}
    monkeypatch.setattr(sparse.time, "thread_time", lambda: next(ticks["thread_time"]))
    monkeypatch.setattr(sparse.time, "perf_counter", lambda: next(ticks["perf_counter"]))
    monkeypatch.setattr(sparse.torch, "get_num_threads", lambda: threads)
    assert sparse._seconds(nn.Identity(), torch.zeros(1)) == {"thread_time": 1, "perf_counter": 2}[clock]


def test_between_two_sizes_it_was_ahead_at_both():
    assert SIZES == (4, 12, 40, 128)
    wins = (False, True, True, False)
    taken = [tokens for tokens in (1, 4, 8, 12, 13, 30, 40, 41, 127, 128, 5000) if sparse_at(tokens, wins)]
    assert taken == [12, 13, 30, 40]
    assert sparse_at(1, (True,) * 4) and sparse_at(5000, (True,) * 4)
    assert not sparse_at(2, (False, True, True, True)) and sparse_at(999, (False, True, True, True))


def test_training_is_refused(mask):
    model = apply_mask(tiny.encoder(), mask(), runtime="sparse")
    model(**tiny.batch(), labels=torch.tensor([0, 1, 0])).loss.backward()  # the head alone can be trained
    model.encoder.requires_grad_(True)
    with pytest.raises(RuntimeError, match="computes and does not train"):
        model(**tiny.batch())
    with torch.inference_mode():
        assert math.isfinite(float(model(**tiny.batch()).logits.sum()))


def test_other_dtypes_and_autocast_are_refused(mask):
    with pytest.raises(ValueError, match="float16, the model is torch.float8_e4m3fn"):
        SparseLinear(linear(8, 8, 0.5).to(torch.float8_e4m3fn))
    with pytest.raises(ValueError, match="on a CPU in float32, .*torch.float32 on meta"):
        SparseLinear(nn.Linear(3, 3, device="meta"))
    fast = SparseLinear(linear(8, 8, 0.5))
    with pytest.raises(TypeError, match="the input is torch.float64 on cpu: convert the whole model"):
        fast(torch.zeros(1, 8, dtype=torch.float64))
    model = apply_mask(tiny.encoder(), mask(), runtime="sparse")
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match="leave autocast off"):
        model(**tiny.batch())
    half = model.to(torch.bfloat16)(**tiny.batch()).logits
    torch.testing.assert_close(
        half.float(), apply_mask(tiny.encoder(), mask())(**tiny.batch()).logits, atol=0.1, rtol=0
    )


def test_what_is_refused_changes_nothing(mask):
    encoder = tiny.encoder()
    with pytest.raises(ValueError, match="runtime must be one of dense, sparse, auto, got 'fast'"):
        apply_mask(encoder, mask(), runtime="fast")
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), tiny.encoder().parameters(), strict=True))
    model = apply_mask(encoder, mask(), runtime="sparse")
    with pytest.raises(ValueError, match="sparse already"):
        set_runtime(model, "auto")
    with pytest.raises(ValueError, match="another base"):
        apply_mask(model, mask())
    assert set_runtime(model, "dense") is model
    served = tiny.encoder()
    MaskedEncoder(Encoder(served, None, "tiny", "random"))
    with pytest.raises(ValueError, match="serve many tasks"):
        set_runtime(AdaptedModel.for_task(served, 2), "sparse")


def test_measuring_draws_no_random_numbers(mask):
    made, before = mask(), torch.get_rng_state()
    encoder = tiny.encoder()
    torch.set_rng_state(before)
    apply_mask(encoder, made, runtime="auto")
    assert torch.equal(torch.get_rng_state(), before)


def test_no_rows_at_all():
    layer = linear(6, 5, 0.5)
    for turned in (False, True):
        assert SparseLinear(layer, turned)(torch.zeros(0, 3, 5)).shape == (0, 3, 6)
