"""One run, all sparsities: theta ranks the connections, so it can be cut at any sparsity, and the masks are nested."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from torch import Tensor

from adaprune.data import load_task
from adaprune.deploy import head_of, load_mask
from adaprune.masks import count_kept, detach, keep_top, set_masks
from adaprune.runs import Run, paths_of, plan_for, read_record
from adaprune.training import Fit, Outcome, fit_head, load_encoder, prepare, read_tensors, score


def evaluate_at(
    record: str | Path | Run, sparsities: Sequence[float], refit_head_epochs: float = 0.0, data_dir: str = ""
) -> pd.DataFrame:
    """The scores of one finished run whose theta is cut at other sparsities, with one row per sparsity.

    At the run's own sparsity this is its own mask and, without training the head again, its own score. Embedding rows
    that do not occur in training rank first, so they are removed last.

    Args:
        record: of a run that kept its theta (``keep``): the path, or the run. Mask and theta are in folders next to it.
        sparsities: each in [0, 1).
        refit_head_epochs: epochs for which the record's head is trained again under each mask; 0 leaves it unchanged.
        data_dir: where the data are now; empty = where the run had them.

    Returns:
        Columns ``sparsity``, ``kept``, ``total``, ``refit_head_epochs``, ``primary``, ``score`` and
        ``validation_<metric>`` (dev split), ``selection_score``, as in `records.table`.

    Raises:
        ValueError: sparsities are not a list or out of range, the epochs are not a number, the run cuts each matrix
            separately, base or data differ from the run's, or a file is damaged.
        OSError: no record, no mask file, or theta was not kept.
    """
    _check(sparsities, refit_head_epochs)
    paths = paths_of(record)
    path, found = paths.record, read_record(paths.record)
    run = Run(**found["run"]).model_copy(update={"data_dir": data_dir or found["run"]["data_dir"]})
    plan = plan_for(run)
    if run.kind.mask and plan.allocation:
        raise ValueError(
            f"{path} has allocation {plan.allocation!r}: its theta ranks within a matrix, not over all of them"
        )
    if not (run.kind.mask and run.kind.weights_intact):
        raise ValueError(f"{path} has method {run.method!r}, which leaves no mask of intact weights to cut again")
    task = load_task(run.task, run.data_dir, run.max_train_examples)
    if task.fingerprint != found["environment"]["data_fingerprint"]:
        raise ValueError(f"{path} was made on other rows of {run.task}: give the data_dir that it had")
    encoder = load_encoder(run.model)
    mask = load_mask(paths.mask, base=encoder.model)
    scores = _read_ranks(paths.theta, mask.masks)
    job, rows = prepare(run, plan, paths, task, encoder), []
    job.model.head = head_of(mask.head, mask.card)  # of the kind and pooling that it was trained with
    with TemporaryDirectory() as folder:
        quiet = {"folder": Path(folder), "epochs": refit_head_epochs, "checkpoint_steps": 0}
        job = replace(job, settings=replace(job.settings, **quiet))
        for sparsity in sparsities:
            masks = keep_top(scores, 1 - sparsity)
            set_masks(encoder.model, masks)
            job.model.head.load_state_dict(mask.head)
            if refit_head_epochs:
                fit_head(job)
            (metrics, _), counts = score(job, Outcome(Fit(), masks)), count_kept(masks)
            row = {"sparsity": sparsity, "kept": counts["kept"], "total": counts["total"]}
            row |= {"refit_head_epochs": refit_head_epochs, "primary": task.primary}
            row |= {"score": metrics["validation"][task.primary]}
            row |= {"selection_score": metrics["selection"][task.primary]}
            rows.append(row | {f"validation_{name}": value for name, value in metrics["validation"].items()})
    detach(encoder.model)
    return pd.DataFrame(rows)


def _check(sparsities: Sequence[float], refit_head_epochs: float) -> None:
    """ValueError if these, which notebooks pass on unchecked, are not numbers or out of range."""
    if isinstance(sparsities, str) or not isinstance(sparsities, Collection):
        raise ValueError(f"sparsities must be a list of numbers in [0, 1), got {sparsities!r}")
    if wrong := [level for level in sparsities if not (isinstance(level, Real) and 0 <= level < 1)]:
        raise ValueError(f"sparsities must lie in [0, 1), got {wrong[0]!r}")
    if not (isinstance(refit_head_epochs, Real) and 0 <= refit_head_epochs < math.inf):
        raise ValueError(f"refit_head_epochs must be a number, 0 or more, got {refit_head_epochs!r}")


def _read_ranks(path: Path, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The ranks in a file, which must reproduce the ``masks`` of their run.

    Raises:
        FileNotFoundError: theta was not kept.
        ValueError: a damaged file, or one of another mask.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: delete the record and run again with keep='theta'")
    found, _ = read_tensors(path, "delete the record and run again")
    if found.keys() != masks.keys() or any(not torch.equal(found[name] >= 0, mask) for name, mask in masks.items()):
        raise ValueError(f"{path} is not the theta of this run's mask: delete the record and run again")
    return {name: found[name] for name in masks}
