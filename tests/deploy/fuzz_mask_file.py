"""Fuzzes the reader of mask files: python -m tests.deploy.fuzz_mask_file --minutes 10

A file is changed at random, in its bytes and behind its seals, and must then be refused with its name or hold exactly
the original, within a second and in bounded memory; so must a file of flips once its base is known. What breaks that
becomes a test in test_mask_format.py.
"""

import argparse
import functools
import hashlib
import json
import struct
import tempfile
import time
import tracemalloc
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from adaprune.deploy import Mask, load_mask, save_mask
from adaprune.masks import keep_top
from tests.deploy.test_mask_file import CARD, Odd, head_of, same

KINDS = 8  # of original files
SHAPES = [(16, 24), (30, 30)], [(64, 64), (40, 90)]  # without flips, with

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 70), st.sampled_from([2**31, 2**40, 2**63, 10**30, -(2**40), 0.5, 1e308]),
    st.text(max_size=5), st.lists(st.integers(-3, 2**40), max_size=9),
    st.sampled_from(["bits", "bytes", "gaps", "outer", "flips", {}]),
)  # fmt: skip
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.integers(0, 2**20), st.integers(0, 7)),
        st.tuples(st.just("cut"), st.integers(0, 2**20), st.integers(0, 64)),
        st.tuples(st.just("insert"), st.integers(0, 2**20), st.binary(min_size=1, max_size=40)),
        st.tuples(
            st.just("data"), st.integers(0, 2**20), st.binary(min_size=1, max_size=8)
        ),  # with its hash made to fit
        st.tuples(st.just("card"), st.integers(0, 2**20), VALUES),  # and sealed again
        st.tuples(st.just("header"), st.integers(0, 2**20), VALUES),
        st.tuples(st.just("without"), st.integers(0, 2**20), st.none()),  # an entry of the card, and sealed again
    ),
    min_size=1,
    max_size=4,
)
MEMORY = 300 * 2**20


@functools.cache
def original(number: int) -> tuple[bytes, Mask, Odd, bytes]:
    """A small valid file, what it holds, its base, and the file beside it: 0 to 3 and 7 without flips.

    4 and 5 differ from the largest weights (5 in many places near the cut), 6 from the file beside it. 7 has whole
    rows and columns.
    """
    shapes, density = SHAPES[number > 3], [0.5, 0.3, 0.03, 0.97, 0.5, 0.3, 0.5, 0.5][number]
    generator = torch.Generator().manual_seed(number)
    torch.manual_seed(0)
    base = Odd(shapes)
    names = [f"layer.{i}.weight" for i in range(len(shapes))]
    masks = {name: torch.rand(shape, generator=generator) < density for name, shape in zip(names, shapes, strict=True)}
    with tempfile.TemporaryDirectory() as folder:
        beside = save_mask(Path(folder, "b.safetensors"), masks, head_of(3, 2, 5), CARD, base)
        if number == 7:
            masks = {name: mask[:, :1] & mask[:1] for name, mask in masks.items()}
        elif number > 3:
            chances = {name: torch.full(mask.shape, 0.03) for name, mask in masks.items()}
            if number < 6:
                sizes = {name: base.get_parameter(name).detach().abs() for name in names}
                masks = keep_top(sizes, density)
                cut = min(size[masks[name]].min() for name, size in sizes.items())
                if number == 5:
                    chances = {name: 0.5 * torch.exp(-20 * (size / cut - 1).abs()) for name, size in sizes.items()}
            drawn = {name: torch.rand(mask.shape, generator=generator) for name, mask in masks.items()}
            masks = {name: mask ^ (drawn[name] < chances[name]) for name, mask in masks.items()}
        path = Path(folder, "a.safetensors")
        save_mask(path, masks, head_of(3, 2, 5), CARD, base, reference=beside if number == 6 else None)
        mask = load_mask(path, base=base)
        codings = {said["coding"] for said in mask.card["tensors"].values()}
        assert (codings == {"flips"}) == (3 < number < 7) and (codings == {"outer"}) == (number == 7), codings
        return path.read_bytes(), mask, base, beside.read_bytes()


