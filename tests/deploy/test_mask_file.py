"""Mask files: exact round trips, refused bases, damaged and hostile files, writes that never leave half a file."""

import hashlib
import json
import os
import struct
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save
from torch import nn
from transformers import AutoModel, BertConfig, DistilBertConfig, ElectraConfig

from adaprune.deploy import mask_file, serving, task_inference
from adaprune.deploy.mask import apply_mask
from adaprune.deploy.mask_file import load_mask, save_mask
from adaprune.masks.layers import attach, detach, maskable, set_masks
from adaprune.training.encoders import Encoder, tensor_hash, tensor_hashes
from adaprune.training.heads import AdaptationHead, AdaptedModel

TINY = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS = {
    "bert": BertConfig(**TINY, intermediate_size=48),
    "distilbert": DistilBertConfig(vocab_size=50, dim=32, n_layers=2, n_heads=2, hidden_dim=48),
    "electra": ElectraConfig(**TINY, intermediate_size=48, embedding_size=16),
}
CARD = {"task": "mrpc", "labels": ["no", "yes", "vielleicht é"], "metrics": {"f1": 0.5}, "sparsity": 0.5}
QUERY = "encoder.layer.0.attention.self.query.weight"


def encoder_of(family: str = "bert", seed: int = 0) -> nn.Module:
    """A tiny random encoder; equal seeds, equal weights."""
    torch.manual_seed(seed)
    return AutoModel.from_config(CONFIGS[family]).eval()


def masks_of(encoder: nn.Module, density: float = 0.5, scope: str = "encoder+embeddings") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    modules = maskable(encoder, scope).items()
    return {name: torch.rand(module.weight.shape, generator=generator) < density for name, module in modules}


def head_of(outputs: int = 3, layers: int = 2, width: int = 32, kind: str = "mlp") -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    head = AdaptationHead(layers, width, outputs, kind)
    nn.init.normal_(head.mix)
    return head.state_dict()


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A mask file of the encoder of seed 0, made in a folder that was not there."""
    encoder = encoder_of()
    path = tmp_path / "masks" / "task~x_sparsity~0.5.safetensors"
    return save_mask(path, masks_of(encoder), head_of(), CARD, encoder)


@pytest.fixture
def alone(saved: Path) -> Path:
    """The same without the card beside it."""
    saved.with_suffix(".json").unlink()
    return saved


class Odd(nn.Module):
    """Linear layers of any shape in numbered layers: enough of an encoder to be masked."""

    def __init__(self, shapes: list[tuple[int, int]]):
        super().__init__()
        self.layer = nn.ModuleList(nn.Linear(columns, rows, bias=False) for rows, columns in shapes)
        self.table = nn.Embedding(3, 2)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.table


# ---- what is stored


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 13), st.integers(1, 11)), min_size=1, max_size=4),
    density=st.sampled_from([0.0, 0.03, 0.5, 1.0]),
    outputs=st.integers(1, 4),
    transposed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_what_is_saved_is_loaded(tmp_path_factory, shapes, density, outputs, transposed, seed):
    encoder, generator = Odd(shapes), torch.Generator().manual_seed(seed)
    masks = {}
    for number, (rows, columns) in enumerate(shapes):
        scores = (
            torch.rand((columns, rows), generator=generator).t()
            if transposed
            else torch.rand((rows, columns), generator=generator)
        )
        masks[f"layer.{number}.weight"] = scores < density
    head = {
        name: tensor.t().contiguous().t() if tensor.ndim == 2 else tensor
        for name, tensor in head_of(outputs, 2, 5).items()
    }
    card = {"labels": [str(n) for n in range(outputs)] if outputs > 1 else []}
    path = save_mask(tmp_path_factory.mktemp("m") / "a.safetensors", masks, head, card, encoder)
    loaded = load_mask(path)
    assert same(loaded.masks, masks) and same(loaded.head, head)
    assert loaded.total == sum(rows * columns for rows, columns in shapes)
    assert loaded.kept == sum(int(mask.sum()) for mask in masks.values())
    assert loaded.density == loaded.kept / loaded.total
    assert loaded.sparsity == pytest.approx(1 - loaded.density)


def test_bytes_are_as_documented(tmp_path):
    encoder = Odd([(2, 5)])
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 1, 0, 1]], dtype=torch.bool)
    path = save_mask(tmp_path / "a.safetensors", {"layer.0.weight": mask}, head_of(1), {"labels": []}, encoder)
    stored = load_file(path)
    # entries 0, 2, 3, 7 are bits of the first byte, entry 9 is bit 1 of the second
    assert stored["mask.layer.0.weight"].tolist() == [1 + 4 + 8 + 128, 2]
    assert stored["mask.layer.0.weight"].dtype == torch.uint8
    assert same({n.removeprefix("head."): t for n, t in stored.items() if n.startswith("head.")}, head_of(1))
    card = load_mask(path).card
    digest = tensor_hash(torch.tensor([141, 2], dtype=torch.uint8))
    assert card["tensors"] == {"layer.0.weight": {"shape": [2, 5], "kept": 5, "coding": "bits", "sha256": digest}}
    assert card["base"] == tensor_hashes(encoder)


def test_one_bit_a_weight(saved):
    """Data: total / 8 for the masks, 4 bytes for each number of the head; each of the mask's tensors rounds up."""
    header = struct.unpack("<Q", saved.read_bytes()[:8])[0]
    mask = load_mask(saved)
    floats = sum(tensor.numel() for tensor in mask.head.values())
    assert saved.stat().st_size - 8 - header == mask.total / 8 + 4 * floats


