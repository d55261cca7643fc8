"""Runs every row of a sweep on one machine or one GPU, several in parallel; finished rows are not repeated.

    python -m benchmarks.study --sweep sweeps/recipe.tsv --data-dir DIR [--jobs N] [--device cuda:0] [--results-dir OUT]

Rows start in the table's order, each in its own process, so one that fails or is killed does not stop the others; its
output is runs/<name of the table>/<run name>.log. An interrupted row continues from its checkpoint when the study is
started again. A row waits for its teacher, and an ablation for the run it belongs to. Exits with 1 if a row failed.
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

from adaprune.report.sweeps import Progress, read_sweep, unmet
from adaprune.runs import Run, find_record, needed, record_path

ADAPT = "import json, sys; from adaprune import Run, adapt; adapt(Run(**json.loads(sys.argv[1])))"


def surroundings(device: str, jobs: int) -> dict[str, str]:
    """The environment of a row's process: the device that it sees, and its share of the CPU's threads.

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
    """Runs the unfinished ``runs`` in order, ``jobs`` at a time; returns those that failed."""
    waiting = {number: run for number, run in enumerate(runs) if find_record(run) is None}
    progress, failed = Progress(len(runs), len(runs) - len(waiting)), []
    environment, changed = surroundings(device, jobs), threading.Condition()
    running: set[Path] = set()
    logs.mkdir(parents=True, exist_ok=True)

    def take() -> tuple[int, Run] | None:
        """The next row that does not wait for an unfinished one; None if no row is left."""
        while waiting:
            coming = running | {_place(record_path(run)) for run in waiting.values()}
            ready = (number for number, run in waiting.items() if coming.isdisjoint(map(_place, needed(run))))
            if (number := next(ready, None)) is not None:
                run = waiting.pop(number)
                running.add(_place(record_path(run)))
                print(progress.note("job_started", number), flush=True)
                return number, run
            changed.wait()
        return None

    def work() -> None:
        while True:
            with changed:
                taken = take()
            if taken is None:
                return
            number, run = taken
            log, code = logs / f"{run.name}.log", 1
            try:
                with log.open("w", encoding="utf-8") as file:
                    command = [sys.executable, "-c", ADAPT, run.model_dump_json()]
                    code = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT).returncode
            finally:  # also if the process could not start: rows that wait for this one stop waiting
                with changed:
                    running.remove(_place(record_path(run)))
                    if code:
                        failed.append(run)
                    line = progress.note("job_error" if code else "job_finished", number)
                    print(line + (f"; failed ({code}): {log}" if code else ""), flush=True)
                    changed.notify_all()

    print(progress.line(), flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(work) for _ in range(jobs)]:
            done.result()
    return failed


def _place(path: str | Path) -> Path:
    """The same path for the same file, however it is written."""
    return Path(path).resolve()


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 if every row is finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", type=Path, required=True, help="a table of runs")
    parser.add_argument("--data-dir", default="", help="folder with <task>/{train,validation}.parquet; empty: the hub")
    parser.add_argument("--results-dir", default="", help="default: the table's column, or results/<name of the table>")
    parser.add_argument("--jobs", type=int, default=1, help="rows side by side")
    parser.add_argument("--device", default="", help="cpu, cuda, cuda:N; empty: what there is")
    asked = parser.parse_args(arguments)
    try:
        if asked.jobs < 1:
            raise ValueError(f"jobs must be at least 1, got {asked.jobs}")
        common = {"data_dir": asked.data_dir}
        if asked.results_dir or "results_dir" not in asked.sweep.read_text(encoding="utf-8").partition("\n")[0]:
            common["results_dir"] = asked.results_dir or f"results/{asked.sweep.stem}"
        if lacking := unmet(runs := read_sweep(asked.sweep, **common)):
            raise ValueError("\n".join(f"{asked.sweep}: {sentence}" for sentence in lacking))
        failed = study(runs, asked.jobs, asked.device, Path("runs", asked.sweep.stem))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for run in failed:
        print("failed:", json.dumps(run.name))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
