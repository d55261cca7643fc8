"""The page of all committed records, which stands on the site where the folder results/ stands in the repository.

One table of plain HTML, which is whole without a script. A few lines of script, in site/records.html.j2, sort and
filter it: no library does less than they do, and the page stays a file that opens anywhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, FileSystemLoader

from adaprune.report.names import WRITTEN
from adaprune.runs import RESULT_NEUTRAL, default_of, table

COLUMNS = {
    "task": "task", "method": "method", "sparsity": "sparsity", "score": "score", "primary": "metric", "model": "base",
    "seed": "seed", "seeds": "seeds", "settings": "settings", "folder": "folder", "minutes": "minutes",
}  # column of the table -> its head  # fmt: skip
FILTERS = ("task", "method", "sparsity", "model", "seeds", "folder")
NEUTRAL = {"seed", *RESULT_NEUTRAL}  # what is no setting
TELLS = ("task", "method", "sparsity", "seed", "model", "recipe")  # with both scores, to the last digit: which run


def page_of_records(root: Path) -> str:
    """Markdown of the page: a heading, filters and a row for each record below ``root``/results, with its links.

    A link to a mask stands where the zoo has the mask of that very run. ``seeds`` counts the runs of a folder that
    differ from a row in their seed alone, itself included.

    Raises:
        ValueError: no record, or a damaged one.
    """
    rows = _rows(root)
    choices = {name: sorted(set(rows[name]) - {""}) for name in FILTERS}
    choices["seeds"] = [least for least in (2, 3, 5, 10) if least <= rows["seeds"].max()]
    site = Environment(loader=FileSystemLoader(Path(__file__).parent / "site"), autoescape=True, trim_blocks=True)
    return site.get_template("records.html.j2").render(
        columns=COLUMNS, filters=FILTERS, choices=choices, rows=rows.to_dict("records")
    )


def _rows(root: Path) -> pd.DataFrame:
    """What the page shows, a row for each record: the columns of ``COLUMNS``, ``record`` and ``mask``, both links."""
    rows = table(root / "results")
    fields = rows.columns[: rows.columns.get_loc("primary")]  # of a run, those of earlier versions too
    # A pupil of seed 1 has a teacher of seed 1, which is no other setting.
    rows = rows.assign(
        folder=rows["record"].map(lambda name: Path(name).parent.as_posix()),
        teacher=rows["teacher"].str.replace(r"_?seed[~-]\d+", "", regex=True),
        model=[Path(model).name for model in rows["model"]],
    )
    same = ["folder", *(name for name in fields if name not in NEUTRAL)]
    masks = _masks(root)
    return rows.assign(
        seeds=rows.groupby(same)["seed"].transform("nunique"),
        settings=[_settings(row) for row in rows[fields].to_dict("records")],
        task=[WRITTEN.get(task, task) for task in rows["task"]],
        primary=rows["primary"].str.replace("_", " "),
        sparsity=["" if pd.isna(cut) else float(f"{cut:.4g}") for cut in rows["mask_sparsity"]],
        minutes=rows["train_seconds"] / 60,
        mask=[masks.get(tuple(of), "") for of in rows[[*TELLS, "score", "selection_score"]].to_numpy()],
        record=rows["record"].map(quote),
    )


def _settings(run: dict[str, Any]) -> str:
    """The settings of a run that are not the defaults and have no column of their own; of a teacher that it had one."""
    others = {name: value for name, value in run.items() if name not in {*COLUMNS, *NEUTRAL}}
    own = {name: value for name, value in others.items() if value != default_of(name)}
    taught = ["taught"] if own.pop("teacher", "") else []
    told = [f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in own.items()]
    return ", ".join([*taught, *told])


def _masks(root: Path) -> dict[tuple, str]:
    """The run that a mask of the zoo is of, by what tells it -> the link to its file."""
    found = {}
    for path in sorted(root.glob("adaprune/zoo/*.json")):
        card = json.loads(path.read_text(encoding="utf8"))
        card["model"] = Path(card["model"]).name  # of a base from a folder, cards have its name on the hub
        scores = [card["metrics"][split][card["metrics"]["primary"]] for split in ("validation", "selection")]
        of = (*(card[name] for name in TELLS), *scores)
        found[of] = f"../adaprune/zoo/{path.stem}.safetensors"
    return found