def test_card_beside_is_the_card_inside(saved):
    beside = json.loads(saved.with_suffix(".json").read_text(encoding="utf-8"))
    assert beside.pop("file_sha256") == hashlib.sha256(saved.read_bytes()).hexdigest()
    assert beside == load_mask(saved).card
    assert {key: beside[key] for key in CARD} == CARD
    assert sorted(file.name for file in saved.parent.iterdir()) == [saved.with_suffix(".json").name, saved.name]


def test_file_alone_is_complete(alone):
    assert load_mask(alone).card["labels"] == CARD["labels"]


def test_equal_masks_make_equal_bytes(saved, tmp_path):
    encoder = encoder_of()
    set_masks(encoder, masks_of(encoder))  # attached layers change nothing
    again = save_mask(tmp_path / "b.safetensors", masks_of(encoder), head_of(), CARD, encoder)
    assert again.read_bytes() == saved.read_bytes()


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"masks": {"pooler.dense.weight": torch.ones(32, 32, dtype=torch.bool)}}, "pooler.dense.weight cannot"),
        ({"masks": {QUERY: torch.ones(32, 31, dtype=torch.bool)}}, QUERY),
        ({"masks": {QUERY: torch.ones(32, 32)}}, "float32"),
        ({"masks": {}}, "masks is empty"),
        ({"head": {}}, "AdaptationHead"),
        ({"head": {**head_of(), "mix": torch.zeros(2, dtype=torch.float64)}}, "float32"),
        ({"head": {**head_of(), "mix": torch.zeros(())}}, "AdaptationHead"),
        ({"head": {**head_of(), "extra": torch.zeros(2)}}, "extra"),
        ({"head": head_of(2)}, "2 outputs"),
        ({"card": {"task": "mrpc"}}, "labels"),
        ({"card": {**CARD, "base": {}}}, "base"),
        ({"card": {**CARD, "labels": "abc"}}, "labels"),
        ({"card": {**CARD, "labels": ["no", "yes", "no"]}}, "labels must be different texts"),
        ({"card": {**CARD, "score": float("nan")}}, "nan|JSON"),
    ],
)
def test_save_refuses_and_writes_nothing(tmp_path, change, culprit):
    encoder = encoder_of()
    asked = {"masks": masks_of(encoder), "head": head_of(), "card": CARD, **change}
    with pytest.raises(ValueError, match=culprit):
        save_mask(tmp_path / "masks" / "a.safetensors", encoder=encoder, **asked)
    assert not list(tmp_path.iterdir())


def test_card_that_json_cannot_hold(tmp_path):
    encoder = encoder_of()
    with pytest.raises(TypeError, match="JSON"):
        save_mask(tmp_path / "a.safetensors", masks_of(encoder), head_of(), {**CARD, "x": np.int64(1)}, encoder)


# ---- applying


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(("scope", "kind"), [("encoder", "mlp"), ("encoder", "linear"), ("encoder+embeddings", "mlp")])
def test_logits_are_those_of_the_masked_layers_to_the_last_bit(tmp_path, family, scope, kind):
    encoder = encoder_of(family)
    masks = masks_of(encoder, scope=scope)
    path = save_mask(tmp_path / "a.safetensors", masks, head_of(kind=kind), CARD, encoder)
    model = AdaptedModel.for_task(encoder, 3, kind)
    model.head.load_state_dict(head_of(kind=kind))
    set_masks(encoder, masks)
    ids = torch.randint(0, 50, (4, 9), generator=torch.Generator().manual_seed(3))
    attention = torch.ones_like(ids)
    attention[1, 6:] = 0
    with torch.no_grad():
        expected = model.eval()(input_ids=ids, attention_mask=attention).logits
        adapted = apply_mask(encoder_of(family), load_mask(path))
        assert torch.equal(adapted(input_ids=ids, attention_mask=attention).logits, expected)
        again = apply_mask(AdaptedModel.for_task(encoder_of(family), 3), load_mask(path))
        assert torch.equal(again(input_ids=ids, attention_mask=attention).logits, expected)
    assert not adapted.training and not adapted.encoder.training
    assert adapted.config.id2label == dict(enumerate(CARD["labels"]))
    assert adapted.config.label2id["yes"] == 1
    assert not any(parameter.requires_grad for parameter in adapted.encoder.parameters())


