"""Records: one JSON file per finished run, checked when written and when read, and a table of all of them."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import ValidationError

from adaprune.data import expanded
from adaprune.runs.files import write_bytes
from adaprune.runs.paths import mask_path as mask_path
from adaprune.runs.paths import record_path
from adaprune.runs.retired import RETIRED, plan_then
from adaprune.runs.run import NAMED, RESULT_NEUTRAL, Run
from adaprune.runs.schema import SCHEMA_VERSION, Cost, Record

PACKAGES = (
    "adaprune", "torch", "transformers", "datasets", "accelerate", "safetensors", "numpy", "pandas", "scipy",
    "scikit-learn", "pydantic",
)  # fmt: skip


def environment(threads: int | None = None, **more: Any) -> dict[str, Any]:
    """Versions, platform, commit, CPU threads (None asks torch) and the time, with ``more``; call it at the start."""
    return {
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "git_commit": _git_commit(),
        "threads": torch.get_num_threads() if threads is None else threads,
        "start_time": datetime.now(UTC).isoformat(timespec="seconds"),
        **more,
    }


def check_writable(folder: Path) -> None:
    """Makes the folder and checks that a file can be written there, before hours are spent on a run.

    Raises:
        OSError: the folder cannot be made or written, or its disk is full.
    """
    with _writing_into(folder), tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\n" * 4096)
        file.flush()
        os.fsync(file.fileno())


def write_record(record: dict[str, Any], run: Run, path: Path | None = None) -> Path:
    """Writes the record of a finished run, completely or not at all, and returns its path.

    Adds ``schema_version``. Replaces a file of the same name. ``path``: the run's `Paths.record`, if made already.

    Raises:
        ValueError: a key is missing, unknown or impossible, a number is NaN or infinite, or ``record["run"]``
            is not ``run``.
        TypeError: a value that JSON cannot hold.
        OSError: ``results_dir`` cannot be written or is full.
    """
    plain = _jsonable({"schema_version": SCHEMA_VERSION, **record}, "record")
    if plain.get("run") != run.model_dump():
        raise ValueError("record.run must hold every field of the run that is recorded, with its value")
    path = path or record_path(run)
    _validated(plain, "record")
    ordered = {key: plain[key] for key in Record.model_fields}
    text = json.dumps(ordered, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with _writing_into(path.parent):
        write_bytes(path, text.encode())
    return path


def read_record(path: str | Path) -> dict[str, Any]:
    """The checked record in a file; run fields newer than the file get their defaults.

    Raises:
        ValueError: not JSON, truncated, another schema version, or a missing or impossible key; names the file.
        FileNotFoundError: no such file.
    """
    return _read(expanded(path))


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError
        raise ValueError(
            f"{path} is damaged, not a complete JSON record ({error}): delete it, then run again"
        ) from None
    if not isinstance(record, dict) or "schema_version" not in record:
        raise ValueError(f"{path} is not a record: it has no schema_version")
    if record["schema_version"] != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema_version {record['schema_version']!r}, but this adaprune reads "
            f"{SCHEMA_VERSION}: use the version of adaprune that wrote it, or run again"
        )
    run = _validated(_jsonable(record, str(path)), str(path)).run
    return {**record, "run": run}


def find_record(run: Run, path: Path | None = None) -> dict[str, Any] | None:
    """The record of a run if it is already finished, else None; ``path``: its `Paths.record`, if it is made already.

    Raises:
        ValueError: the file with the run's name is damaged, or records a run with other settings that affect the
            result (two paths can be shortened to the same name).
    """
    path = path or record_path(run)
    if not path.exists():
        return None
    record = _read(path)
    for name, value in run.model_dump().items():
        if name not in RESULT_NEUTRAL and record["run"][name] != value:
            raise ValueError(
                f"{path} records another run: its {name} is {record['run'][name]!r}, not "
                f"{value!r}; choose another results_dir"
            )
    return record


def table(results_dir: str | Path = "results") -> pd.DataFrame:
    """All records below a folder, one row each, sorted by task, method, sparsity, seed, model and file.

    Columns: every field of `Run`, and retired fields that a run here used; ``primary`` (name of the main metric),
    ``score`` (its value on the dev split), ``selection_score`` (on held-out training rows), ``validation_<metric>``;
    ``mask_sparsity`` (in scope), ``encoder_sparsity``, ``all_weights_sparsity``; ``weights_intact``;
    ``train_seconds``, ``steps``, ``examples_per_second``, ``peak_memory_bytes``, ``device``, ``shipped_bytes``;
    ``pooled_by`` (in the plan: "own", the checkpoint's, or "cls"); ``git_commit``; ``record`` (the file, relative to
    ``results_dir``). Values that a run does not have are missing. Folders named ``masks`` and hidden folders are
    ignored; other JSON files that are not records are skipped with one warning.

    Raises:
        ValueError: not a folder, no record in it, or a damaged record.
    """
    folder = expanded(results_dir)
    found = (path for path in folder.rglob("*.json") if not path.is_dir())
    files = [path for path in found if _may_be_record(path.relative_to(folder))]
    if strays := [path for path in files if not (path.name.startswith("task~") or _is_record(path))]:
        shown = ", ".join(path.relative_to(folder).as_posix() for path in strays[:3])
        more = f" and {len(strays) - 3} more" if len(strays) > 3 else ""
        warnings.warn(f"{results_dir}: skipped files that are not records: {shown}{more}", stacklevel=2)
        files = [path for path in files if path not in strays]
    if not files:
        lack = "holds no records" if folder.is_dir() else "is not a folder"
        raise ValueError(
            f"{results_dir} {lack}: `make run` makes some, or run notebooks/01_adapt.ipynb with this results_dir"
        )
    rows = [_row(_read(path), path.relative_to(folder).as_posix()) for path in files]
    metrics = sorted({column for row in rows for column in row if column.startswith("validation_")})
    retired = {name: value for name, value in RETIRED.items() if any(name in row for row in rows)}
    rows = [{**retired, **row} for row in rows]
    first = [*Run.model_fields, *retired, "primary", "score", "selection_score", *metrics]
    columns = [*first, *(column for column in rows[0] if column not in first)]
    return pd.DataFrame(rows, columns=columns).sort_values([*NAMED, "record"], ignore_index=True)


def _row(record: dict[str, Any], file: str) -> dict[str, Any]:
    """One row of the table."""
    metrics, mask, cost = record["metrics"], record["mask"] or {}, record["cost"]
    nothing = {"sparsity": math.nan}
    return {
        **record["run"],
        "primary": metrics["primary"],
        "score": metrics["validation"][metrics["primary"]],
        "selection_score": metrics["selection"].get(metrics["primary"], math.nan),
        **{f"validation_{name}": value for name, value in metrics["validation"].items()},
        "mask_sparsity": mask.get("sparsity", math.nan),
        "encoder_sparsity": mask.get("encoder", nothing)["sparsity"],
        "all_weights_sparsity": mask.get("all_weights", nothing)["sparsity"],
        "weights_intact": record["weights_intact"],
        **{name: math.nan if cost.get(name) is None else cost[name] for name in Cost.model_fields},
        "pooled_by": plan_then(record)["pooling"],
        "git_commit": record["environment"]["git_commit"],
        "record": file,
    }


def _may_be_record(path: Path) -> bool:
    return not any(part.startswith(".") or part == "masks" for part in path.parts)


def _is_record(path: Path) -> bool:
    """Whether a JSON file with an unusual name is a record, or begins like a truncated one."""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        return {"schema_version", "run", "metrics"} <= json.loads(text).keys()
    except (ValueError, AttributeError, RecursionError):
        return text.startswith(beginning := '{\n "schema_version"') or bool(text) and beginning.startswith(text)


def _validated(record: dict[str, Any], where: str) -> Record:
    """The record as its model, or ValueError with one clause per wrong key."""
    try:
        return Record.model_validate(record)
    except ValidationError as error:
        clauses = []
        for culprit in error.errors(include_url=False, include_context=False):
            said = {"missing": "is missing", "extra_forbidden": "is unknown"}.get(culprit["type"])
            key = ".".join(map(str, culprit["loc"]))
            message = culprit["msg"].removeprefix("Value error, ")
            clauses.append(f"{key} {said}" if said else f"{key}: {message}" if key else message)
        raise ValueError(f"{where}: {'; '.join(clauses)}") from None


def _jsonable(value: Any, where: str) -> Any:
    """The value in JSON's types, with numpy scalars and tuples converted; ``where`` names it in errors."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}: a record holds only finite numbers")
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [_jsonable(item, f"{where}.{i}") for i, item in enumerate(value)]
    if not isinstance(value, dict):
        raise TypeError(f"{where} is a {type(value).__name__}, which JSON cannot hold")
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"{where} has the key {key!r}: keys must be text")
    return {key: _jsonable(item, f"{where}.{key}") for key, item in value.items()}


@contextmanager
def _writing_into(folder: Path) -> Iterator[None]:
    """Makes the folder, and reports an OSError there or within in one sentence."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise OSError(
            f"cannot write into results_dir {str(folder)!r} ({error.strerror or error}): make room "
            "or choose another results_dir"
        ) from error


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit(source: Path = Path(__file__)) -> str | None:
    """The commit of a source file, with ``+dirty`` if tracked files were edited; None outside a checkout.

    Records in ``results`` do not count: runs that replace them are made by the same code.
    """

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(source.parent), *arguments]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=20)
        return done.stdout.strip()

    try:
        # an installed copy may be an untracked file in another project's checkout
        git("ls-files", "--error-unmatch", source.name)
        commit = git("rev-parse", "HEAD")
        edited = git("status", "--porcelain", "--untracked-files=no", "--", ":(top)", ":(top,exclude)results")
        return f"{commit}+dirty" if edited else commit
    except (OSError, subprocess.SubprocessError):
        return None
