"""How much a mask speeds up inference on a CPU, compared with the alternatives: seconds per forward pass.

    python -m benchmarks.inference [--json FILE] [--shapes NAME ...] [--threads N ...] [--batches NAME ...]
                                  [--zoo NAME ...] [--rounds N]

Rivals: the dense model in float32 and bfloat16, torch's dynamic int8, and onnxruntime in float32 and int8 if it is
installed (pip install adaprune[onnx]). Ours, at each sparsity: `apply_mask` with the runtimes ``sparse`` and ``auto``,
the compact model, and the compact model made sparse; at 0.5 also ``units``, the compact model of a mask that removes
whole heads and neurons, in torch and in onnxruntime. All use fused attention, transformers' default. The rivals form
one group, and ours at each sparsity another. Within a group the ways take turns, round after round, together with the
dense float32 model. A ratio is computed within each round, and the median is reported with the extremes. Masks keep the
largest |w| of all layers (``magnitude``), or are random (``random``, where hardly any unit is dead: the worst case for
compact); ``--zoo`` adds learned ones. With one thread, times are processor times, which a busy machine hardly affects;
with more, wall-clock times. Before timing, the logits of ours are compared with those of the masked dense model.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.utils import logging

from adaprune.deploy import apply_mask, load_mask
from adaprune.runs import environment
from adaprune.training import load_encoder
from benchmarks.bars import finish, parser_of
from benchmarks.contenders import (
    INT8,
    OURS,
    SHAPES,
    UNITS_AT,
    Batch,
    batch_of,
    dense,
    has_onnx,
    ours,
    pruned,
    rivals,
    units,
)

REFERENCE = "dense float32"
SPARSITIES = (0.5, 0.8, 0.9, 0.97, 0.99)
MEASURED = ("minilm", "bert-base")
Way = Callable[[], object]
BATCHES = {"1x32": Batch(1, 32, 5), "1x128": Batch(1, 128, 3), "8x128": Batch(8, 128, 1), "32x32": Batch(32, 32, 1)}
TINY = {"1x4": Batch(1, 4, 1), "3x8": Batch(3, 8, 1)}
BARS = {  # at 1x32, one thread: how many times faster than dense float32 the fastest of ours is at least
    "minilm": {0.9: 1.7, 0.97: 3.0, 0.99: 5.0},
    "bert-base": {0.9: 2.0, 0.97: 4.5, 0.99: 8.0},
}
AUTO_BAR, INT8_FROM = 0.95, 0.97


def calls(made: dict[str, object], inputs: dict[str, Tensor]) -> dict[str, Way]:
    """Way -> a function that makes one forward pass."""
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}

    def call(model: object) -> Way:
        return (lambda: model(**inputs)) if isinstance(model, nn.Module) else (lambda: model.run(None, arrays))

    return {way: call(model) for way, model in made.items()}


@torch.inference_mode()
def seconds_in_turns(
    ways: dict[str, Way], times: int, rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Way -> seconds per forward pass, one number per round; the first round does not count."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way, call in ways.items():
            start = clock()
            for _ in range(times):
                call()
            if turn:
                seconds[way].append((clock() - start) / times)
    return seconds


def summary(seconds: dict[str, list[float]]) -> dict[str, dict]:
    """Median seconds, and the speed relative to ``REFERENCE``, computed per round: the median and the extremes."""
    rows = {}
    for way, own in seconds.items():
        faster = [reference / one for reference, one in zip(seconds[REFERENCE], own, strict=True)]
        rows[way] = {
            "median_seconds": statistics.median(own),
            "faster": {"median": statistics.median(faster), "least": min(faster), "greatest": max(faster)},
            "seconds": own,
        }
    return rows


def measure(shape: str, asked: argparse.Namespace, folder: Path) -> list[dict]:
    """One row per way, mask, sparsity (None: a rival's), number of threads and batch."""
    rows = []
    zoo = asked.zoo if shape == "minilm" else []
    for threads in asked.threads:
        torch.set_num_threads(threads)
        clock = time.process_time if threads == 1 else time.perf_counter
        reference = dense(shape)
        for sparsity, mask in [(None, ""), *((s, asked.masks) for s in asked.sparsities), *((0.0, n) for n in zoo)]:
            if sparsity is None:
                made = rivals(shape, threads, folder, asked.onnx)
            elif mask in zoo:
                base, learned = load_encoder("minilm").model, load_mask(mask)
                base.set_attn_implementation("sdpa")
                sparsity, made = learned.sparsity, ours(apply_mask(base, learned))
            else:
                made = ours(pruned(shape, sparsity, mask))
                made |= units(shape, threads, folder, asked.onnx) if sparsity == UNITS_AT else {}
            for name in TINY if shape == "tiny" else asked.batches:
                batch = (TINY | BATCHES)[name]
                ways = calls({REFERENCE: reference, **made}, batch_of(batch, reference))
                found = summary(seconds_in_turns(ways, batch.times, asked.rounds, clock))
                about = {"shape": shape, "threads": threads, "batch": name, "mask": mask, "sparsity": sparsity}
                rows += [{**about, "way": way, **row} for way, row in found.items()]
                show(rows[-len(found) :])
            del made
            gc.collect()
    return rows


def show(rows: list[dict]) -> None:
    """Prints one group at one batch."""
    about, said = rows[0], []
    for row in rows:
        faster = row["faster"]
        span = f"{faster['median']:.2f} ({faster['least']:.2f}-{faster['greatest']:.2f})"
        said.append(f"{row['way']} {row['median_seconds'] * 1e3:.2f} ms, {span}")
    where = "rivals" if about["sparsity"] is None else f"{about['mask']} {about['sparsity']:g}"
    print(f"{about['shape']} {about['batch']} threads {about['threads']} {where}: " + "; ".join(said), flush=True)


def judge(rows: list[dict]) -> list[dict]:
    """What was measured and the least it should be; empty if nothing was measured."""
    verdicts = []
    for row in rows:
        place = f"{row['shape']} {row['batch']} threads {row['threads']}"
        others = [r for r in rows if all(r[key] == row[key] for key in ("shape", "batch", "threads"))]
        if row["way"] == "auto":
            verdicts.append((f"auto, {row['mask']} at {row['sparsity']:g}, {place}", row["faster"]["median"], AUTO_BAR))
        if row["way"] != OURS[0]:
            continue  # once for each mask
        alike = [r for r in others if (r["mask"], r["sparsity"]) == (row["mask"], row["sparsity"])]
        same = [r["faster"]["median"] for r in alike if r["way"] in OURS]
        limit = BARS.get(row["shape"], {}).get(row["sparsity"])
        if limit and (row["batch"], row["threads"]) == ("1x32", 1):
            verdicts.append((f"ours at {row['sparsity']}, {place}", max(same), limit))
        rival = [r["faster"]["median"] for r in others if r["way"] in INT8]
        if rival and row["sparsity"] >= INT8_FROM:
            verdicts.append((f"ours beside int8 at {row['sparsity']}, {place}", max(same), max(rival)))
    return [
        {"what": what, "found": found, "limit": limit, "reached": found >= limit} for what, found, limit in verdicts
    ]


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line, read."""
    parser = parser_of("inference", __doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(MEASURED))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batches", nargs="+", choices=BATCHES, default=list(BATCHES), help="rows x tokens")
    parser.add_argument("--sparsities", nargs="+", type=float, default=list(SPARSITIES))
    parser.add_argument("--masks", choices=("magnitude", "random"), default="magnitude")
    parser.add_argument("--zoo", nargs="+", default=[], metavar="NAME", help="learned masks of MiniLM, by their names")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-onnx", dest="onnx", action="store_false", help="leave onnxruntime out")
    asked = parser.parse_args(given)
    if asked.rounds < 1 or min(asked.threads) < 1 or not all(0 < sparsity < 1 for sparsity in asked.sparsities):
        parser.error("rounds and threads must be at least 1, sparsities between 0 and 1")
    asked.onnx = asked.onnx and has_onnx()
    return asked


def main(given: list[str] | None = None) -> int:
    """Measures, prints and writes the results; returns the exit code."""
    asked = arguments(given)
    logging.disable_progress_bar()
    print(f"{asked.masks} masks, {asked.rounds} rounds in turns; seconds of a pass, times faster than {REFERENCE}")
    if not asked.onnx:
        print("without onnxruntime: it is not installed, or not asked for")
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for shape in asked.shapes for row in measure(shape, asked, Path(folder))]
    about = environment(max(asked.threads), masks=asked.masks, rounds=asked.rounds, onnx=asked.onnx)
    return finish(asked, about, judge(rows), rows=rows)


if __name__ == "__main__":
    sys.exit(main())
