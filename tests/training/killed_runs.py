"""Runs adapt() in processes that are killed, then once more to the end. Started by test_trainer.py.

`python killed_runs.py JSON`, where JSON is a list of {"run": fields, "kills": [...]}. A kill is {"after": seconds},
from outside at that time after the first whole checkpoint, or {"at": function, "time": n, "when": "before" or
"after"}, at the n-th call of a function of training/trainer.py. Children are forked, so that the imports happen once.
"""

import gc
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from tqdm import tqdm

from adaprune.masks import maskable
from adaprune.methods import LEARNED, learn
from adaprune.runs.method import Method
from adaprune.runs.run import Run
from adaprune.training import trainer
from adaprune.training.encoders import load_encoder, tensor_hashes

HOUSE = importlib.import_module("adaprune.adapt")  # the name adaprune.adapt is the function's


def upside_down(job):
    """A method that only this process knows: theta starts at -|w|, so that learning has to move it."""
    modules = maskable(job.model.encoder, job.run.scope)
    return learn(job, {name: -module.weight.detach().abs() for name, module in modules.items()})


OWN = {"upside_down": Method(upside_down, line="theta starts at -|w|", reads=LEARNED)}


def die_at(function: str, nth: int, when: str) -> None:
    """Makes this process kill itself at the n-th call of a function of training/trainer.py."""
    calls, real = [], getattr(trainer, function)

    def deadly(*args, **kwargs):
        calls.append(function)
        if len(calls) == nth and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if len(calls) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(trainer, function, deadly)


def start(run: Run, method: Method | None, kill: dict) -> int:
    """A child that adapts; it leaves the hashes of the final model beside its record."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if "at" in kill:
            die_at(kill["at"], kill["time"], kill["when"])
        score = HOUSE.score

        def remember(job, task):
            (Path(run.results_dir) / "model.hashes").write_text(json.dumps(tensor_hashes(job.model)))
            return score(job, task)

        HOUSE.score = remember
        HOUSE.adapt(run, method)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def play(fields: dict, kills: list[dict]) -> list[int]:
    """The run, killed as asked, then to its end; the signal or exit code of each child."""
    codes, own = [], OWN.get(fields.get("method"))
    run = Run(**{name: value for name, value in fields.items() if name != "method" or own is None})
    for kill in [*kills, {}]:
        child = start(run, own, kill)
        if "after" in kill:
            while not list(Path(run.results_dir).glob(".checkpoints/*/checkpoint-*/whole.json")):
                time.sleep(0.001)
                if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    break  # it ended before there was one
            time.sleep(kill["after"])
            os.kill(child, signal.SIGKILL)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return codes


if __name__ == "__main__":
    scenes = json.loads(sys.argv[1])
    # tqdm's own lock is shared by forks: a child that is killed while it draws would hold it for all later ones
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0  # no thread beside which to fork
    load_encoder(scenes[0]["run"]["model"])  # fills caches that every child would fill anew
    gc.freeze()
    for scene in scenes:
        print(json.dumps(play(scene["run"], scene["kills"])), flush=True)
