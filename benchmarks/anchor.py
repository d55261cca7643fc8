"""Does an anchor help? Theta is pulled to its start, or learned only in a band around the cut, to get fewer flips.

    python -m benchmarks.anchor RESULTS [--data DIR] [--tasks cola sst2 qnli] [--rows N] [--epochs N]
        [--seeds N] [--json FILE]

After each step of adaprune, with theta_0 its start and c the k-th largest of theta_0,

    theta <- theta_0 + (1 - pull) (theta - theta_0)     where |ln(theta_0 / c)| <= band,   theta_0 elsewhere.

Compares adaprune with five settings of this, each a user's method as in CONTRIBUTING.md. Records and masks go to
RESULTS; finished runs are not repeated. Prints the mask's bytes without its head, and both scores.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import pandas as pd
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from adaprune import Run, adapt, load_mask
from adaprune.masks import attach, initial_theta, maskable
from adaprune.methods import LEARNED, Method, learn
from adaprune.runs import environment, mask_path
from adaprune.training import Job, Outcome

SETTINGS = {  # name: pull, band
    "pull_1e3": (1e-3, math.inf),
    "pull_1e2": (1e-2, math.inf),
    "band_1": (0.0, 1.0),
    "band_05": (0.0, 0.5),
    "band_025": (0.0, 0.25),
}


def anchored(name: str, pull: float, band: float) -> Method:
    """adaprune from |w|, with theta held near its start; ``pull`` 0 and an infinite ``band`` change nothing."""

    def method(job: Job) -> Outcome:
        weights = {name: module.weight for name, module in maskable(job.model.encoder, job.run.scope).items()}
        held: list[tuple] = []  # theta, where it starts, what of it may move

        def attach_held(encoder, thetas, *rest):
            parameters = attach(encoder, thetas, *rest)
            starts = [theta.detach().clone() for theta in parameters.values()]
            flat = torch.cat([start.flatten() for start in starts])
            cut = flat.topk(max(1, round(job.density * flat.numel()))).values[-1]
            for theta, start in zip(parameters.values(), starts, strict=True):
                held.append((theta, start, (start / cut).log().abs() <= band))
            return parameters

        @torch.no_grad()
        def hold(*_) -> None:
            for theta, start, free in held:
                theta.copy_(torch.where(free, start + (theta - start) * (1 - pull) if pull else theta, start))

        handle = register_optimizer_step_post_hook(hold)  # of every optimiser; adaprune has one
        try:
            return learn(job, initial_theta(weights, "magnitude", torch.Generator()), attach=attach_held)
        finally:
            handle.remove()

    method.__name__ = name
    return Method(method, line=f"adaprune with theta held: pull {pull:g}, band {band:g}", reads=LEARNED)


def measured(run: Run, method: Method | None) -> dict:
    """The row of one run: the bytes of its mask without the head, and its scores."""
    record = adapt(run, method=method)
    run = run if method is None else run.model_copy(update={"method": method.name})
    mask, metric = load_mask(mask_path(run)), record["metrics"]["primary"]
    return {
        "method": run.method,
        "task": run.task,
        "seed": run.seed,
        "bytes": mask_path(run).stat().st_size - sum(4 * tensor.numel() for tensor in mask.head.values()),
        "held out": record["metrics"]["selection"][metric],
        "dev": record["metrics"]["validation"][metric],
    }


def compare(runs: list[Run], settings: dict[str, tuple[float, float]] = SETTINGS) -> pd.DataFrame:
    """adaprune and every setting on each of the runs, with one row each."""
    methods = [None, *(anchored(name, *values) for name, values in settings.items())]
    return pd.DataFrame([measured(run, method) for run in runs for method in methods])


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.anchor", description=__doc__.splitlines()[0])
    parser.add_argument("results", help="folder for records and masks")
    parser.add_argument("--data", default="", help="folder with <task>/{train,validation}.parquet; empty: the hub")
    parser.add_argument("--tasks", nargs="+", default=["cola", "sst2", "qnli"])
    parser.add_argument("--rows", type=int, default=8000, help="training rows")
    parser.add_argument("--epochs", type=float, default=6.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write a row per run to this file")
    asked = parser.parse_args(arguments)
    common = {"data_dir": asked.data, "results_dir": asked.results, "head": "linear", "epochs": asked.epochs}
    runs = [
        Run(task=task, seed=seed, max_train_examples=asked.rows, **common)
        for seed in range(asked.seeds)
        for task in asked.tasks
    ]
    found = compare(runs)
    if asked.json:
        about = environment(torch.get_num_threads(), rows=asked.rows, epochs=asked.epochs)
        asked.json.write_text(json.dumps({"environment": about, "rows": found.to_dict("records")}, indent=1) + "\n")
    print(found.groupby(["task", "method"])[["bytes", "held out", "dev"]].mean().round(4).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
