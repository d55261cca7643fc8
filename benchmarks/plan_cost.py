"""Estimates the cost of a sweep before it is started: steps of its runs, and hours from measured or assumed steps.

    python -m benchmarks.plan_cost --sweep sweeps/paper.tsv --data-dir DIR [--rows mnli=392702]

Hours on two CPU cores: steps times the measured seconds per step (benchmarks/results/step_cost.json), scaled to the
batch's tokens, because a CPU's step grows with them. Hours on a GPU: steps times ``--gpu-step``, because with eight
short sentences a step is limited by kernel launches, not by tokens. 0.04 s is an assumption; replace it by what
`python -m benchmarks.step_cost` measures there. A forward pass alone counts as its measured share of a step.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import BertConfig

from adaprune.data import load_task, tokenize
from adaprune.methods.imp import sparsities
from adaprune.report.sweeps import read_sweep
from adaprune.runs import Run, epochs_of, plan_for
from adaprune.training import batches_in, load_encoder
from benchmarks.step_cost import SHAPES

# Which measured variant a method's step is, and how often a run of it passes over the rows with and without a gradient
# of the encoder: (variant, full passes, passes of a frozen encoder). Epochs of a head on cached vectors cost nothing.
GRADUAL, ROUNDS = ("finetune", 1, 1), "finetune"
PASSES = {"finetune": ("finetune", 1, 0), "adaprune": ("adaprune", 1, 0), "gmp": GRADUAL}
FROZEN = {"features", "random", "magnitude", "probe"}


def steps_of(run: Run, rows: int) -> tuple[float, str, int]:
    """Full training steps of ``run`` on ``rows`` rows, their variant, and frozen passes over the rows."""
    plan = plan_for(run)
    batches = batches_in(rows, plan.batch_size)
    steps = epochs_of(plan, run.sparsity, batches) * batches
    if run.method in FROZEN:
        return 0.0, "features", 1
    if run.method == "imp":
        return steps * len(sparsities(run.sparsity)), ROUNDS, 1
    if run.method not in PASSES:
        raise ValueError(f"no passes are known of {run.method!r}: {', '.join(sorted({*PASSES, *FROZEN, 'imp'}))}")
    variant, full, frozen = PASSES[run.method]
    return steps * full, variant, frozen


def cost(
    runs: list[Run], shape: dict, shape_tokens: int, gpu_step: float, official: dict[str, int], vector: int
) -> pd.DataFrame:
    """One row per task and method: runs, training steps, hours on two cores and on a GPU, bytes above the model.

    ``official`` gives the training rows of tasks whose local data are incomplete; a tenth of them is held out.
    ``vector`` is what a head on a frozen encoder keeps of a row, in bytes (`training.fit_head`).
    """
    tokens, rows, found = {}, {}, []
    for run in runs:
        if (place := (run.task, run.max_train_examples)) in rows:
            continue
        train = load_task(run.task, run.data_dir, run.max_train_examples).splits["train"]
        some = train.select(range(min(2000, len(train))))
        ids = tokenize(some, load_encoder("minilm").tokenizer, run.max_length)["input_ids"]
        rows[place] = round(0.9 * official[run.task]) if run.task in official else len(train)
        tokens[place] = float(np.mean([len(one) for one in ids]))
    for run in runs:
        place = (run.task, run.max_train_examples)
        steps, variant, frozen = steps_of(run, rows[place])
        batch = plan_for(run).batch_size
        if variant == "adaprune" and run.scope == "encoder+embeddings":
            variant = "adaprune_embeddings"
        seconds = shape[variant]["median_seconds"] * batch * tokens[place] / shape_tokens
        reading = shape["features"]["median_seconds"] * rows[place] * tokens[place] / shape_tokens
        share = shape["features"]["median_seconds"] / shape["finetune"]["median_seconds"]
        found.append(
            {
                "task": run.task,
                "method": run.method,
                "runs": 1,
                "steps": steps,
                "hours_two_cores": (steps * seconds + frozen * reading) / 3600,
                "hours_gpu": (steps + frozen * share * rows[place] / batch) * gpu_step / 3600,
                "bytes_above_model": max(shape[variant]["memory_bytes"], bool(frozen) * rows[place] / 0.9 * vector),
            }
        )
    summed = {name: "sum" for name in ("runs", "steps", "hours_two_cores", "hours_gpu")} | {"bytes_above_model": "max"}
    return pd.DataFrame(found).groupby(["task", "method"], sort=False).agg(summed).reset_index()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", required=True)
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--shape", default="bert-base-8x128", help="name ends in ROWSxTOKENS")
    parser.add_argument("--gpu-step", type=float, default=0.04, help="seconds")
    parser.add_argument("--measured", default="benchmarks/results/step_cost.json")
    parser.add_argument(
        "--rows", nargs="*", default=[], metavar="TASK=N", help="training rows of a task with incomplete local data"
    )
    asked = parser.parse_args()
    official = {task: int(number) for task, number in (given.split("=") for given in asked.rows)}
    shapes = json.loads(Path(asked.measured).read_text())["shapes"]
    if asked.shape not in shapes:
        parser.error(f"--shape must be one of {', '.join(shapes)}, got {asked.shape!r}")
    examples, length = map(int, asked.shape.rsplit("-", 1)[1].split("x"))
    runs = [run.model_copy(update={"data_dir": asked.data_dir}) for run in read_sweep(asked.sweep)]
    config = SHAPES[asked.shape].config
    config = load_encoder("minilm").model.config if config is None else BertConfig(**config)
    vector = 4 * config.num_hidden_layers * config.hidden_size
    table = cost(runs, shapes[asked.shape], examples * length, asked.gpu_step, official, vector)
    table.loc[len(table)] = {"task": "all", "method": "", **table.drop(columns=["task", "method"]).sum()}
    table.loc[len(table) - 1, "bytes_above_model"] = table["bytes_above_model"][:-1].max()
    print(table.to_string(index=False, float_format=lambda value: f"{value:,.1f}"))


if __name__ == "__main__":
    main()
