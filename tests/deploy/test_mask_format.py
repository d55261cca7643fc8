"""Mask files near the entropy bound, read by a reader that was written from docs/mask_format.md alone, and fuzzed."""

import json
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adaprune import load_mask, save_mask
from adaprune.deploy.coding import decode, encode
from adaprune.training import tensor_hashes
from benchmarks.switch_cost import entropy_bytes
from tests.deploy import fuzz_mask_file, samples
from tests.deploy.test_mask_file import CARD, HOSTILE, Odd, encoder_of, head_of, masks_of, replaced, rewritten, same


def read_file(path: Path) -> tuple[dict, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Card, masks and head of a mask file, as the page says."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    card = json.loads(header.pop("__metadata__")["adaprune"])["card"]
    masks, head = {}, {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        data = content[8 + length + begin : 8 + length + end]
        part, _, name = name.partition(".")
        if part == "head":
            head[name] = np.frombuffer(data, "<f4").reshape(entry["shape"])
        else:
            masks[name] = read_mask(data, **{key: card["tensors"][name][key] for key in ("shape", "kept", "coding")})
    return card, masks, head


def read_mask(data: bytes, shape: list[int], kept: int, coding: str) -> np.ndarray:
    n = int(np.prod(shape))
    if coding in ("bits", "bytes"):
        packed = np.frombuffer(zlib.decompress(data) if coding == "bytes" else data, np.uint8)
        return np.array([packed[i // 8] >> i % 8 & 1 for i in range(n)], bool).reshape(shape)
    rare = min(kept, n - kept)
    mask = np.full(n, kept != rare)
    if rare:
        low = max(0, len(f"{n // rare:b}") - 5)
        first = -(-rare * low // 8)
        bits = [data[i // 8] >> i % 8 & 1 for i in range(rare * low)]
        position, high, j = -1, 0, 0
        for byte in zlib.decompress(data[first:]):
            high += byte
            if byte != 255:
                gap = high * 2**low + sum(bits[j * low + place] << place for place in range(low))
                position, high, j = position + gap + 1, 0, j + 1
                mask[position] = kept == rare
        assert j == rare
    return mask.reshape(shape)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 70)),
    density=st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0]),
    plain=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_stranger_reads_what_is_written(tmp_path_factory, shape, density, plain, seed):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density
    path = tmp_path_factory.mktemp("m") / "a.safetensors"
    save_mask(path, {"layer.0.weight": mask}, head_of(1), {"labels": []}, Odd([shape]), plain=plain)
    card, masks, head = read_file(path)
    assert np.array_equal(masks["layer.0.weight"], mask.numpy())
    assert torch.equal(load_mask(path).masks["layer.0.weight"], mask)
    assert all(np.array_equal(head[name], tensor.numpy()) for name, tensor in head_of(1).items())
    assert card["tensors"]["layer.0.weight"]["coding"] == "bits" or not plain


@settings(max_examples=60, deadline=None)
@given(size=st.integers(0, 5000), density=st.floats(0, 1), run=st.integers(1, 3000), seed=st.integers(0, 99))
def test_codings_round_trip(size, density, run, seed):
    """Also masks whose kept entries lie in long runs, with gaps of many bytes 255."""
    draws = np.random.default_rng(seed).random(size)
    mask = np.repeat(draws, run)[:size] < density if run > 100 else draws < density
    for plain in (False, True):
        coding, data = encode(mask, plain)
        assert np.array_equal(decode(coding, data, mask.size, int(mask.sum())), mask)
        assert len(data) <= -(-size // 8)


def test_gaps_by_hand():
    """n = 6000, r = 2: L of 3000 is 12, so 7 low bits; gaps 300 = 2 * 128 + 44, 4999 - 301 = 4698 = 36 * 128 + 90."""
    mask = np.zeros(6000, bool)
    mask[[300, 4999]] = True
    coding, data = encode(mask)
    assert coding == "gaps" and zlib.decompress(data[2:]) == bytes([2, 36])
    assert int.from_bytes(data[:2], "little") == 44 + (90 << 7)
    assert encode(~mask) == ("gaps", data)  # the same positions, of the entries that go
    assert encode(np.zeros(6000, bool)) == encode(np.ones(6000, bool)) == ("gaps", b"")


@pytest.mark.parametrize("density", [0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05, 0.01, 0.001, 0.9, 0.999])
def test_a_matrix_of_bert_is_near_the_bound(density):
    """One 768 x 3072 matrix, at most 3 % and 500 bytes above n H(k / n); a model has 72, and 64 kB to spare."""
    mask = np.random.default_rng(0).random(768 * 3072) < density
    _, data = encode(mask)
    assert len(data) <= 1.03 * entropy_bytes(int(mask.sum()), mask.size) + 500


def test_a_whole_file_is_near_the_bound(tmp_path):
    """Two layers as wide as BERT-base: 14 million weights, with the head and 64 kB besides."""
    shapes = [(768, 768)] * 4 + [(3072, 768), (768, 3072)]
    with torch.device("meta"):
        encoder = Odd(shapes * 2)
    encoder.to_empty(device="cpu").requires_grad_(False)
    for parameter in encoder.parameters():
        nn.init.zeros_(parameter)
    masks = masks_of(encoder, 0.01, "encoder")
    head = head_of(2, 2, 768)
    path = save_mask(tmp_path / "a.safetensors", masks, head, {"labels": ["a", "b"]}, encoder)
    bound = sum(entropy_bytes(int(mask.sum()), mask.numel()) for mask in masks.values())
    assert path.stat().st_size <= 1.03 * bound + sum(4 * t.numel() for t in head.values()) + 64_000
    assert same(load_mask(path).masks, masks)


@pytest.mark.parametrize("number", [1, 2])
def test_files_of_older_formats_load_for_ever(number):
    """Written when those formats were the newest; format 1 has plain bits only, and no coding in its card."""
    mask = load_mask(samples.FOLDER / f"format_{number}.safetensors")
    assert same(mask.masks, samples.masks()) and same(mask.head, samples.head())
    assert mask.card["format"] == number and {key: mask.card[key] for key in samples.CARD} == samples.CARD
    assert mask.card["base"] == tensor_hashes(samples.Base())
    codings = [said.get("coding") for said in mask.card["tensors"].values()]
    assert codings == [[None] * 4, ["bits", "bytes", "gaps", "gaps"]][number - 1]


# ---- damaged and hostile coded masks


@pytest.fixture
def coded(tmp_path):
    """A mask file whose masks are coded as gaps, without the card beside it."""
    encoder = encoder_of()
    path = save_mask(tmp_path / "a.safetensors", masks_of(encoder, 0.05), head_of(), CARD, encoder)
    path.with_suffix(".json").unlink()
    assert {said["coding"] for said in load_mask(path).card["tensors"].values()} == {"gaps"}
    return path


def test_a_small_file_cannot_claim_a_large_mask(coded):
    """Empty masks take no bytes; what they claim is bound by the size of the file."""

    def claim(card, tensors):
        name = next(iter(card["tensors"]))
        card["tensors"][name].update(shape=[2**20, 2**20], kept=0)
        replaced(tensors, f"mask.{name}", torch.zeros(0, dtype=torch.uint8))

    rewritten(coded, claim)
    start = time.process_time()
    with pytest.raises(ValueError, match="claim to hold the masks of more than"):
        load_mask(coded)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("data", "size", "kept"),
    [
        (b"", 1000, 3),
        (b"\0\0", 1000, 3),
        (b"\0\0" + zlib.compress(bytes(10**6)), 1000, 3),  # inflates to more than it may
        (b"\0\0" + zlib.compress(b"\1\2\3") + b"x", 1000, 3),
        (b"\0\0" + zlib.compress(b"\1\2\3")[:-1], 1000, 3),
        (b"\0\0" + zlib.compress(b"\1\2"), 1000, 3),
        (b"\0\0" + zlib.compress(b"\1\2\3\4"), 1000, 3),
        (b"\0\0" + zlib.compress(b"\1\2\3\377"), 1000, 3),  # ends with "and more to come"
        (b"\0\0" + zlib.compress(b"\1\2\376"), 1000, 3),  # beyond the last entry
        (b"\0\0" + zlib.compress(b"\377" * 3 + b"\1\1\1"), 1000, 3),
    ],
    ids=range(10),
)
def test_gaps_that_cannot_be(data, size, kept):
    with pytest.raises(ValueError, match="gaps|zlib|incomplete"):
        decode("gaps", data, size, kept)


def test_bytes_and_codings_that_cannot_be():
    for coding, data in {"bytes": zlib.compress(bytes(10**6)), "bits": bytes(3), "other": b"", None: b""}.items():
        with pytest.raises(ValueError, match="zlib|3 bytes|coding must be one of bits, bytes, gaps"):
            decode(coding, data, 16, 0)
    with pytest.raises(ValueError, match="not 3 entries are kept"):
        decode("bits", b"\1\1", 16, 3)


@pytest.mark.parametrize("trick", HOSTILE)
def test_hostile_cards_of_coded_masks(coded, trick):
    rewritten(coded, HOSTILE[trick])
    with pytest.raises(ValueError, match="a.safetensors is not a whole mask file"):
        load_mask(coded)


@settings(max_examples=15, deadline=None)
@given(changes=fuzz_mask_file.CHANGES, seed=st.integers(0, 3))
def test_fuzzed_files_load_whole_or_are_refused(tmp_path_factory, changes, seed):
    found = fuzz_mask_file.judge(tmp_path_factory.mktemp("f") / "a.safetensors", changes, seed)
    assert found in ("refused", "the same", "another")  # judge itself asserts what each must mean
