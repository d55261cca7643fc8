"""Masks as differences from a reference: exact for every mask and every float32, short for masks near the reference.

What a stranger reads of such files, and files that lie, are in test_mask_format.py.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModel

from adaprune import apply_mask, load_mask, save_mask
from adaprune.deploy.bins import cut_of, largest, magnitudes
from adaprune.deploy.flips import decode_flips, encode_flips, read_flips
from adaprune.masks import keep_each, keep_top, maskable
from benchmarks.mask_size import made_up, measured
from tests.deploy.test_mask_file import CARD, CONFIGS, QUERY, Odd, assert_refused, encoder_of, head_of, masks_of, same

ODD_NUMBERS = [0.0, -0.0, 1.0, -1.0, 1.0000001, 2.0, -2.5, 1e-45, -1e-45, 1e-38, 3e38, np.inf, -np.inf]


def there_and_back(masks, weights, others=None) -> tuple[dict, dict[str, np.ndarray]]:
    """What the card says, and the masks that come back, by way of JSON."""
    said, data = encode_flips(masks, weights, others)
    said = json.loads(json.dumps(said))
    found = read_flips(said, data, [masks[name].shape for name in sorted(masks)], 10**9)
    return said, decode_flips(found, weights, others)


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def near(encoder: nn.Module, density: float, share: float) -> dict[str, torch.Tensor]:
    """The encoder's largest weights, with about a ``share`` of the entries changed, most of them near the cut."""
    sizes = {name: module.weight.detach().abs() for name, module in maskable(encoder, "encoder+embeddings").items()}
    generator = torch.Generator().manual_seed(0)
    masks = keep_top(sizes, density)
    cut = min(float(sizes[name][mask].min()) for name, mask in masks.items())
    chances = {name: 6 * share * torch.exp(-4 * (size / cut - 1).abs()) for name, size in sizes.items()}
    return {name: mask ^ (torch.rand(mask.shape, generator=generator) < chances[name]) for name, mask in masks.items()}


# ---- the reference


def test_cut_and_ties_by_hand():
    """Of |w| = 1 2 2 2 3 the three largest are 3 and the first two of the 2s; 2.0 has the bits 0x40000000."""
    found = magnitudes(np.float32([[1, -2, 2, -2, 3]])).reshape(-1)
    assert cut_of(found, 3) == (0x40000000, 2)
    assert largest(found, 0x40000000, 2).tolist() == [False, True, True, False, True]
    assert cut_of(found, 5) == (0x3F800000, 1) and cut_of(found, 0)[1] == 0
    assert not largest(found, *cut_of(found, 0)).any()


def test_magnitudes_are_in_the_order_of_the_numbers():
    numbers = np.float32(ODD_NUMBERS)
    found = magnitudes(numbers)
    assert np.array_equal(np.argsort(found, kind="stable"), np.argsort(np.abs(numbers), kind="stable"))
    assert found[0] == found[1] == 0 and found[2] == found[3]  # a sign is no size


def test_flips_by_hand():
    """|w| = 1 ... 6, three are kept: the largest are 4 5 6, so that of 3 5 6 the flips are those of 3 and 4."""
    weights = {"w": np.float32([[1, -2, 3], [-4, 5, -6]])}
    masks = {"w": np.array([[0, 0, 1], [0, 1, 1]], bool)}
    said, back = there_and_back(masks, weights)
    assert equal(back, masks)
    assert sum(n for _, n, _, _ in said["classes"]) == 6 and sum(k for _, _, k, _ in said["classes"]) == 2
    assert [part[1:3] for part in said["rows"]] == [[2, 0], [0, 0]]


@pytest.mark.parametrize("cut", ["together", "each"])
def test_a_magnitude_mask_has_no_flips(cut):
    """However it was cut: each matrix's reference keeps as many as its mask; equal weights go by position."""
    generator = torch.Generator().manual_seed(0)
    sizes = {f"{n}": (torch.rand(30 + n, 20, generator=generator) * 50).round() / (n + 1) for n in range(3)}
    masks = keep_top(sizes, 0.37) if cut == "together" else keep_each(sizes, {"0": 100, "1": 500, "2": 640})
    arrays = {name: mask.numpy() for name, mask in masks.items()}
    said, back = there_and_back(arrays, {name: size.numpy() for name, size in sizes.items()})
    assert equal(back, arrays)
    assert all(k == 0 for _, _, k, _ in said["classes"])


