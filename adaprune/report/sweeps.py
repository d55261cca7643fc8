"""Sweeps: a table with one row per run, checked before anything runs; and a line that says how far a sweep is."""

import csv
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from adaprune.data import check_name, expanded
from adaprune.runs import Run, needed, paths_of, plan_for, record_path
from adaprune.training import read_teacher


def read_sweep(path: str | Path, **common: Any) -> list[Run]:
    """The runs of a tab-separated table whose columns are fields of `Run`, in its order; all rows are judged.

    An empty cell leaves the field's default.

    Args:
        path: the table, with a heading.
        common: fields that are the same for all rows and are no column.

    Raises:
        ValueError: an unknown column, or a misfit in ``common``; a row with too many or too few cells, a value that
            misfits, or one that its method does not read; an unknown task; a teacher of another task; two rows that
            would share a record; no row. The message names the row and its line in the file.
        FileNotFoundError: no such table.
    """
    try:
        with open(expanded(path), encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            filled = [(lines.line_num, cells) for cells in lines if any(cell.strip() for cell in cells)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None
    if len(filled) < 2:
        raise ValueError(f"{path} holds no rows: it needs a heading and a line for each run")
    (_, heading), *rows = filled
    columns = [name.strip() for name in heading]
    _check_columns(path, columns, common)
    runs: dict[Path, tuple[str, Run]] = {}
    wrong = []
    for number, (line, cells) in enumerate(rows, start=1):
        where = f"row {number} (line {line})"
        try:
            run = Run(**common, **_values(columns, cells))
            check_name(run.task)
            plan_for(run)
            if run.teacher and expanded(run.teacher).is_file():  # otherwise it may be a row of this sweep
                read_teacher(run, paths_of(run).teacher)
        except ValueError as error:
            wrong.append(f"{where}: {error}")
            continue
        first, _ = runs.setdefault(record_path(run), (where, run))
        if first != where:
            wrong.append(f"{where} repeats {first}: both would be recorded as {record_path(run)}")
    if wrong:
        raise ValueError("\n".join(f"{path}, {sentence}" for sentence in wrong))
    return [run for _, run in runs.values()]


def unmet(runs: Iterable[Run]) -> list[str]:
    """A sentence for each run whose teacher, or the run that it ablates, is neither finished nor among ``runs``."""
    rows = {record_path(run).resolve() for run in runs}
    return [
        f"{run.name} needs {path}, which is neither there nor a row of the table"
        for run in runs
        for path in needed(run)
        if not path.is_file() and path.resolve() not in rows
    ]


class Progress:
    """Counts the jobs of a sweep as they start and end, and says in one line how far it is.

    Args:
        total: rows of the sweep.
        done: rows that were finished before.
        clock: seconds; the time of day for when it will end.
    """

    def __init__(self, total: int, done: int, clock: Callable[[], float] = time.time):
        self.total, self.before, self.clock, self.start = total, done, clock, clock()
        self.running: set[int] = set()
        self.failed: set[int] = set()
        self.done: set[int] = set()

    def note(self, event: str, job: int) -> str:
        """The line after an event of a job: ``job_started``, ``job_finished`` or ``job_error``."""
        for jobs in (self.running, self.failed, self.done):  # a job that is tried again has not failed yet
            jobs.discard(job)
        {"job_started": self.running, "job_finished": self.done, "job_error": self.failed}[event].add(job)
        return self.line()

    def line(self) -> str:
        """Done, running, failed and to go; and when it will end, at the pace since the start.

        >>> Progress(total=5, done=2).line()
        'sweep: 2 done, 0 running, 0 failed, 3 to go; the end is known after the first run'
        """
        done = self.before + len(self.done)
        left = self.total - done - len(self.running) - len(self.failed)
        counts = f"sweep: {done} done, {len(self.running)} running, {len(self.failed)} failed, {left} to go"
        if not left and not self.running:
            return counts
        if not self.done:
            return f"{counts}; the end is known after the first run"
        now = self.clock()
        seconds = (now - self.start) / len(self.done) * (left + len(self.running))
        end = datetime.fromtimestamp(now + seconds)
        return f"{counts}; ends about {end:%a %d %b %H:%M}, in {seconds / 60:.0f} min"


def _check_columns(path: str | Path, columns: list[str], common: dict[str, Any]) -> None:
    """ValueError for a column that is no field, occurs twice or is common too, and for a misfit in ``common``."""
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise ValueError(f"{path}: column {twice[0]!r} occurs twice")
    if both := [name for name in columns if name in common]:
        raise ValueError(f"{path}: {both[0]} is a column and set for all rows ({common[both[0]]!r}): use one")
    try:
        Run(**common, **{name: "" for name in columns if name not in Run.model_fields})
    except ValueError as error:
        raise ValueError(f"{path}, heading or settings for all rows: {error}") from None


def _values(columns: list[str], cells: list[str]) -> dict[str, Any]:
    """The row's values by field; ValueError where the number of cells is another or a cell is no number."""
    if len(cells) != len(columns):
        raise ValueError(f"{len(cells)} cells for {len(columns)} columns; they are set apart by tabs")
    return {name: _value(name, cell.strip()) for name, cell in zip(columns, cells, strict=True) if cell.strip()}


def _value(name: str, text: str) -> Any:
    """A cell as its field's type; where it is none, the text, which `Run` refuses with its own words."""
    kind = type(Run.model_fields[name].default)
    if kind is bool:
        return {"True": True, "False": False}.get(text, text)
    try:
        return kind(text)
    except ValueError:
        return text
