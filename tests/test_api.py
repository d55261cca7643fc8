"""What others build on stays: every public name and signature is that of tests/api.json, and old names still import.

After a change that is meant: `python tests/test_api.py` writes the file anew; say in CHANGELOG what went.
"""

import ast
import importlib
import importlib.util
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import transformers

import adaprune

WRITTEN = Path(__file__).with_name("api.json")
# names of annotations that the package itself does not load
LATE = {"datasets": datasets, "PreTrainedTokenizerBase": transformers.PreTrainedTokenizerBase}


def signature(value: object) -> str:
    """How a value is called, where it can be: its parameters with defaults; else its type."""
    if not callable(value):
        return type(value).__name__
    try:
        found = re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(value, locals=LATE, eval_str=True)))
        return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z])", "", found)  # where a type is defined is its library's business
    except ValueError:
        return "callable"


def public() -> dict[str, dict[str, str]]:
    """Public name -> signature, of the package and of each room."""
    rooms = sorted(path.parent.name for path in Path(adaprune.__file__).parent.glob("*/__init__.py"))
    found = {name: importlib.import_module(name) for name in ["adaprune", *(f"adaprune.{room}" for room in rooms)]}
    return {
        name: {
            public: signature(getattr(module, public))
            for public in sorted(handed_on(Path(module.__file__)))
            if not isinstance(getattr(module, public), adaprune.Method)  # those are found by name in METHODS
        }
        for name, module in found.items()
    }


def handed_on(door: Path) -> set[str]:
    """The public names that an ``__init__.py`` binds by importing them from the package."""
    statements = ast.parse(door.read_text(encoding="utf8")).body
    ours = (node for node in statements if isinstance(node, ast.ImportFrom) and node.module.startswith("adaprune"))
    return {alias.name for node in ours for alias in node.names}


def test_names_and_signatures_are_those_written_down():
    now, then = public(), json.loads(WRITTEN.read_text(encoding="utf8"))
    for module, names in then.items():
        gone = sorted(names.keys() - now.get(module, {}).keys())
        assert not gone, f"{module} no longer has {', '.join(gone)}"
    assert now == then


def test_all_names_resolve_and_are_about_twenty():
    assert all(hasattr(adaprune, name) for name in adaprune.__all__)
    assert len(adaprune.__all__) <= 24


OLD = {  # of version 0.1: what a notebook or script of a user imported most
    "run": "Run METHODS",
    "recipes": "plan_for TUNED",
    "records": "read_record record_path table",
    "artifact": "load_mask save_mask Mask",
    "optim": "AdaPrune",
    "theta": "initial_theta",
    "encoders": "load_encoder MINILM_NOTE",
    "heads": "AdaptedModel",
    "tasks": "load_task GLUE",
    "serving": "MaskedEncoder",
    "figures": "save draw_curves",
    "comparison": "with_ways",
    "overlap": "jaccard",
    "theory": "bound",
}


@pytest.mark.parametrize("module", OLD)
def test_old_names_import_and_say_where_they_are_now(module):
    sys.modules.pop(f"adaprune.{module}", None)
    with pytest.warns(DeprecationWarning, match=rf"^adaprune\.{module} is now adaprune\.\w+\.\w+$"):
        old = importlib.import_module(f"adaprune.{module}")
    assert all(hasattr(old, name) for name in OLD[module].split())
    assert old is importlib.import_module(old.__spec__.name)  # one module, not a copy


def test_every_old_name_has_its_place():
    # `diet` has none: learning from a share of the rows left the code
    places = sys.meta_path[[type(f).__name__ for f in sys.meta_path].index("_OldNames")].places
    assert [place for place in places.values() if importlib.util.find_spec(place) is None] == []


ROOMS = """
from adaprune import Run, adapt
from adaprune.masks import keep_top, attach
from adaprune.topology import report, effective
from adaprune.training import fit_head
"""


def test_rooms_answer_to_old_names_of_their_own_without_a_warning():
    command = [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", ROOMS]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_a_name_that_never_was_is_no_module():
    with pytest.raises(ModuleNotFoundError, match="adaprune.nothing"):
        importlib.import_module("adaprune.nothing")


if __name__ == "__main__":
    WRITTEN.write_text(json.dumps(public(), indent=1) + "\n", encoding="utf8")
