"""The cost of a step of mask learning compared with full fine-tuning: seconds, and peak memory above the model.

    python -m benchmarks.step_cost [--json FILE] [--shapes NAME ...] [--rounds N] [--check]

Time: all variants are in one process and take turns, round after round. A ratio is computed within each round, and its
median over the rounds is reported with the extremes. With one thread on a CPU, times are processor times, which a busy
machine hardly affects; otherwise wall-clock times. Memory: each variant runs in its own process. Fine-tuning clips the
gradient's norm and steps with AdamW (``fused``), both as transformers.Trainer does by default; adaprune clips only the
head. Every variant has the attention dropout of 0 that ``load_encoder`` sets, and hidden dropout.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import BertConfig, BertModel, TrainingArguments
from transformers.utils import logging

from adaprune.masks import RULES, AdaPrune, attach, initial_theta, maskable, thetas_of, threshold_of
from adaprune.methods.learning import optimiser_for
from adaprune.runs import TUNED, environment
from adaprune.training import AdaptedModel, load_encoder
from benchmarks.bars import finish, parser_of

REFERENCE = "finetune"
VARIANTS = (REFERENCE, "forward_backward", "features", "adaprune", "adaprune_embeddings")
SPARSITY = 0.5  # the threshold while steps are measured


class Shape(NamedTuple):
    """A model and its batch. ``config`` is that of a random BERT; None means the real MiniLM."""

    batch: int
    tokens: int
    steps: int  # in one turn
    config: dict | None


SHAPES = {
    "minilm-32x32": Shape(32, 32, 4, None),
    "minilm-8x128": Shape(8, 128, 4, None),
    "bert-base-8x128": Shape(8, 128, 1, {}),  # BertConfig's defaults: 12 layers x 768, vocabulary 30,522
    "tiny-2x8": Shape(
        2, 8, 1, dict(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    ),
}
MEASURED = ("minilm-32x32", "minilm-8x128", "bert-base-8x128")


class Bar(NamedTuple):
    """At most ``limit`` times the reference, for ``variants`` of adaprune."""

    shape: str
    what: str  # "seconds" or "memory"
    limit: float
    variants: tuple[str, ...] = ("adaprune", "adaprune_embeddings")


BARS = (
    Bar("minilm-32x32", "seconds", 1.00),
    Bar("minilm-8x128", "seconds", 1.00),
    Bar("bert-base-8x128", "seconds", 1.00),
    Bar("bert-base-8x128", "memory", 0.55),
)


def load(shape: Shape, device: str) -> AdaptedModel:
    """The frozen model of a shape with a new head for two classes; all weights are touched, and so resident."""
    if shape.config is None:
        encoder = load_encoder("minilm").model
    else:
        how = "sdpa" if torch.accelerator.is_available() else "eager"  # as load_encoder
        config = BertConfig(**shape.config, attention_probs_dropout_prob=0.0, attn_implementation=how)
        encoder = BertModel(config, add_pooling_layer=False).requires_grad_(False)
    model = AdaptedModel.for_task(encoder, outputs=2).to(device)
    for parameter in model.parameters():
        parameter.detach().sum()
    return model


def stepper(variant: str, shape: Shape, model: AdaptedModel, rule: str) -> Callable[[], None]:
    """A function that takes one training step of ``variant`` on ``model``, always on the same random batch."""
    device = next(model.parameters()).device
    ids = torch.randint(1, model.config.vocab_size, (shape.batch, shape.tokens), device=device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 2}
    optimiser = optimiser_of(variant, model, rule)
    trained = {id(theta) for theta in thetas_of(model.encoder).values()}
    clipped = [weight for weight in model.parameters() if weight.requires_grad and id(weight) not in trained]
    model.train()

    def step() -> None:
        model(**batch).loss.backward()
        if optimiser is not None:
            torch.nn.utils.clip_grad_norm_(clipped, TrainingArguments.__dataclass_fields__["max_grad_norm"].default)
            optimiser.step()
        model.zero_grad(set_to_none=True)

    return step


def optimiser_of(variant: str, model: AdaptedModel, rule: str) -> torch.optim.Optimizer | None:
    """Makes ``model`` train what ``variant`` trains and returns its optimiser; None for the two passes only."""
    if variant.startswith("adaprune"):
        return _adaprune(model, "encoder+embeddings" if variant.endswith("embeddings") else "encoder", rule)
    model.encoder.requires_grad_(variant != "features")
    if variant == "forward_backward":
        return None
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.01, fused=trainer_fuses())


def trainer_fuses() -> bool:
    """Whether the Trainer's default optimiser is the fused AdamW (transformers 5 with torch 2.8 and later)."""
    return TrainingArguments.__dataclass_fields__["optim"].default == "adamw_torch_fused"


