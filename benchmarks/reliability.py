"""Reliability: serving from many threads, kills at any moment, and a full disk.

    python -m benchmarks.reliability [--json FILE] [--seconds N] [--kills N] [--fills N] [--check]

Uses a tiny random BERT, since nothing here depends on size. ``threads``: eight threads call one `MaskedEncoder` with
rows of mixed tasks; each row must get the logits of a single thread. ``kills``: a sweep of twelve tiny runs is killed
(SIGKILL) at random moments and restarted, until there were enough kills; records and masks must be those of an
undisturbed sweep. ``full``: a run on a small tmpfs with different amounts of free space (needs permission to mount).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from adaprune import MaskedEncoder, Run, adapt, load_encoder, load_mask, save_mask
from adaprune.masks import maskable
from adaprune.runs import environment, read_record
from adaprune.training import AdaptationHead
from benchmarks.bars import finish, parser_of
from tests.small_data import ten_sentences, tiny_model

TASKS = {"two": ["a", "b"], "three": ["a", "b", "c"], "five": list("abcde"), "grade": []}
CLOSE = 1e-4  # logits of a row alone and in a batch differ by less than this, those of two tasks by more than 0.01


def threads(folder: Path, seconds: float, count: int = 8) -> dict:
    """``count`` threads ask for mixed tasks; a row is wrong if it differs from the result of its task alone."""
    served = MaskedEncoder(load_encoder(str(tiny_model(folder / "model"))))
    for seed, (name, labels) in enumerate(TASKS.items()):
        served.add_task(name, _mask(folder / f"{name}.safetensors", served.encoder, labels, seed))
    sentences = torch.randint(5, 30, (50, 12), generator=torch.Generator().manual_seed(0))
    known = {name: served(input_ids=sentences, tasks=[name] * 50).logits for name in TASKS}
    distance = min(
        (known[one][:, 0] - known[other][:, 0]).abs().max() for one in TASKS for other in TASKS if one != other
    )
    assert distance > 0.01, "two tasks that answer alike prove nothing"
    found = [{"calls": 0, "rows": 0, "wrong": 0, "largest": 0.0} for _ in range(count)]
    end, memory = time.monotonic() + seconds, []

    def ask(number: int) -> None:
        draw, mine = random.Random(number), found[number]
        while time.monotonic() < end:
            rows = [draw.randrange(50) for _ in range(draw.randint(1, 16))]
            tasks = [draw.choice(list(TASKS)) for _ in rows]
            logits = served(input_ids=sentences[rows], tasks=tasks).logits
            for row, task, answer in zip(rows, tasks, logits, strict=True):
                expected = known[task][row]
                away = float((answer[: len(expected)] - expected).abs().max())
                mine["wrong"] += away > CLOSE or not torch.isneginf(answer[len(expected) :]).all()
                mine["largest"] = max(mine["largest"], away)
            mine["calls"] += 1
            mine["rows"] += len(rows)

    workers = [threading.Thread(target=ask, args=[number]) for number in range(count)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        memory.append(_resident())
        time.sleep(min(0.5, seconds / 20))
    early, late = memory[len(memory) // 5], memory[-1]
    return {
        "threads": count, "seconds": seconds, "calls": sum(f["calls"] for f in found),
        "rows": sum(f["rows"] for f in found), "wrong_rows": sum(f["wrong"] for f in found),
        "largest_difference": max(f["largest"] for f in found), "memory_bytes": late,
        "memory_growth_bytes": late - early,
    }  # fmt: skip


def kills(folder: Path, wanted: int, seed: int = 0) -> dict:
    """A sweep of twelve runs, killed ``wanted`` times; if one finishes before the next kill, a new one begins."""
    data, model = ten_sentences(folder / "ten"), tiny_model(folder / "model")
    start = time.monotonic()
    assert _sweep(data, model, folder / "undisturbed", None) == 0
    whole = time.monotonic() - start
    expected = _files(folder / "undisturbed")
    draw, done, rounds, lost, again = random.Random(seed), 0, 0, 0, 0
    different: list[str] = []
    while done < wanted:
        rounds, out = rounds + 1, folder / f"round_{rounds}"
        before: dict[str, tuple] = {}
        while True:
            code = _sweep(data, model, out, draw.uniform(0, whole / 3) if done < wanted else None)
            now = _records(out)
            lost += len(before.keys() - now.keys())
            again += sum(now[name] != before[name] for name in before.keys() & now.keys())
            before = now
            if code == 0:
                break
            assert code == -signal.SIGKILL, f"a sweep ended with {code}"
            done += 1
        found = _files(out)
        different += [name for name in expected.keys() | found.keys() if found.get(name) != expected.get(name)]
    return {
        "runs": len(_runs(data, model, folder)), "kills": done, "rounds": rounds, "records_lost": lost,
        "records_written_twice": again, "files_that_differ": len(different),
        "left_behind": sum(1 for path in folder.glob("round_*/**/*.tmp")), "seconds_of_a_sweep": round(whole, 1),
    }  # fmt: skip


def full(folder: Path, fills: int) -> dict:
    """One run repeated on a tmpfs with ``fills`` amounts of free space, from none to enough; then with all of it.

    A refusal must be an OSError that says so, and leave nothing half-written: all records and masks can be read.
    """
    data, model, disk = ten_sentences(folder / "ten"), tiny_model(folder / "model"), folder / "disk"
    disk.mkdir()
    run = _runs(data, model, folder / "roomy")[0]
    expected = adapt(run)
    needed = sum(path.stat().st_size for path in (folder / "roomy").rglob("*") if path.is_file())
    size = 4 * needed + 400_000
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        return {"skipped": f"a tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}"}
    sentences, half, finished, other = [], 0, 0, []
    try:
        for step in range(fills):
            shutil.rmtree(disk / "out", ignore_errors=True)
            room = size * step // fills
            with _filled(disk, room):
                try:
                    adapt(run.model_copy(update={"results_dir": str(disk / "out")}))
                    finished += 1
                except OSError as error:
                    sentences.append(re.sub(r"\S*/\S*", "PATH", str(error)))
                except Exception as error:  # a full disk must not end in anything else
                    other.append(f"{type(error).__name__}: {error}")
                half += _half_written(disk / "out")
            record = adapt(run.model_copy(update={"results_dir": str(disk / "out")}))  # there is space again
            same = record["metrics"] == expected["metrics"] and _masks(disk / "out") == _masks(folder / "roomy")
            half += not same
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return {
        "disk_bytes": size, "amounts_of_room": fills, "finished": finished, "refused": len(sentences),
        "half_written_or_different": half, "other_errors": other, "sentences": sorted(set(sentences)),
    }  # fmt: skip


def _runs(data: Path, model: Path, out: Path) -> list[Run]:
    """Twelve runs of three methods, with a checkpoint every other step."""
    shared = {"task": str(data), "model": str(model), "results_dir": str(out), "max_length": 16, "checkpoint_steps": 2}
    return [
        Run(**shared, method=method, seed=seed, batch_size=2, epochs=2.0)
        for seed in range(4)
        for method in ("adaprune", "magnitude", "movement")
    ]


def _sweep(data: Path, model: Path, out: Path, seconds: float | None) -> int:
    """Runs the sweep in a forked child and kills it after some seconds; returns its exit code, negative for a
    signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing):
                for run in _runs(data, model, out):
                    adapt(run)
            code = 0
        finally:
            os._exit(code)
    timer = threading.Timer(seconds, os.kill, [child, signal.SIGKILL]) if seconds is not None else None
    if timer is not None:
        timer.start()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if timer is not None:
        timer.cancel()
    return code