def test_a_given_model_is_the_one_returned_and_the_encoder_is_changed(saved):
    model, mask = AdaptedModel.for_task(encoder_of(), 3), load_mask(saved)
    assert apply_mask(model, mask) is model
    weight = maskable(model.encoder)[QUERY].weight
    assert torch.equal(weight != 0, mask.masks[QUERY])
    assert same(model.head.state_dict(), mask.head)
    with torch.no_grad():
        model.head.mix.zero_()
    assert mask.head["mix"].all()  # the model has copies


def test_apply_draws_no_random_numbers(saved):
    encoder, mask = encoder_of(), load_mask(saved)
    before = torch.random.get_rng_state()
    apply_mask(encoder, mask)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_regression_has_one_output_and_no_labels(tmp_path):
    encoder = encoder_of()
    path = save_mask(tmp_path / "a.safetensors", masks_of(encoder), head_of(1), {"labels": []}, encoder)
    adapted = apply_mask(encoder_of(), load_mask(path))
    assert adapted(input_ids=torch.ones(2, 3, dtype=torch.long)).logits.shape == (2, 1)
    served = serving.MaskedEncoder(Encoder(encoder_of(), None, "tiny", None))
    served.add_task("stars", load_mask(path))
    for config in (adapted.config, served.task("stars").config):  # an exported file takes its labels from there
        assert (config.id2label, config.num_labels, config.problem_type) == ({0: "score"}, 1, "regression")


def test_a_base_with_an_extra_pooler_is_the_same_base(tmp_path):
    bare = encoder_of()
    bare.pooler = None
    path = save_mask(tmp_path / "a.safetensors", masks_of(bare), head_of(), CARD, bare)
    apply_mask(encoder_of(), load_mask(path))
    with pytest.raises(ValueError, match="another base: pooler.dense.* is missing"):
        with_pooler = save_mask(tmp_path / "b.safetensors", masks_of(bare), head_of(), CARD, encoder_of())
        apply_mask(bare, load_mask(with_pooler))


def assert_refused(model: nn.Module, mask: mask_file.Mask, match: str) -> None:
    """apply_mask refuses, and no bit, flag or label of the model has changed."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = model.config.to_dict()
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(ValueError, match=match):
        apply_mask(model, mask)
    assert same(dict(model.state_dict()), before)
    assert model.config.to_dict() == config
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


@pytest.mark.parametrize(
    "name", [QUERY, "embeddings.LayerNorm.bias", "encoder.layer.1.output.dense.bias", "pooler.dense.weight"]
)
def test_another_base_is_refused_by_the_name_of_its_tensor(saved, name):
    model = encoder_of()
    flat = model.state_dict()[name].view(-1)
    flat[-1] = torch.nextafter(flat[-1], torch.tensor(torch.inf))  # one unit in the last place
    assert_refused(model, load_mask(saved), f"another base: {name} differs")


def test_other_bases(saved):
    mask = load_mask(saved)
    assert_refused(encoder_of(seed=1), mask, "another base")
    assert_refused(encoder_of().to(torch.bfloat16), mask, "another base")
    assert_refused(encoder_of("distilbert"), mask, "another base")
    adapted = apply_mask(encoder_of(), mask)
    assert_refused(adapted.encoder, mask, "another base: .*word_embeddings")  # no second mask on top


def test_a_base_that_differs_in_the_number_of_attention_heads_alone(tmp_path):
    encoder, other = (
        encoder_of(),
        AutoModel.from_config(BertConfig(**{**TINY, "num_attention_heads": 4}, intermediate_size=48)),
    )
    other.load_state_dict(encoder.state_dict())
    card = {**CARD, "heads": 2}
    mask = load_mask(save_mask(tmp_path / "a.safetensors", masks_of(encoder), head_of(), card, encoder))
    assert_refused(other.eval(), mask, "another base: one of 2 attention heads a layer, this one has 4")
    apply_mask(encoder, mask)


def test_unfit_models(saved):
    mask, encoder = load_mask(saved), encoder_of()
    assert_refused(AdaptedModel.for_task(encoder, 2), mask, "3 outputs")
    thetas = {name: kept.float() for name, kept in mask.masks.items()}
    attach(encoder, thetas)
    assert_refused(encoder, mask, "detach")
    apply_mask(detach(encoder), mask)
    for unfit in (head_of(layers=3), head_of(width=16)):
        assert_refused(encoder_of(), mask_file.Mask(mask.masks, unfit, mask.card), "layers of width")
    masks = {**mask.masks, "pooler.dense.weight": torch.ones(32, 32, dtype=torch.bool)}
    assert_refused(encoder_of(), mask_file.Mask(masks, mask.head, mask.card), "pooler.dense.weight cannot be masked")


# ---- damaged and hostile files


def loads_equal_or_refuses(path: Path, original: mask_file.Mask) -> bool:
    """Whether the file is refused with its name; a file that loads must hold exactly the original."""
    try:
        found = load_mask(path)
    except ValueError as error:
        assert str(path) in str(error)
        return True
    assert same(found.masks, original.masks) and same(found.head, original.head) and found.card == original.card
    return False


def test_one_flipped_bit_is_never_silent(alone):
    """A flip that leaves the header's meaning alone may load; it must then load the very same mask."""
    content, original = alone.read_bytes(), load_mask(alone)
    header = 8 + struct.unpack("<Q", content[:8])[0]
    positions = {*range(0, 40), *range(40, header, 61), *range(header - 8, header), *range(header, len(content), 307)}
    positions |= {len(content) - 1}
    for position in sorted(positions):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        alone.write_bytes(flipped)
        assert loads_equal_or_refuses(alone, original) or position < header
        if position >= header:
            with pytest.raises(ValueError, match="is not what the card says"):
                load_mask(alone)