def places(value, way=()) -> list[tuple]:
    """The way to everything in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(*way, key) for key, _ in inner] + [found for key, item in inner for found in places(item, (*way, key))]


GONE = object()


def put(value, place: int, new) -> None:
    """Replaces one thing in a JSON value, or takes it out."""
    *way, last = places(value)[place % len(places(value))]
    for key in way:
        value = value[key]
    if new is GONE:
        del value[last]
    else:
        value[last] = new


def changed(content: bytes, kind: str, place: int, what) -> bytes:
    """The file with one change; one that its form no longer allows is left out."""
    if kind in ("flip", "cut", "insert"):
        place %= max(len(content), 1)
        middle = {"flip": bytes([content[place] ^ 1 << what]) if kind == "flip" and content else b"", "cut": b""}
        if kind == "insert":
            return content[:place] + what + content[place:]
        return content[:place] + middle[kind] + content[place + (1 if kind == "flip" else what) :]
    try:
        size = struct.unpack("<Q", content[:8])[0]
        header, data = json.loads(content[8 : 8 + size]), bytearray(content[8 + size :])
        sealed = json.loads(header["__metadata__"]["adaprune"])
        if kind == "header":
            put(header, place, what)
        elif kind in ("card", "without"):
            put(sealed["card"], place, what if kind == "card" else GONE)
        else:
            names = sorted(set(header) - {"__metadata__"})
            name = names[place % len(names)]
            begin, end = (min(place, len(data)) for place in header[name]["data_offsets"])  # of a changed header
            data[begin:end] = (what * (end - begin))[: end - begin] if place % 2 else data[begin:end][::-1]
            part, _, weight = name.partition(".")
            dtype = {"U8": "torch.uint8", "F32": "torch.float32"}[header[name]["dtype"]]
            text = f"{dtype} {tuple(header[name]['shape'])} ".encode() + bytes(data[begin:end])
            card = sealed["card"]
            said = card["flips"] if part == "flips" else card["tensors" if part == "mask" else "head"][weight]
            said["sha256"] = hashlib.sha256(text).hexdigest()
        if kind != "header":
            card = json.dumps(sealed["card"], sort_keys=True, separators=(",", ":"))
            sealed["sha256"] = hashlib.sha256(card.encode()).hexdigest()
            header["__metadata__"]["adaprune"] = json.dumps(sealed)
    except (ValueError, TypeError, LookupError, AttributeError, struct.error):
        return content
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def judge(path: Path, changes: list[tuple], number: int) -> str:
    """ "refused", "the same" or "another" (sealed anew, and sound); AssertionError for anything else."""
    content, mask, base, beside = original(number)
    for change in changes:
        content = changed(content, *change)
    path.write_bytes(content)
    path.with_name("b.safetensors").write_bytes(beside)
    tracemalloc.start()
    start = time.process_time()
    found = None
    try:
        found = load_mask(path)
        found = found.resolve(base)
    except (ValueError, FileNotFoundError) as error:  # once it is read, "another base" can be its fault too
        said = str(error)
        assert str(path) in said or (found is not None and "another base" in said), said
        assert said.isprintable() and len(said) < 1500, said
        found = None
    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 1 and peak < MEMORY, (seconds, peak)
    if found is None:
        return "refused"
    assert sum(m.numel() for m in found.masks.values()) == found.total
    assert all(int(found.masks[name].sum()) == said["kept"] for name, said in found.card["tensors"].items())
    if {kind for kind, *_ in changes} <= {"flip", "cut", "insert"}:
        assert same(found.masks, mask.masks) and same(found.head, mask.head) and found.card == mask.card
        return "the same"
    return "another"


def main() -> None:
    """Fuzzes for the minutes asked, with new seeds again and again."""
    parser = argparse.ArgumentParser(prog="python -m tests.deploy.fuzz_mask_file", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    until, counts, rounds = time.monotonic() + 60 * parser.parse_args().minutes, {}, 0
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < until:

            @seed(rounds)
            @settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck),
                      phases=[Phase.generate, Phase.shrink])  # fmt: skip
            @given(changes=CHANGES, number=st.integers(0, KINDS - 1))
            def one(changes, number):
                said = judge(Path(folder, "a.safetensors"), changes, number)
                counts[said] = counts.get(said, 0) + 1

            one()
            rounds += 1
            print(f"{sum(counts.values())} files in {rounds} rounds, none broke the reader: {counts}", flush=True)


if __name__ == "__main__":
    main()