@settings(max_examples=80, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=4),
    density=st.sampled_from([0.0, 0.01, 0.3, 0.5, 0.9, 1.0]),
    share=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]),
    numbers=st.sampled_from(["normal", "few", "odd", "one"]),
    rows=st.sampled_from([0.0, 0.5]),
    reference=st.booleans(),
    seed=st.integers(0, 999),
)
def test_any_mask_of_any_weights_comes_back(shapes, density, share, numbers, rows, reference, seed):
    """Weights with many ties, zeros of both signs, denormals and infinities; rows that are whole; any reference."""
    draw = np.random.default_rng(seed)
    weights, masks, others = {}, {}, {}
    for number, shape in enumerate(shapes):
        size = {"normal": draw.standard_normal(shape), "few": draw.integers(-2, 3, shape) / 4,
                "odd": draw.choice(ODD_NUMBERS, shape), "one": np.full(shape, 0.5)}[numbers]  # fmt: skip
        name = f"layer.{number}"
        weights[name] = size.astype(np.float32)
        kept = round(density * size.size)
        found = magnitudes(weights[name]).reshape(-1)
        masks[name] = (largest(found, *cut_of(found, kept)) ^ (draw.random(size.size) < share)).reshape(shape)
        masks[name][draw.random(shape[0]) < rows] = bool(seed % 2)
        others[name] = draw.random(shape) < 0.5
    _, back = there_and_back(masks, weights, others if reference else None)
    assert equal(back, masks)


def test_rows_that_are_whole_are_told_apart():
    """Words that training never showed stay whole, where the reference would keep their largest weights."""
    draw = np.random.default_rng(0)
    weights = {"table": draw.standard_normal((400, 32)).astype(np.float32)}
    found = magnitudes(weights["table"]).reshape(-1)
    masks = {"table": largest(found, *cut_of(found, 6400)).reshape(400, 32)}
    masks["table"][100:300], weights["table"][100:300] = True, weights["table"][100:300] / 99
    said, back = there_and_back(masks, weights)
    assert equal(back, masks)
    assert [part[1:3] for part in said["rows"]] == [[400, 200], [200, 200]]  # 200 of 400 are whole, all of them kept
    assert sum(n for _, n, _, _ in said["classes"]) == 200 * 32


def test_flips_of_other_weights_are_refused():
    """Fewer, or more, than these weights need: never another mask in silence."""
    draw = np.random.default_rng(0)
    size = draw.exponential(size=(200, 200)).astype(np.float32)
    masks = {"w": (size > 0.7) ^ (draw.random(size.shape) < 0.5 * np.exp(-9 * np.abs(np.log(size / 0.7))))}
    said, data = encode_flips(masks, {"w": size})
    assert len(said["classes"]) > 2
    for other in (np.ones_like(size), size * 2, size[::-1] ** 2):
        with pytest.raises(ValueError, match="fewer flips|more flips"):
            decode_flips(read_flips(said, data, [size.shape], 10**9), {"w": other})


# ---- how many bytes


def test_a_layer_of_bert_base_is_near_its_bound():
    """The bar: 1.05 of the bound of its own bins. The bars in seconds are in benchmarks/mask_size.py --check."""
    row = measured("one of twelve layers", *_a_layer())
    assert row["version 2"] <= 1.05 * row["bound"]
    assert row["version 2"] < 0.3 * row["bits"]


def _a_layer() -> tuple[dict, dict]:
    masks, weights = made_up("bert-base", layers=1)
    assert sum(mask.size for mask in masks.values()) == 7_077_888  # 4 x 768 x 768 + 2 x 768 x 3072
    return masks, weights


def test_the_shorter_coding_is_taken(tmp_path):
    """Near the largest weights flips; at random the coding that needs no base, in a format that older readers know."""
    encoder, random = encoder_of(), masks_of(encoder_of())
    path = save_mask(tmp_path / "near.safetensors", near(encoder, 0.5, 0.02), head_of(), CARD, encoder)
    far = save_mask(tmp_path / "far.safetensors", random, head_of(), CARD, encoder)
    plain = save_mask(tmp_path / "p.safetensors", near(encoder, 0.5, 0.02), head_of(), CARD, encoder, plain=True)
    codings = {p.stem: {said["coding"] for said in load_mask(p).card["tensors"].values()} for p in (path, far, plain)}
    assert codings["near"] == {"flips"} and "flips" not in codings["far"] and codings["p"] == {"bits"}
    assert [load_mask(p).card["format"] for p in (path, far, plain)] == [3, 2, 2]
    assert path.stat().st_size < plain.stat().st_size
    assert same(load_mask(path, base=encoder).masks, near(encoder, 0.5, 0.02))
    assert same(load_mask(far).masks, random)  # no base