def test_a_flip_is_seen_beside_the_card_too(saved):
    content = saved.read_bytes()
    edited = content.replace(b"mrpc", b"mrpd")
    assert edited != content
    saved.write_bytes(edited)
    with pytest.raises(ValueError, match="sha256"):
        load_mask(saved)


def test_truncated_and_longer_files(alone):
    content = alone.read_bytes()
    for length in {*range(0, 20), *range(20, len(content), 97), len(content) - 1}:
        alone.write_bytes(content[:length])
        with pytest.raises(ValueError, match="sparsity~0.5.safetensors"):
            load_mask(alone)
    for extra in (b"\0", b" ", content):
        alone.write_bytes(content + extra)
        with pytest.raises(ValueError, match="sparsity~0.5.safetensors"):
            load_mask(alone)


def rewritten(path: Path, change, seal: bool = True) -> None:
    """Writes the file anew with ``change(card, tensors)`` made, and the card's sha256 made to fit."""
    content, tensors = path.read_bytes(), load_file(path)
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    sealed = json.loads(header["__metadata__"]["adaprune"])
    sealed["card"] = change(sealed["card"], tensors) or sealed["card"]
    if seal:
        text = json.dumps(sealed["card"], sort_keys=True, separators=(",", ":"))
        sealed["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_bytes(save(tensors, metadata={"adaprune": json.dumps(sealed)}))


def bits_of(card, tensors, **said):
    card["tensors"][QUERY].update(said)


def replaced(tensors, name, tensor):
    tensors[name] = tensor


HOSTILE = {
    "kept": lambda card, tensors: bits_of(card, tensors, kept=3),
    "kept is text": lambda card, tensors: bits_of(card, tensors, kept="3"),
    "shape too large": lambda card, tensors: bits_of(card, tensors, shape=[10**9, 10**9]),
    "shape too small": lambda card, tensors: bits_of(card, tensors, shape=[32, 31]),
    "shape of the same size": lambda card, tensors: bits_of(card, tensors, shape=[16, 64], sha256="0" * 64),
    "negative shape": lambda card, tensors: bits_of(card, tensors, shape=[-32, -32]),
    "shape of text": lambda card, tensors: bits_of(card, tensors, shape="ab"),
    "shape of floats": lambda card, tensors: bits_of(card, tensors, shape=[32.0, 32.0]),
    "shape is null": lambda card, tensors: bits_of(card, tensors, shape=None),
    "deep shape": lambda card, tensors: bits_of(card, tensors, shape=[1] * 100_000),
    "huge numbers": lambda card, tensors: bits_of(card, tensors, shape=[10**4000] * 100),
    "no tensors": lambda card, tensors: card.update(tensors={}),
    "tensors is a list": lambda card, tensors: card.update(tensors=list(card["tensors"])),
    "name only in the card": lambda card, tensors: tensors.__delitem__(f"mask.{QUERY}"),
    "name only in the file": lambda card, tensors: replaced(tensors, "mask.other", torch.zeros(1)),
    "stranger": lambda card, tensors: replaced(tensors, "other", torch.zeros(1)),
    "no base": lambda card, tensors: card.update(base={}),
    "base is a list": lambda card, tensors: card.update(base=list(card["base"])),
    "format is 0": lambda card, tensors: card.update(format=0),
    "format is no number": lambda card, tensors: card.update(format=3.0),
    "labels": lambda card, tensors: card.update(labels=["a"]),
    "labels are numbers": lambda card, tensors: card.update(labels=[1, 2, 3]),
    "labels are twice the same": lambda card, tensors: card.update(labels=["a", "b", "a"]),
    "an empty mask": lambda card, tensors: bits_of(card, tensors, shape=[0, 5], kept=0),
    "heads are text": lambda card, tensors: card.update(heads="2"),
    "heads are null": lambda card, tensors: card.update(heads=None),
    "labels are missing": lambda card, tensors: card.__delitem__("labels"),
    "head of another kind": lambda card, tensors: replaced(tensors, "head.mix", torch.zeros(2, dtype=torch.int32)),
    "head is empty": lambda card, tensors: replaced(tensors, "head.output.weight", torch.zeros(0, 0)),
    "mask of floats": lambda card, tensors: replaced(tensors, f"mask.{QUERY}", torch.zeros(128)),
    "card is a list": lambda card, tensors: [1],
    "card is text": lambda card, tensors: "card",
}


@pytest.mark.parametrize("trick", HOSTILE)
def test_hostile_cards_are_refused_fast(alone, trick):
    rewritten(alone, HOSTILE[trick])
    start = time.process_time()
    with pytest.raises(ValueError, match="sparsity~0.5.safetensors"):
        load_mask(alone)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("number", [4, 10**4000])
def test_a_newer_format_asks_for_a_newer_reader_and_no_more(alone, number):
    rewritten(alone, lambda card, tensors: card.update(format=number))
    with pytest.raises(
        ValueError, match=r"is of format \d{1,20}, newer than .* get a newer version from the repository$"
    ):
        load_mask(alone)


def test_a_header_too_long_to_be_read_quickly(alone):
    rewritten(alone, lambda card, tensors: card.update(more=[[]] * 2**20))
    start = time.process_time()
    with pytest.raises(ValueError, match="not a whole mask file: the header claims"):
        load_mask(alone)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"card": {**CARD, "model": "a\nb"}}, "this head and card could not be read: a name of its base is too long"),
        ({"card": {**CARD, "heads": "2"}}, "this head and card could not be read: the heads of a layer are no number"),
        (
            {"card": {**CARD, "n": [1] * 250_000}},
            r"card: its \.json would have [\d,]+ bytes, of at most",
        ),
        ({"head": {name: tensor.half() for name, tensor in head_of().items()}}, "head and card could not be read: "),
    ],
    ids=range(4),
)
def test_what_load_mask_would_refuse_is_not_written(tmp_path, given, said):
    encoder = encoder_of()
    with pytest.raises(ValueError, match=said) as refused:
        save_mask(
            tmp_path / "a.safetensors", masks_of(encoder), **{"head": head_of(), "card": CARD, **given}, encoder=encoder
        )
    assert "get it again" not in str(refused.value) and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda card, tensors: card.update(labels=["x" * 100] * 5000), "the head has 3 outputs"),
        (lambda card, tensors: card["tensors"].update({"n\n\x1b[31m": {}}), r"mask\.n.{1,2}n.{1,2}x1b\[31m"),
        (lambda card, tensors: replaced(tensors, "n" * 100_000, torch.zeros(1)), "not those of its card"),
        (lambda card, tensors: card.__delitem__("labels"), "the card lacks or misstates an entry: 'labels'"),
        (lambda card, tensors: card.update(model="\x1b[31m"), "a name of its base is too long, or has signs"),
        (lambda card, tensors: card["base"].update({"n" * 5000: ""}), "a name of its base is too long, or has signs"),
        (lambda card, tensors: card.update(tensors=3), "the card lacks or misstates an entry: "),
    ],
    ids=range(7),
)
def test_what_is_said_of_a_damaged_card_is_short_and_printable(alone, change, said):
    rewritten(alone, change)
    with pytest.raises(ValueError, match=said) as refused:
        load_mask(alone)
    assert len(str(refused.value)) < 500 + len(str(alone)) and str(refused.value).isprintable()


