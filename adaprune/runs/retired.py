"""Former fields of `Run`: ideas that lost, and options that nobody needed. Their records can still be read.

So can those whose plan is from before a setting was there, or missing (`plan_then`).

A retired field at its default changes nothing and is dropped when a record is read. At any other value it is kept, so
that tables tell such runs apart. To repeat such a run, check out the commit that its record names, or ``LAST``, the
last commit that has the first of these fields; ``LATER`` names it for the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaprune.runs.method import METHODS

LAST = "3d91e7e"
LATER = {"pooling": "1e9e2e3", "surrogate": "643ab95"}
RETIRED: dict[str, Any] = {  # field -> its default
    "control": "",  # feedback loses to cubic; a fixed gamma is now `penalty` under recipe paper
    "step_rule": "",  # sgd and adam lose to adafactor
    "theta_average": 0.0,  # cutting theta's moving average lost
    "head_warmup": 0.0,  # training the head first lost
    "dropout": -1.0,  # the recipe's: none for masks
    "minimum_kept": 0,  # no matrix collapses where the recipe works
    "prune_unseen": False,  # rows of unseen words are protected
    "imp_rule": "remaining",  # the paper's; 10 % of the original is level
    "data_keep": 1.0,  # no recipe learns from a share of the rows; `max_train_examples` does
    "data_score": "random",
    "gradient_accumulation": 1,  # a mask wants small batches
    "report_to": "none",  # curves are in the record
    "snapshots": 0,  # now `keep`
    "keep_theta": False,  # now `keep`
    "pooling": "",  # the recipe's: the checkpoint's own, or the paper's [CLS]; nobody asked for another
    "surrogate": "",  # for scores, `temperature` asks for the sigmoid's slope
}


def modern(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record's run by today's names; a retired field is kept unless it is at its default."""
    found = {name: value for name, value in fields.items() if name not in RETIRED or value != RETIRED[name]}
    wanted = {"theta": found.pop("keep_theta", False), "snapshots": found.pop("snapshots", 0)}
    if any(wanted.values()):
        found["keep"] = "+".join(name for name, value in wanted.items() if value)
    return found


def plan_then(record: Mapping[str, Any]) -> dict[str, Any]:
    """The plan of a record, with what an old plan, or a missing one, leaves out: the only choice of its time.

    That is the [CLS], the head that the run names or else the paper's, and no copies; ``copies`` were True where they
    had replaced words and no splices. Methods that train had the recipe's epochs and no rule of steps.
    """
    run, plan = record["run"], _plan_in(record["environment"])
    kind = METHODS.get(run["method"])
    rule = {"steps": 0} if kind is None or kind.trains else {}
    copies = plan.get("copies") or ""
    older = {"pooling": "cls", "head": run["head"] or "mlp", **rule}
    return {**older, **plan, "copies": "words" if copies is True else copies}


def head_asked(head: str, environment: Mapping[str, Any]) -> str:
    """The field ``head`` of a record's run by today's meaning: "mlp" was the default of runs whose plan names none."""
    return "" if head == "mlp" and "head" not in _plan_in(environment) else head


def _plan_in(environment: Mapping[str, Any]) -> Mapping[str, Any]:
    return environment.get("plan") or {}


def farewell(name: str) -> str:
    """The sentence for a run that sets a retired field."""
    now = {"snapshots": " Say keep='snapshots'.", "keep_theta": " Say keep='theta'."}.get(name, "")
    last = LATER.get(name, LAST)
    return f"parameter {name!r} is retired.{now or f' Commit {last} is the last that has it.'}"
