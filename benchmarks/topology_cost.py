"""The cost of the full topology report of a BERT-base mask: seconds and peak memory at sparsity 0.5 and 0.99.

    python -m benchmarks.topology_cost [--json FILE] [--sparsity S ...] [--layers N] [--check]

Masks are random, and the weights for the persistence are normal: 12 layers of 768 x 3072, 84,934,656 connections,
without the word embeddings. Each sparsity is measured in its own process, because peak memory belongs to a process; it
includes the weights (340 MB) and the imports. Targets: 60 s and 4 GB on two cores.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from adaprune.masks import maskable
from adaprune.runs import environment
from adaprune.topology import report

SPARSITIES = (0.5, 0.99)
SECONDS, BYTES = 60, 4e9


def measure(sparsity: float, layers: int) -> dict[str, float]:
    """Seconds for the report of one random mask, peak bytes of this process, and the counts."""
    from transformers import BertConfig, BertModel

    with torch.device("meta"):  # names and shapes only
        encoder = BertModel(BertConfig(num_hidden_layers=layers), add_pooling_layer=False)
    shapes = {name: module.weight.shape for name, module in maskable(encoder).items()}
    generator = torch.Generator().manual_seed(0)
    mask = {name: torch.rand(shape, generator=generator) >= sparsity for name, shape in shapes.items()}
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    start, worked = time.perf_counter(), time.process_time()
    found = report(mask, encoder.config.num_attention_heads, weights)
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    unit = 1 if sys.platform == "darwin" else 1024
    total, kept = (int(found.matrices[column].sum()) for column in ("total", "kept"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"sparsity": sparsity, "connections": total, "kept": kept, "seconds": seconds, "cpu_seconds": worked,
            "peak_memory_bytes": peak}  # fmt: skip


def main(given: list[str] | None = None) -> int:
    """Measures, prints and writes the results; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.topology_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--sparsity", type=float, nargs="+", default=list(SPARSITIES))
    parser.add_argument("--layers", type=int, default=12, help="fewer for a short look")
    parser.add_argument("--check", action="store_true", help="exit code 1 where a bar is not reached")
    parser.add_argument("--one", type=float, help=argparse.SUPPRESS)  # what a child process is asked
    asked = parser.parse_args(given)
    if asked.one is not None:
        print(json.dumps(measure(asked.one, asked.layers)))
        return 0
    rows = []
    for sparsity in asked.sparsity:
        command = [
            sys.executable,
            "-m",
            "benchmarks.topology_cost",
            "--one",
            str(sparsity),
            "--layers",
            str(asked.layers),
        ]
        rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
        row = rows[-1]
        row["reached"] = row["seconds"] <= SECONDS and row["peak_memory_bytes"] <= BYTES
        print(f"sparsity {sparsity:g}: {row['connections']:,} connections, {row['seconds']:.1f} s (bar {SECONDS}; "
              f"{row['cpu_seconds']:.1f} s of CPU time), "
              f"peak {row['peak_memory_bytes'] / 1e9:.2f} GB (bar {BYTES / 1e9:g})", flush=True)  # fmt: skip
    if asked.json:
        asked.json.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
    return int(asked.check and not all(row["reached"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