def test_a_base_that_does_not_fit_is_refused_with_the_files_name(alone):
    with pytest.raises(ValueError, match=r"0\.5\.safetensors: mask made for another base"):
        load_mask(alone, base=encoder_of(seed=1))


def test_rewriting_alone_is_harmless(alone):
    rewritten(alone, lambda card, tensors: None)
    load_mask(alone)
    rewritten(alone, lambda card, tensors: card.update(task="sst2"), seal=False)
    with pytest.raises(ValueError, match="sha256"):
        load_mask(alone)


def test_unused_bits_must_be_zero(tmp_path):
    path = save_mask(
        tmp_path / "a.safetensors",
        {"layer.0.weight": torch.ones(3, 3, dtype=torch.bool)},
        head_of(1),
        {"labels": []},
        Odd([(3, 3)]),
        plain=True,
    )
    path.with_suffix(".json").unlink()

    def change(card, tensors):
        tensors["mask.layer.0.weight"][1] = 0b11
        card["tensors"]["layer.0.weight"]["sha256"] = tensor_hash(tensors["mask.layer.0.weight"])

    rewritten(path, change)
    with pytest.raises(ValueError, match=r"layer\.0\.weight is not what the card says"):
        load_mask(path)


def raw(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a mask",
        b"\x80\x04\x95" + b"." * 40,  # how a pickle begins
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 2**63) + b"{}",
        raw(b"{}"),
        raw(b"[]"),
        raw(b"[" * 100_000),
        raw(b'{"__metadata__": null}'),
        raw(b'{"__metadata__": {"adaprune": "{"}}'),
        raw(b'{"__metadata__": {"adaprune": "[]"}}'),
        raw(b'{"__metadata__": {"adaprune": "{\\"card\\": NaN, \\"sha256\\": 1}"}}'),
        raw(b'{"x": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4000000000000]}}'),
        raw(b"\xff\xfe{}"),
    ],
    ids=range(14),
)
def test_files_that_are_no_masks(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    start = time.process_time()
    with pytest.raises(ValueError, match="a.safetensors is not a whole mask file"):
        load_mask(path)
    assert time.process_time() - start < 1


def test_a_header_that_claims_terabytes(alone):
    """The card is sound and seals itself; only the header of the tensors claims more than there is."""
    content = alone.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    header[f"mask.{QUERY}"].update(shape=[2**42], data_offsets=[0, 2**42])
    alone.write_bytes(raw(json.dumps(header).encode(), content[8 + size :]))
    with pytest.raises(ValueError, match="not a whole mask file"):
        load_mask(alone)


def test_files_too_large_to_be_read(tmp_path):
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.truncate(2**30 + 1)  # a hole: takes no room
    with pytest.raises(ValueError, match="a.safetensors is not a file of at most"):
        load_mask(path)


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("mrpc", "sst2"),
        lambda text: text[:-3],
        lambda text: "",
        lambda text: "[]",
        lambda text: "{}",
        lambda text: "[" * 100_000,
        lambda text: text.replace('"file_sha256": "', '"file_sha256": "0'),
        lambda text: text.replace('"f1": 0.5', '"f1": NaN'),
    ],
    ids=range(8),
)
def test_an_edited_card_beside_the_file_is_refused(saved, edit):
    beside = saved.with_suffix(".json")
    text = beside.read_text()
    assert edit(text) != text
    beside.write_text(edit(text))
    with pytest.raises(ValueError, match=r"0\.5\.json is not the card of"):
        load_mask(saved)