def _records(out: Path) -> dict[str, tuple]:
    """Name -> modification time and digest of each record, all of which must be readable."""
    files = sorted(out.glob("*.json"))
    return {file.name: (file.stat().st_mtime_ns, read_record(file) and _digest(file)) for file in files}


def _files(out: Path) -> dict[str, object]:
    """What a sweep must leave: each record's metrics, each mask's bytes."""
    return {**{file.name: read_record(file)["metrics"] for file in out.glob("*.json")}, **_masks(out)}


def _masks(out: Path) -> dict[str, str]:
    return {file.name: _digest(file) for file in (out / "masks").glob("*.safetensors") if load_mask(file)}


def _half_written(out: Path) -> int:
    """Files that are incomplete or temporary."""
    bad = sum(1 for _ in out.rglob("*.tmp"))
    for read, pattern in ((read_record, "*.json"), (load_mask, "masks/*.safetensors")):
        for file in out.glob(pattern):
            try:
                read(file)
            except ValueError:
                bad += 1
    return bad


@contextlib.contextmanager
def _filled(disk: Path, room: int):
    """The disk with only this many bytes free."""
    free = os.statvfs(disk)
    filler = disk / "filler"
    filler.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - room)))
    try:
        yield
    finally:
        filler.unlink()


def _mask(path: Path, encoder: torch.nn.Module, labels: list[str], seed: int) -> Path:
    """A mask file of random bits and a random head."""
    draw = torch.Generator().manual_seed(seed)
    masks = {name: torch.rand(m.weight.shape, generator=draw) < 0.5 for name, m in maskable(encoder).items()}
    shape = encoder.config.num_hidden_layers, encoder.config.hidden_size, len(labels) or 1
    head = {name: torch.randn(v.shape, generator=draw) for name, v in AdaptationHead(*shape).state_dict().items()}
    return save_mask(path, masks, head, {"labels": labels}, encoder)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _resident() -> int:
    """Bytes of memory in use, after freed memory was returned; the peak if there is no /proc."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def judge(found: dict) -> list[dict]:
    """What must hold, and whether it does."""
    bars = [
        ("threads", "wrong_rows", 0), ("threads", "memory_growth_bytes", 20_000_000), ("kills", "records_lost", 0),
        ("kills", "records_written_twice", 0), ("kills", "files_that_differ", 0),
        ("full", "half_written_or_different", 0),
    ]  # fmt: skip
    held = [(part, what, found[part][what], limit) for part, what, limit in bars if what in found.get(part, {})]
    if "other_errors" in found.get("full", {}):
        held.append(("full", "other_errors", len(found["full"]["other_errors"]), 0))
    return [{"what": f"{p}: {w}", "found": f, "limit": limit, "reached": f <= limit} for p, w, f, limit in held]


def main(arguments: list[str] | None = None) -> int:
    parser = parser_of("reliability", __doc__)
    parser.add_argument("--seconds", type=float, default=120, help="of eight threads asking")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--fills", type=int, default=24, help="amounts of room on the disk")
    asked = parser.parse_args(arguments)
    found = {}
    parts = {"full": lambda f: full(f, asked.fills), "kills": lambda f: kills(f, asked.kills),
             "threads": lambda f: threads(f, asked.seconds)}  # fmt: skip
    for name, part in parts.items():  # threads last: a process with threads should not fork
        with tempfile.TemporaryDirectory() as folder:
            found[name] = part(Path(folder))
        print(name, json.dumps(found[name], indent=1), flush=True)
    return finish(asked, environment(torch.get_num_threads()), judge(found), **found)


if __name__ == "__main__":
    sys.exit(main())