# ---- with its base, and without


@pytest.fixture
def saved(tmp_path) -> Path:
    encoder = encoder_of()
    return save_mask(tmp_path / "a.safetensors", near(encoder, 0.5, 0.02), head_of(), CARD, encoder)


def test_to_count_takes_no_base(saved):
    mask, expected = load_mask(saved), near(encoder_of(), 0.5, 0.02)
    assert mask.kept == sum(int(kept.sum()) for kept in expected.values())
    assert mask.total == sum(kept.numel() for kept in expected.values())
    with pytest.raises(ValueError, match=r"a.safetensors .*the card names no base model: give the base: load_mask"):
        _ = mask.masks


def test_the_base_that_the_card_names_is_loaded(tmp_path, tiny_model_dir):
    encoder = AutoModel.from_pretrained(tiny_model_dir)
    masks = near(encoder, 0.5, 0.02)
    card = {**CARD, "model": str(tiny_model_dir)}
    encoder.pooler = None
    path = save_mask(tmp_path / "a.safetensors", masks, head_of(width=16), card, encoder)
    assert load_mask(path).card["format"] == 3 and same(load_mask(path).masks, masks)
    gone = save_mask(tmp_path / "b.safetensors", masks, head_of(width=16), {**card, "model": "gone/none"}, encoder)
    with pytest.raises(OSError, match=r"b.safetensors has masks as differences from 'gone/none', and .*give the base"):
        _ = load_mask(gone).masks
    assert same(load_mask(gone, base=encoder).masks, masks)


def test_one_name_in_two_folders_is_two_bases(tmp_path, tiny_model_dir, monkeypatch):
    """The card has the base's name as it was given; another base of that name, loaded before, is not taken for it."""
    for folder, factor in (("one", 1.0), ("other", 2.0)):
        place = tmp_path / folder / "tiny"
        shutil.copytree(tiny_model_dir, place)
        base = AutoModel.from_pretrained(place)
        with torch.no_grad():
            base.embeddings.word_embeddings.weight.mul_(factor)
        base.save_pretrained(place)
        base.pooler = None
        masks = near(base, 0.5, 0.02)
        monkeypatch.chdir(place.parent)
        path = save_mask(Path("a.safetensors"), masks, head_of(width=16), {**CARD, "model": "tiny"}, base)
        assert load_mask(path).card["format"] == 3 and same(load_mask(path).masks, masks)


def test_it_is_applied_as_any_other(saved):
    encoder, expected = encoder_of(), near(encoder_of(), 0.5, 0.02)
    model = apply_mask(encoder, load_mask(saved))
    assert torch.equal(model.encoder.get_parameter(QUERY) != 0, expected[QUERY])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_base_in_another_dtype_is_refused_and_named(saved, dtype):
    name = f"differs, it is {str(dtype).removeprefix('torch.')} here"
    assert_refused(encoder_of().to(dtype), load_mask(saved), f"another base: .*{name}.*in float32")
    with pytest.raises(ValueError, match=name):
        load_mask(saved, base=encoder_of().to(dtype))


def test_a_base_in_halves_is_refused_when_a_mask_is_saved(tmp_path):
    """Masks are bound to the checkpoint's tensors, and flips go by the bits of float32 numbers."""
    encoder = encoder_of().to(torch.float16)
    masks = near(encoder.float(), 0.5, 0.02)
    with pytest.raises(ValueError, match="is in float16, masks belong to tensors in float32"):
        save_mask(tmp_path / "a.safetensors", masks, head_of(), CARD, encoder.half())
    assert not [*tmp_path.iterdir()]


def test_another_base_is_refused(saved):
    for other in (encoder_of(seed=1), AutoModel.from_config(CONFIGS["distilbert"]).eval()):
        assert_refused(other, load_mask(saved), "another base")
    with pytest.raises(ValueError, match="another base"):
        load_mask(saved, base=encoder_of(seed=1))


# ---- another mask as the reference