def test_a_link_to_no_card_is_refused(saved):
    beside = saved.with_suffix(".json")
    beside.unlink()
    for target in ("gone.json", beside.name):  # nowhere, and in a circle
        beside.symlink_to(target)
        with pytest.raises(ValueError, match=r"0\.5\.json is not the card of .*0\.5\.safetensors"):
            load_mask(saved)
        beside.unlink()


def test_the_card_of_another_mask_is_refused(saved, tmp_path):
    encoder = encoder_of()
    other = save_mask(tmp_path / "b.safetensors", masks_of(encoder, 0.4), head_of(), CARD, encoder)
    os.replace(other.with_suffix(".json"), saved.with_suffix(".json"))
    with pytest.raises(ValueError, match=r"0\.5\.json is not the card of"):
        load_mask(saved)


# ---- writing


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("moment", [1, 2])
def test_killed_while_replacing_leaves_a_whole_mask(saved, monkeypatch, moment):
    old, encoder, calls = load_mask(saved), encoder_of(), []
    replace = os.replace

    def kill(source, target):
        calls.append(target)
        if len(calls) == moment:
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(Killed):
        save_mask(saved, masks_of(encoder, 0.1), head_of(), CARD, encoder)
    monkeypatch.undo()
    expected = old.masks if moment == 1 else masks_of(encoder, 0.1)
    assert same(load_mask(saved).masks, expected)
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


def test_a_new_mask_replaces_an_old_one(saved):
    encoder = encoder_of()
    save_mask(saved, masks_of(encoder, 0.1), head_of(), CARD, encoder)
    assert same(load_mask(saved).masks, masks_of(encoder, 0.1))


