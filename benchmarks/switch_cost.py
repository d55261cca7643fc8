"""The cost of another task on a base model, compared with LoRA and a full checkpoint: bytes, and time to switch.

    python -m benchmarks.switch_cost [--json FILE] [--shape NAME] [--rounds N] [--check]

Weights, masks and heads are random. All ways take turns, round after round. The medians of wall-clock times and of
processor times over all threads are reported; other load hardly affects the latter, which the targets are about. The
cost of masks is measured in forward passes of `MaskedEncoder` on one row of 8 tokens: a switch costs the additional
time of the pass after `set_task`, compared with the same pass again. ``mask, kept`` switches between two tasks that are
both kept (``keep=2``); in ``mask, not kept`` the matrices of one task replace those of the other (``keep=1``).
``keep=0`` is the additional time of a pass compared with `apply_mask`, with or without a switch, and ``no switch`` the
same with ``keep=1`` and the same task. ``lora`` is peft's ``set_adapter`` between adapters of r = 8 on every linear
layer (the merged variant removes one from the weights and adds the other); ``checkpoint`` loads a fine-tuned model.
Files are in the page cache. Coding: one thread encodes and decodes a whole model's mask at four sparsities.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import entropy
from transformers import BertConfig, BertModel
from transformers.utils import logging

from adaprune.deploy import MaskedEncoder, apply_mask, decode, encode, load_mask, save_mask
from adaprune.deploy.runtime.served_layers import Task
from adaprune.masks import maskable
from adaprune.runs import environment
from adaprune.training import AdaptationHead, Encoder
from benchmarks.bars import finish, parser_of

SHAPES = {
    "bert-base": {},
    "minilm": dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
    "tiny": dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=50),
}
SPARSITIES = (0.5, 0.9, 0.99, 0.999)
SWITCH_LIMITS = {"mask, kept": 0.004, "mask, not kept": 0.025}  # seconds
CODING_LIMIT, SIZE_LIMIT = 3.0, 1.03  # seconds, times the entropy bound (+ 64 kB)
SAME_LIMIT = 1.02  # a pass without a switch, as a share of apply_mask's
SPARSE = 0.97  # where the sparse runtime is measured
Way = Callable[[int], object]


def encoder_of(shape: str) -> BertModel:
    """A random frozen BERT of the shape; equal calls give equal weights."""
    torch.manual_seed(0)
    return BertModel(BertConfig(**SHAPES[shape]), add_pooling_layer=False).eval().requires_grad_(False)


def random_masks(encoder: BertModel, sparsity: float, seed: int = 0) -> dict[str, torch.Tensor]:
    """Independent entries, the worst case for a coder: no other masks of this density need more bytes."""
    generator = torch.Generator().manual_seed(seed)
    modules = maskable(encoder).items()
    return {name: torch.rand(module.weight.shape, generator=generator) >= sparsity for name, module in modules}


def entropy_bytes(kept: int, size: int) -> float:
    """The bound n H(k / n) / 8 for a mask that keeps ``kept`` of ``size`` entries, in bytes."""
    return size * float(entropy([kept / size, 1 - kept / size], base=2)) / 8


def mask_file(folder: Path, encoder: BertModel, name: str, sparsity: float, seed: int) -> Path:
    """A task's file with a random mask and a new head for two classes."""
    head = AdaptationHead(encoder.config.num_hidden_layers, encoder.config.hidden_size, 2).state_dict()
    masks = random_masks(encoder, sparsity, seed)
    return save_mask(folder / f"{name}.safetensors", masks, head, {"labels": ["no", "yes"]}, encoder)


