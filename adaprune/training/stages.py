"""Methods that train more than once: each stage is done once, and its result survives a kill."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace

from accelerate import PartialState
from torch import Tensor

from adaprune.training.checkpoints import read_tensors, write_tensors
from adaprune.training.job import Fit, Settings

Result = tuple[dict[str, Tensor], Fit]


def stage(settings: Settings, name: str, work: Callable[[Settings], Result]) -> Result:
    """The result of ``work``, tensors and a `Fit`: computed now, or read back if an earlier start has done it.

    ``work`` gets ``settings`` with its own folder inside the run's, for its checkpoints. Its result is written
    completely or not at all, then its checkpoints are removed.

    Raises:
        ValueError: the stage's file is damaged.
        OSError: it cannot be written.
    """
    file, folder = settings.folder / f"stage-{name}.safetensors", settings.folder / name
    if not file.is_file():
        tensors, done = work(replace(settings, folder=folder))
        processes = PartialState()
        processes.wait_for_everyone()
        if processes.is_main_process:
            write_tensors(file, tensors, fit=json.dumps(asdict(done)))
            shutil.rmtree(folder, ignore_errors=True)
        processes.wait_for_everyone()
    tensors, facts = read_tensors(file, "delete it to do that stage again")
    return tensors, Fit(**json.loads(facts["fit"]))


def add_fits(*fits: Fit) -> Fit:
    """Combines consecutive fits: the sum of all costs, and the last fit's curve with continued step numbers.

    From earlier fits only the sparsity points are kept, because their losses and scores belong to another model.
    """
    curve: list[dict] = []
    steps, seconds = 0, 0.0
    for number, fit in enumerate(fits, 1):
        for point in fit.curve:
            kept = point if number == len(fits) else {key: point[key] for key in ("step", "sparsity") if key in point}
            if len(kept) > 1:
                moved = {"step": steps + point["step"]}
                if "elapsed" in point:
                    moved["elapsed"] = seconds + point["elapsed"]
                curve.append({**kept, **moved})
        steps, seconds = steps + fit.steps, seconds + fit.seconds
    return Fit(curve=curve, steps=steps, seconds=seconds, examples=sum(fit.examples for fit in fits))