def _adaprune(model: AdaptedModel, scope: str, rule: str) -> AdaPrune:
    """Attaches masks as the method does: theta from the magnitudes, a threshold at the sparsity, steps in backward."""
    weights = {name: module.weight for name, module in maskable(model.encoder, scope).items()}
    thetas = attach(model.encoder, initial_theta(weights, "magnitude", torch.Generator()))
    threshold = threshold_of(model.encoder)
    threshold.fill_(float(torch.cat([theta.detach().flatten()[::97] for theta in thetas.values()]).quantile(SPARSITY)))
    optimiser = optimiser_for(model, thetas, replace(TUNED, step_rule=rule))
    optimiser.step_in_backward()
    return optimiser


def seconds_in_turns(shape: Shape, variants: tuple[str, ...], rounds: int, rule: str, device: str) -> dict[str, list]:
    """Variant -> seconds per step, one number per round; every variant takes one turn per round."""
    steppers = {variant: stepper(variant, shape, load(shape, device), rule) for variant in variants}
    for step in steppers.values():
        step()
        step()  # the first makes the optimiser's state
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for _ in range(rounds):
        for variant, step in steppers.items():
            _wait_for(device)
            start = clock()
            for _ in range(shape.steps):
                step()
            _wait_for(device)
            seconds[variant].append((clock() - start) / shape.steps)
    return seconds


def _wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(variant: str, shape: Shape, rule: str, device: str, steps: int = 3) -> int | None:
    """Peak bytes of ``steps`` training steps above the loaded model; None if it cannot be measured.

    CUDA: what torch allocated. Linux: the new process's own peak, VmHWM, reset after the model is loaded.
    """
    model = load(shape, device)
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        before, peak = _resident("VmRSS"), lambda: _resident("VmHWM")
    else:
        return None
    step = stepper(variant, shape, model, rule)
    for _ in range(steps):
        step()
    return peak() - before