def coding(encoder: BertModel, folder: Path) -> list[dict]:
    """Per sparsity: coded bytes and their bound, the size of the file, and seconds to encode and decode all masks."""
    rows = []
    for sparsity in SPARSITIES:
        masks = {name: mask.numpy().ravel() for name, mask in random_masks(encoder, sparsity).items()}
        kept = {name: int(mask.sum()) for name, mask in masks.items()}
        start = time.process_time()
        coded = {name: encode(mask) for name, mask in masks.items()}
        between = time.process_time()
        found = {name: decode(*coded[name], mask.shape, kept[name]) for name, mask in masks.items()}
        end = time.process_time()
        assert all(np.array_equal(found[name], mask) for name, mask in masks.items())
        path = mask_file(folder, encoder, f"coded_{sparsity}", sparsity, 0)
        head = sum(4 * t.numel() for t in load_mask(path).head.values())
        rows.append({
            "sparsity": sparsity,
            "bound_bytes": round(sum(entropy_bytes(kept[name], mask.size) for name, mask in masks.items())),
            "coded_bytes": sum(len(data) for _, data in coded.values()),
            "plain_bytes": sum(-(-mask.size // 8) for mask in masks.values()),
            "head_bytes": head,
            "file_bytes": path.stat().st_size,
            "encode_seconds": between - start,
            "decode_seconds": end - between,
        })  # fmt: skip
    return rows


def ways_to_switch(shape: str, folder: Path) -> tuple[dict[str, tuple[Way, Way | None]], dict[str, int]]:
    """Way -> a function that serves task 0 or 1, and one whose time is subtracted; the bytes per task."""
    files = {sparsity: [mask_file(folder, encoder_of(shape), f"t{n}_{sparsity}", sparsity, n) for n in range(2)]
             for sparsity in (0.5, SPARSE)}  # fmt: skip
    ways: dict[str, tuple[Way, Way | None]] = {}
    passes = {
        name: passes_of(shape, files[sparsity], keep, runtime)
        for name, sparsity, keep, runtime in (
            ("mask, kept", 0.5, 2, "dense"),
            ("mask, not kept", 0.5, 1, "dense"),
            ("sparse, kept", SPARSE, 2, "sparse"),
            ("sparse, not kept", SPARSE, 1, "sparse"),
        )
    }
    for name, (switched, again) in passes.items():
        ways[name] = switched, again
    _, plain = passes["mask, not kept"]
    single = apply_mask(encoder_of(shape), load_mask(files[0.5][0]))
    single_pass: Way = lambda number: single(**one_row())  # noqa: E731
    ways["mask, keep=0"] = passes_of(shape, files[0.5], 0, "dense")[1], single_pass
    ways["mask, no switch"] = plain, single_pass
    ways["a pass of apply_mask"] = single_pass, None
    rivals, bytes_ = rivals_of(shape, folder, files[0.5][0])
    return {**ways, **rivals}, bytes_


def parts_of_a_switch(shape: str, file: Path, rounds: int) -> dict[str, float]:
    """The parts of writing all masked matrices, each including the previous ones: median processor seconds."""
    encoder = encoder_of(shape)
    task = Task(load_mask(file), torch.nn.Identity(), encoder.config)
    weights = {name: module.weight for name, module in maskable(encoder).items()}
    memory = {name: torch.empty_like(weight) for name, weight in weights.items()}
    parts: dict[str, Callable[[str, torch.Tensor], object]] = {
        "unpacked": lambda name, weight: task.kept(name, weight),
        "and multiplied": lambda name, weight: task.kept(name, weight).mul_(weight),
        "and written to memory": lambda name, weight: torch.mul(task.kept(name, weight), weight, out=memory[name]),
        "a plain copy of the matrices": lambda name, weight: memory[name].copy_(weight),
    }
    found: dict[str, list[float]] = {part: [] for part in parts}
    for _ in range(rounds):
        for part, work in parts.items():
            used = time.process_time()
            for name, weight in weights.items():
                work(name, weight)
            found[part].append(time.process_time() - used)
    return {part: statistics.median(seconds) for part, seconds in found.items()}


def one_row() -> dict[str, torch.Tensor]:
    """One row of 8 tokens."""
    ids = torch.arange(5, 13)[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def passes_of(shape: str, files: list[Path], keep: int, runtime: str) -> tuple[Way, Way]:
    """A forward pass for task 0 or 1 after a switch to it, and one for the task that is already served."""
    served = MaskedEncoder(Encoder(encoder_of(shape), None, shape, "random"), keep, runtime)
    for number, file in enumerate(files):
        served.add_task(f"task{number}", file)

    def switched(number: int) -> None:
        served.set_task(f"task{number}")
        served(**one_row())

    return switched, lambda number: served(**one_row())


def rivals_of(shape: str, folder: Path, file: Path) -> tuple[dict[str, tuple[Way, Way | None]], dict[str, int]]:
    """LoRA and full checkpoints: ways to switch, and the bytes that a task adds on disk with each and with a mask."""
    from peft import LoraConfig, get_peft_model  # of the extra adaprune[methods]

    config = LoraConfig(r=8, target_modules="all-linear")
    lora, merged = (get_peft_model(encoder_of(shape), config, adapter_name="task0") for _ in range(2))
    lora.save_pretrained(folder / "lora")
    for model in (lora, merged):
        model.add_adapter("task1", config)
    merged.merge_adapter()

    def merge(number: int) -> None:
        merged.unmerge_adapter()
        merged.set_adapter(f"task{number}")
        merged.merge_adapter()

    dense = encoder_of(shape)
    checkpoints = [folder / f"full{number}.safetensors" for number in range(2)]
    for checkpoint in checkpoints:
        save_file(dense.state_dict(), checkpoint)
    ways: dict[str, tuple[Way, Way | None]] = {
        "lora": (lambda number: lora.set_adapter(f"task{number}"), None),
        "lora, merged": (merge, None),
        "checkpoint": (lambda number: dense.load_state_dict(load_file(checkpoints[number])), None),
    }
    head = sum(4 * t.numel() for t in load_mask(file).head.values())
    adapter = sum(part.stat().st_size for part in (folder / "lora").rglob("*.safetensors"))
    bytes_ = {"mask": file.stat().st_size, "lora": adapter + head, "checkpoint": head}
    bytes_["checkpoint"] += checkpoints[0].stat().st_size
    return ways, bytes_


def seconds_in_turns(ways: dict[str, tuple[Way, Way | None]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Way -> wall-clock and processor seconds of a switch, a pair per round; the first two rounds do not count."""

    def timed(call: Way, number: int) -> tuple[float, float]:
        start, used = time.perf_counter(), time.process_time()
        call(number)
        return time.perf_counter() - start, time.process_time() - used

    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for turn in range(rounds + 2):
        for way, (switch, same) in ways.items():
            whole = timed(switch, turn % 2)
            rest = (0.0, 0.0) if same is None else timed(same, turn % 2)
            if turn > 1:
                seconds[way].append((whole[0] - rest[0], whole[1] - rest[1]))
    return seconds


def judge(shape: str, switches: dict[str, dict], coded: list[dict]) -> list[dict]:
    """What was measured and its upper limit; empty for a shape without targets."""
    if shape != "bert-base":
        return []
    bars = [(f"switch seconds, {way}", switches[way]["processor_seconds"], at) for way, at in SWITCH_LIMITS.items()]
    alone = switches["a pass of apply_mask"]["processor_seconds"]
    bars.append(
        (
            "a pass without a switch / of apply_mask",
            1 + switches["mask, no switch"]["processor_seconds"] / alone,
            SAME_LIMIT,
        )
    )
    for row in coded:
        at = f"at sparsity {row['sparsity']}"
        limit = SIZE_LIMIT * row["bound_bytes"] + row["head_bytes"] + 64_000
        bars.append((f"file bytes {at}", row["file_bytes"], limit))
        bars += [(f"{what} seconds {at}", row[f"{what}_seconds"], CODING_LIMIT) for what in ("encode", "decode")]
    return [{"what": what, "found": found, "limit": limit, "reached": found <= limit} for what, found, limit in bars]


def main(given: list[str] | None = None) -> int:
    """Measures, prints and writes the results; returns the exit code."""
    parser = parser_of("switch_cost", __doc__)
    parser.add_argument("--shape", choices=SHAPES, default="bert-base")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args(given)
    torch.set_num_threads(asked.threads)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        coded = coding(encoder_of(asked.shape), Path(folder))
        parts = parts_of_a_switch(
            asked.shape, mask_file(Path(folder), encoder_of(asked.shape), "a", 0.5, 0), asked.rounds
        )
        ways, bytes_ = ways_to_switch(asked.shape, Path(folder))
        seconds = seconds_in_turns(ways, asked.rounds)
    switches = {
        way: dict(
            zip(("clock_seconds", "processor_seconds"), map(statistics.median, zip(*pairs, strict=True)), strict=True)
        )
        for way, pairs in seconds.items()
    }
    print(f"{asked.shape}, {asked.threads} threads, {asked.rounds} rounds in turns\n")
    print(f"{'sparsity':>8} {'bound':>11} {'coded':>11} {'file':>11} {'encode s':>9} {'decode s':>9}")
    for row in coded:
        numbers = (row["bound_bytes"], row["coded_bytes"], row["file_bytes"])
        print(f"{row['sparsity']:>8}", *(f"{n:>11,}" for n in numbers), end=" ")
        print(f"{row['encode_seconds']:9.2f} {row['decode_seconds']:9.2f}")
    print(f"\n{'a task by':22} {'bytes':>12} {'ms, processor':>14} {'ms, clock':>10}")
    for way, row in switches.items():
        size = f"{bytes_[way.split(',')[0]]:,}" if way in ("mask, kept", "lora", "checkpoint") else ""
        print(f"{way:22} {size:>12} {row['processor_seconds'] * 1e3:14.2f} {row['clock_seconds'] * 1e3:10.2f}")
    print("\nwriting masked matrices, ms of the processor:", {part: round(1e3 * s, 1) for part, s in parts.items()})
    about = environment(asked.threads, shape=asked.shape, rounds=asked.rounds)
    bars = judge(asked.shape, switches, coded)
    return finish(asked, about, bars, coding=coded, bytes=bytes_, switch=switches, parts=parts)


if __name__ == "__main__":
    sys.exit(main())
