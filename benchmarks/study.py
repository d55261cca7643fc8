"""Runs every row of a sweep on one machine or one GPU, several side by side; what is finished is not run again.

    python -m benchmarks.study --sweep sweeps/recipe.tsv --data-dir DIR [--jobs N] [--device cuda:0] [--results-dir OUT]

Each row is a process of its own, so one that fails or is killed stops no other; its output is
runs/<name of the table>/<run name>.log. A row that was interrupted continues from its checkpoint when the study is
started again. Rows with a teacher start after those without, ablations last. Exits with 1 where a row failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from adaprune.report.sweeps import Progress, read_sweep
from adaprune.runs import Run, find_record

ADAPT = "import json, sys; from adaprune import Run, adapt; adapt(Run(**json.loads(sys.argv[1])))"


def surroundings(device: str, jobs: int) -> dict[str, str]:
    """The environment of a row's process: the device it sees, and its share of the CPU's threads.

    Raises:
        ValueError: a device other than "", "cpu", "cuda" and "cuda:N".
    """
    name, _, number = device.partition(":")
    if name not in ("", "cpu", "cuda") or (number and not (name == "cuda" and number.isdecimal())):
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {device!r}")
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    shared = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
    visible = {} if device in ("", "cuda") else {"CUDA_VISIBLE_DEVICES": number}  # "" hides them all
    return {**os.environ, **shared, **visible}


def study(runs: list[Run], jobs: int, device: str, logs: Path) -> list[Run]:
    """Does what is not finished of ``runs``, ``jobs`` at a time; returns those that failed."""
    to_do = [run for run in runs if find_record(run) is None]
    progress, lock, failed = Progress(len(runs), len(runs) - len(to_do)), threading.Lock(), []
    environment = surroundings(device, jobs)
    logs.mkdir(parents=True, exist_ok=True)

    def note(event: str, number: int, more: str = "") -> None:
        with lock:
            print(progress.note(event, number) + more, flush=True)

    def do(numbered: tuple[int, Run]) -> None:
        number, run = numbered
        note("job_started", number)
        log = logs / f"{run.name}.log"
        with log.open("w", encoding="utf-8") as file:
            command = [sys.executable, "-c", ADAPT, run.model_dump_json()]
            code = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT).returncode
        if code:
            failed.append(run)
            note("job_error", number, f"; failed ({code}): {log}")
        else:
            note("job_finished", number)

    print(progress.line(), flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        for wave in range(3):
            list(pool.map(do, [(n, run) for n, run in enumerate(to_do) if wave_of(run) == wave]))
    return failed


def wave_of(run: Run) -> int:
    """Whom a row waits for: 0 nobody, 1 teachers, 2 also the runs, taught or not, that ablations start from.

    All of them may be rows of the same sweep.
    """
    return 2 if run.ablation else 1 if run.teacher else 0


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 where every row is finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", type=Path, required=True, help="a table of runs")
    parser.add_argument("--data-dir", default="", help="folder with <task>/{train,validation}.parquet; empty: the hub")
    parser.add_argument("--results-dir", default="", help="default: results/<name of the table>")
    parser.add_argument("--jobs", type=int, default=1, help="rows side by side")
    parser.add_argument("--device", default="", help="cpu, cuda, cuda:N; empty: what there is")
    asked = parser.parse_args(arguments)
    try:
        if asked.jobs < 1:
            raise ValueError(f"jobs must be at least 1, got {asked.jobs}")
        results = asked.results_dir or f"results/{asked.sweep.stem}"
        runs = read_sweep(asked.sweep, data_dir=asked.data_dir, results_dir=results)
        failed = study(runs, asked.jobs, asked.device, Path("runs", asked.sweep.stem))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for run in failed:
        print("failed:", json.dumps(run.name))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