def _resident(key: str) -> int:
    """A line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


def memory_apart(shape: str, variants: tuple[str, ...], rule: str, device: str, threads: int) -> dict[str, int | None]:
    """Variant -> ``peak_memory``, each measured in its own process."""
    found = {}
    for variant in variants:
        options = ["--memory-of", variant, "--shapes", shape, "--rule", rule, "--device", device]
        command = [sys.executable, "-m", "benchmarks.step_cost", *options, "--threads", str(threads)]
        root = Path(__file__).parents[1]
        done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, encoding="utf-8")
        found[variant] = json.loads(done.stdout.splitlines()[-1])
    return found


def ratios(values: list[float], reference: list[float]) -> dict[str, float]:
    """Median, least and greatest of the ratios value / reference, computed per round.

    >>> ratios([1.0, 3.0, 2.0], [2.0, 2.0, 2.0])
    {'median': 1.0, 'least': 0.5, 'greatest': 1.5}
    """
    each = [value / other for value, other in zip(values, reference, strict=True)]
    return {"median": statistics.median(each), "least": min(each), "greatest": max(each)}


def summary(seconds: dict[str, list[float]], memory: dict[str, int | None]) -> dict[str, dict]:
    """Variant -> seconds, their median and ratio to fine-tuning; bytes and their ratio, or None."""
    rows = {}
    for variant, values in seconds.items():
        bytes_, reference = memory.get(variant), memory.get(REFERENCE)
        rows[variant] = {
            "seconds": values,
            "median_seconds": statistics.median(values),
            "seconds_ratio": ratios(values, seconds[REFERENCE]),
            "memory_bytes": bytes_,
            "memory_ratio": bytes_ / reference if bytes_ and reference else None,
        }
    return rows


def judge(results: dict[str, dict]) -> list[dict]:
    """Every target that ``results`` (shape -> summary) can decide: the measurement, and whether it was reached."""
    verdicts = []
    for bar in BARS:
        for variant in bar.variants:
            row = results.get(bar.shape, {}).get(variant)
            if row is None or row[f"{bar.what}_ratio"] is None:
                continue
            found = row["seconds_ratio"]["median"] if bar.what == "seconds" else row["memory_ratio"]
            verdicts.append({**bar._asdict(), "variants": variant, "found": found, "reached": found <= bar.limit})
    return verdicts


def show(shape: str, rows: dict[str, dict]) -> None:
    """Prints one shape's table."""
    print(f"\n{shape:22} {'s/step':>8} {'/ fine-tuning (least-greatest)':>32} {'peak MB':>9} {'/ fine-tuning':>14}")
    for variant, row in rows.items():
        ratio, bytes_ = row["seconds_ratio"], row["memory_bytes"]
        span = f"{ratio['median']:.2f} ({ratio['least']:.2f}-{ratio['greatest']:.2f})"
        memory = "-" if bytes_ is None else f"{bytes_ / 1e6:.0f}"
        share = "-" if row["memory_ratio"] is None else f"{row['memory_ratio']:.2f}"
        print(f"{variant:22} {row['median_seconds']:8.3f} {span:>32} {memory:>9} {share:>14}", flush=True)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line, read."""
    parser = parser_of("step_cost", __doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(MEASURED))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rule", choices=RULES, default=TUNED.step_rule, help="AdaPrune's rule; the tuned recipe's")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-memory", action="store_true", help="measure seconds only")
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)  # what a child process is asked
    asked = parser.parse_args(given)
    if asked.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {asked.rounds}")
    asked.variants = tuple(variant for variant in VARIANTS if variant in (REFERENCE, *asked.variants))
    return asked


def main(given: list[str] | None = None) -> int:
    """Measures, prints and writes the results; returns the exit code."""
    asked = arguments(given)
    torch.set_num_threads(asked.threads)
    logging.disable_progress_bar()
    if asked.memory_of:
        print(json.dumps(peak_memory(asked.memory_of, SHAPES[asked.shapes[0]], asked.rule, asked.device)))
        return 0
    print(f"{asked.device}, {asked.threads} threads, rule {asked.rule}, {asked.rounds} rounds in turns")
    results = {}
    for shape in asked.shapes:
        apart = (shape, asked.variants, asked.rule, asked.device, asked.threads)
        memory = {} if asked.no_memory else memory_apart(*apart)
        seconds = seconds_in_turns(SHAPES[shape], asked.variants, asked.rounds, asked.rule, asked.device)
        results[shape] = summary(seconds, memory)
        show(shape, results[shape])
        gc.collect()
    verdicts = judge(results)
    if asked.device == "cpu" and sys.platform != "linux":
        print("\nPeak memory is not measured on this platform (Linux and CUDA only).")
    bars = [{**bar, "what": f"{bar['shape']} {bar['variants']}: {bar['what']}"} for bar in verdicts]
    about = environment(asked.threads, device=asked.device, rule=asked.rule, rounds=asked.rounds)
    return finish(asked, about, bars, shapes=results)


if __name__ == "__main__":
    sys.exit(main())