@pytest.mark.parametrize("content", ['{"tensors": {}}', '["file_sha256", "tensors"]', "{", ""])
def test_what_is_no_card_is_not_replaced(tmp_path, content):
    encoder, other = encoder_of(), tmp_path / "a.json"
    other.write_text(content)
    with pytest.raises(FileExistsError, match=r"a\.json is not a mask's card"):
        save_mask(tmp_path / "a.safetensors", masks_of(encoder), head_of(), CARD, encoder)
    assert other.read_text() == content and list(tmp_path.iterdir()) == [other]


def test_paths_that_cannot_be(saved, tmp_path):
    encoder = encoder_of()
    rest = (masks_of(encoder), head_of(), CARD, encoder)
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    with pytest.raises(OSError, match="folder.safetensors"):
        save_mask(folder, *rest)
    assert not list(tmp_path.glob(".*.tmp"))
    with pytest.raises(ValueError, match="folder.safetensors is not a file"):
        load_mask(folder)
    with pytest.raises(OSError, match="cannot write .*make room or choose another folder"):
        save_mask(saved / "a.safetensors", *rest)  # below a file
    with pytest.raises(ValueError, match="^masks is empty: a mask file has at least one mask"):
        save_mask(tmp_path / "none.safetensors", {}, *rest[1:])
    for wrong in ("a.json", "a", "a.pt"):
        with pytest.raises(ValueError, match="ends in .safetensors"):
            save_mask(tmp_path / wrong, *rest)
        with pytest.raises(ValueError, match="ends in .safetensors"):
            load_mask(tmp_path / wrong)
    with pytest.raises(FileNotFoundError, match="none.safetensors"):
        load_mask(tmp_path / "none.safetensors")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="a.safetensors is not a file"):
        load_mask(tmp_path / "a.safetensors")


def test_an_unwritable_folder_is_named(saved, monkeypatch):
    """By a refusing `open`, since a superuser may write into any folder."""
    encoder, before = encoder_of(), saved.read_bytes()

    real = Path.open

    def refuse(self, mode="r", *args, **kwargs):
        if "x" in mode:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError, match=f"cannot write {saved} .Permission denied"):
        save_mask(saved, masks_of(encoder), head_of(), CARD, encoder)
    monkeypatch.undo()
    assert saved.read_bytes() == before


# ---- pooling


def pooled_file(folder: Path, name: str = "a", pooling: object = "mean", seed: int = 1, **said) -> Path:
    """A mask file of two classes whose card has this pooling; of "absent" it has none, as old cards."""
    encoder, generator = encoder_of(), torch.Generator().manual_seed(seed)
    masks = {n: torch.rand(m.weight.shape, generator=generator) < 0.5 for n, m in maskable(encoder).items()}
    head = {n: torch.randn(t.shape, generator=generator) for n, t in head_of(2).items()}
    card = {**CARD, "labels": ["no", "yes"], **({} if pooling == "absent" else {"pooling": pooling}), **said}
    return save_mask(folder / f"{name}.safetensors", masks, head, card, encoder)


def padded_batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 50, (4, 9), generator=torch.Generator().manual_seed(3))
    attention = torch.ones_like(ids)
    attention[1, 6:], attention[3, 2:] = 0, 0
    return {"input_ids": ids, "attention_mask": attention}


@torch.no_grad()
def logits_by_hand(path: Path, pooling: str) -> torch.Tensor:
    """w0 * m on a base of its own, one row at a time without its padding, and the head's two products."""
    encoder, mask, rows = encoder_of(), load_mask(path), []
    for name, kept in mask.masks.items():
        encoder.get_parameter(name).mul_(kept)
    head = mask.head
    for ids, attention in zip(*padded_batch().values(), strict=True):
        states = encoder(input_ids=ids[attention.bool()][None], output_hidden_states=True).hidden_states[1:]
        vectors = torch.stack([(x[0, 0] if pooling == "cls" else x[0].mean(0)) for x in states])
        z = head["mix"].softmax(0) @ vectors
        hidden = (head["hidden.weight"] @ z + head["hidden.bias"]).clamp(min=0)
        rows.append(head["output.weight"] @ hidden + head["output.bias"])
    return torch.stack(rows)


