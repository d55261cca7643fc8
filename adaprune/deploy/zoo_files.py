"""The zoo: mask files that come with the package, each with its card. `adaprune.make_zoo` fills it from a sweep.

A mask's name is <task>, then -<model> unless it is MiniLM, then -<sparsity> unless it is 0.5: ``sst2``,
``sst2-0.9``, ``sst2-all-mpnet-base-v2``.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from pathlib import Path

import pandas as pd

from adaprune.data import KNOWN_TASKS, expanded
from adaprune.runs import Run
from adaprune.training import MINILM

ZOO = Path(__file__).parents[1] / "zoo"
_NAME = r"(?!.*\.safetensors$)[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"
_COLUMNS = [
    "task",
    "sparsity",
    "pattern",
    "model",
    "metric",
    "score",
    "mean",
    "seeds",
    "bytes",
    "head_bytes",
    "licence",
]


def zoo(folder: str | Path = "") -> pd.DataFrame:
    """The masks that come with the package, one row each: ``load_mask`` and ``add_task`` accept their names.

    Columns: ``task``, ``sparsity``, ``pattern`` (of single weights, or of units: whole attention heads and neurons),
    ``model`` (the base); ``score`` on the dev split by the task's ``metric``, and its
    ``mean`` over ``seeds`` runs, of which the first is the one here; ``bytes`` of the file, including ``head_bytes``;
    ``licence`` of the base model, which also applies to its mask. The rest is in ``load_mask(name).card["zoo"]``.

    Args:
        folder: another folder, as `adaprune.make_zoo` fills it; empty: the package's own.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a mask without the card that `adaprune.make_zoo` writes beside it.
    """
    if folder and not expanded(folder).is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder; without one, zoo() lists the masks that come with the package"
        )
    paths = sorted(expanded(folder or ZOO).glob("*.safetensors"), key=lambda path: path.stem)
    rows = {path.stem: _row(path) for path in paths}
    return pd.DataFrame(rows.values(), index=pd.Index(rows, name="name", dtype=object), columns=_COLUMNS)


def zoo_name(run: Run) -> str:
    """The name of the mask of ``run`` in the zoo.

    >>> zoo_name(Run(task="sst2", sparsity=0.9))
    'sst2-0.9'
    """
    model = "" if run.model == MINILM else f"-{Path(run.model).name}"
    return f"{run.task}{model}{'' if run.sparsity == 0.5 else f'-{run.sparsity:g}'}"


def is_zoo_name(source: object) -> bool:
    """Whether this has the form of a zoo name: not a path, and not the name of a mask file."""
    return isinstance(source, str) and re.fullmatch(_NAME, source) is not None


def zoo_file(name: str) -> Path:
    """The file of the zoo's mask ``name``; ValueError, with the names in the zoo, for an unknown name."""
    if name not in (names := zoo_names()):
        close = _close(name, names)
        raise ValueError(
            f"the zoo has no mask {name!r}{f', did you mean {close!r}?' if close else '.'} It has "
            f"{', '.join(names) or 'none'}. A mask file is given by a path that ends in .safetensors"
        )
    return ZOO / f"{name}.safetensors"


def zoo_names() -> list[str]:
    """The names of the masks that come with the package."""
    return sorted(path.stem for path in ZOO.glob("*.safetensors"))


def _close(name: str, names: list[str]) -> str | None:
    """The name in the zoo that was meant, in whatever capitals; never that of another task."""
    known = {one.lower(): one for one in names}
    said, task = name.lower().removesuffix("-0.5"), name.lower().split("-")[0]
    rivals = [one for one in known if one.split("-")[0] == task] if task in KNOWN_TASKS else [*known, *KNOWN_TASKS]
    return known.get(next(iter(difflib.get_close_matches(said, rivals, n=1)), ""))


def _row(path: Path) -> dict:
    try:
        card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        metric, scores = card["metrics"]["primary"], card["zoo"]["scores"].values()
    except (OSError, ValueError, LookupError, TypeError):
        raise ValueError(f"{path} has no card of a zoo beside it, as python -m adaprune.make_zoo writes them") from None
    head = sum(4 * math.prod(said["shape"]) for said in card["head"].values())
    return {
        **{name: card[name] for name in ("task", "sparsity", "model", "licence")},
        "pattern": card.get("pattern", "weights"),
        "metric": metric,
        "score": card["metrics"]["validation"][metric],
        "mean": sum(scores) / len(scores),
        "seeds": len(scores),
        "bytes": path.stat().st_size,
        "head_bytes": int(head),
    }