@pytest.fixture
def family(tmp_path) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """A mask far from the largest weights, and another near the first: its path, with the masks of the second."""
    encoder = encoder_of()
    first = masks_of(encoder)
    generator = torch.Generator().manual_seed(5)
    second = {name: mask ^ (torch.rand(mask.shape, generator=generator) < 0.02) for name, mask in first.items()}
    one = save_mask(tmp_path / "one.safetensors", first, head_of(), CARD, encoder)
    return one, save_mask(tmp_path / "two.safetensors", second, head_of(), CARD, encoder, reference=one), second


def test_a_mask_is_stored_by_where_it_differs_from_another(family):
    one, two, masks = family
    mask = load_mask(two)
    assert mask.card["flips"]["reference"]["file"] == "one.safetensors"
    assert two.stat().st_size < one.stat().st_size - 500  # 9,000 weights: 1,125 bytes of bits, or 2 % of flips
    assert same(mask.resolve(encoder_of()).masks, masks)
    model = apply_mask(encoder_of(), load_mask(two))
    assert torch.equal(model.encoder.get_parameter(QUERY) != 0, masks[QUERY])


def test_a_reference_that_is_gone_or_another_is_named(family):
    one, two, _ = family
    encoder = encoder_of()
    content = one.read_bytes()
    one.unlink()
    with pytest.raises(FileNotFoundError, match=r"two.safetensors is stored by where it differs from .one.safetensors"):
        load_mask(two)
    one.with_suffix(".json").unlink()
    save_mask(one, masks_of(encoder, 0.4), head_of(), CARD, encoder)
    with pytest.raises(ValueError, match=r"differs from .one.safetensors.*: it is another file, its sha256 is not"):
        load_mask(two)
    one.write_bytes(content)
    one.with_suffix(".json").unlink()
    load_mask(two)
    one.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"two.safetensors .* is another file, its sha256 is not"):
        load_mask(two)


def test_a_reference_that_cannot_be_one(family, tmp_path):
    one, two, masks = family
    encoder, rest = encoder_of(), (head_of(), CARD)
    third = tmp_path / "three.safetensors"
    with pytest.raises(ValueError, match="a reference to others can have no reference itself"):
        save_mask(third, masks, *rest, encoder, reference=two)
    with pytest.raises(ValueError, match="the reference was made for another base"):
        save_mask(third, masks, *rest, encoder_of(seed=1), reference=one)
    with pytest.raises(ValueError, match="reference must be another mask file in the folder of"):
        save_mask(tmp_path / "elsewhere" / "three.safetensors", masks, *rest, encoder, reference=one)
    with pytest.raises(ValueError, match="reference must be another mask file in the folder of"):
        save_mask(one, masks, *rest, encoder, reference=one)
    with pytest.raises(OSError, match="none.safetensors"):
        save_mask(third, masks, *rest, encoder, reference=tmp_path / "none.safetensors")
    small = {name: mask for name, mask in masks.items() if name == QUERY}
    save_mask(tmp_path / "small.safetensors", small, *rest, encoder)
    with pytest.raises(ValueError, match="the reference has no mask of"):
        save_mask(third, masks, *rest, encoder, reference=tmp_path / "small.safetensors")
    assert not third.exists()


def test_a_reference_may_itself_be_flips_from_the_base(tmp_path):
    encoder = encoder_of()
    one = save_mask(tmp_path / "one.safetensors", near(encoder, 0.5, 0.05), head_of(), CARD, encoder)
    masks = {name: mask ^ (torch.arange(mask.numel()).view(mask.shape) % 100 == 0)
             for name, mask in near(encoder, 0.5, 0.05).items()}  # fmt: skip
    two = save_mask(tmp_path / "two.safetensors", masks, head_of(), CARD, encoder, reference=one)
    assert [load_mask(path).card["format"] for path in (one, two)] == [3, 3]
    assert same(load_mask(two, base=encoder).masks, masks)


def test_the_smallest_matrices_and_the_emptiest_masks():
    encoder = Odd([(1, 1), (1, 9), (9, 1)])
    weights = {f"layer.{n}.weight": module.weight.detach().numpy() for n, module in enumerate(encoder.layer)}
    for value in (True, False):
        masks = {name: np.full(weight.shape, value) for name, weight in weights.items()}
        assert equal(there_and_back(masks, weights)[1], masks)