@pytest.mark.parametrize(("pooling", "read"), [("mean", "mean"), ("cls", "cls"), ("absent", "cls")])
def test_a_head_reads_by_its_cards_pooling_wherever_it_is_used(tmp_path, pooling, read):
    """Alone, served, and served again after save_pretrained; old cards without a word are cls."""
    path = pooled_file(tmp_path, pooling=pooling)
    expected, batch = logits_by_hand(path, read), padded_batch()
    other = logits_by_hand(path, "cls" if read == "mean" else "mean")
    assert (expected - other).abs().max() > 0.1
    assert load_mask(path).card.get("pooling", "absent") == pooling
    alone = apply_mask(encoder_of(), load_mask(path))
    assert alone.head.pooling == read
    given = apply_mask(AdaptedModel.for_task(encoder_of(), 2, pooling="cls"), load_mask(path))
    served = serving.MaskedEncoder(Encoder(encoder_of(), None, "tiny", "unknown"))
    served.add_task("one", path)
    served.save_pretrained(tmp_path / "all")
    again = serving.MaskedEncoder(Encoder(encoder_of(), None, "tiny", "unknown"))
    again.add_task("one", tmp_path / "all" / "one.safetensors")
    with torch.no_grad():
        for model in (alone, given, served, again):
            torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_which_task_a_text_belongs_to_is_asked_of_heads_that_pool_alike(tmp_path, pooling):
    """Entropies by hand, and SupSup's slope as the derivative of the mixed model's entropy by its shares."""
    paths = {name: pooled_file(tmp_path, name, pooling, seed) for seed, name in ((1, "one"), (2, "two"))}
    served = serving.MaskedEncoder(Encoder(encoder_of(), None, "tiny", "unknown"))
    for name, path in paths.items():
        served.add_task(name, path)
    entropies = task_inference.task_entropies(served, **padded_batch())
    for name, path in paths.items():
        p = logits_by_hand(path, pooling).double().softmax(1)
        expected = -(p * p.log()).sum(1) / np.log(2)
        torch.testing.assert_close(entropies[name].double(), expected, rtol=1e-4, atol=1e-5)

    encoder, masks = encoder_of().double(), [load_mask(path) for path in paths.values()]
    share = torch.tensor([0.5, 0.5], dtype=torch.float64, requires_grad=True)
    mixed = {n: encoder.get_parameter(n) * sum(a * m.masks[n] for a, m in zip(share, masks, strict=True))
             for n in masks[0].masks}  # fmt: skip
    head = {n: sum(a * m.head[n].double() for a, m in zip(share, masks, strict=True)) for n in masks[0].head}
    batch = padded_batch()
    asked = {**batch, "output_hidden_states": True}
    states = torch.func.functional_call(encoder, mixed, kwargs=asked).hidden_states[1:]
    present = batch["attention_mask"][..., None].double()
    vectors = [x[:, 0] if pooling == "cls" else (x * present).sum(1) / present.sum(1) for x in states]
    z = torch.einsum("l,lbw->bw", head["mix"].softmax(0), torch.stack(vectors))
    hidden = torch.relu(z @ head["hidden.weight"].t() + head["hidden.bias"])
    p = (hidden @ head["output.weight"].t() + head["output.bias"]).softmax(1)
    (-(p * p.log()).sum(1).mean()).backward()
    found = task_inference.task_scores(served, **batch)
    assert [found["one"], found["two"]] == pytest.approx((-share.grad).tolist(), rel=1e-3, abs=1e-4)
    served.add_task("three", pooled_file(tmp_path, "three", "cls" if pooling == "mean" else "mean", 3))
    with pytest.raises(ValueError, match="heads are of one kind and pooling"):
        task_inference.task_scores(served, **padded_batch())
    assert set(task_inference.task_entropies(served, **padded_batch())) == {"one", "two", "three"}


@pytest.mark.parametrize("pooling", ["max", "", "MEAN", None, 1, True, ["mean"], {"mode": "mean"}])
def test_a_card_with_a_nonsense_pooling_is_neither_written_nor_read(tmp_path, pooling, monkeypatch):
    with pytest.raises(ValueError, match="pooling must be one of cls, mean"):
        pooled_file(tmp_path, pooling=pooling)
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch:  # as a stranger might have written it, with a fitting seal
        patch.setattr(mask_file, "read_mask", lambda path, content: SimpleNamespace(resolve=lambda base: None))
        path = pooled_file(tmp_path, pooling=pooling)
    with pytest.raises(ValueError, match="a.safetensors is not a whole mask file.*pooling must be one of cls, mean"):
        load_mask(path)


def test_pooling_is_sealed_in_the_card(tmp_path):
    """Changed in the card beside it, or in the file without a new seal, it is refused."""
    path = pooled_file(tmp_path)
    beside = path.with_suffix(".json")
    text = beside.read_text(encoding="utf-8")
    assert '"pooling": "mean"' in text
    beside.write_text(text.replace('"pooling": "mean"', '"pooling": "cls"'), encoding="utf-8")
    with pytest.raises(ValueError, match="is not the card of"):
        load_mask(path)
    beside.unlink()
    content = path.read_bytes()
    assert content.count(b'pooling\\": \\"mean\\"') == 1
    path.write_bytes(content.replace(b'pooling\\": \\"mean\\"', b'pooling\\": \\"cls\\" '))
    with pytest.raises(ValueError, match="sha256"):
        load_mask(path)
