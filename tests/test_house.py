"""The package keeps its house rules: rooms import only rooms before them, files and functions are short."""

import ast
import re
import sys
from pathlib import Path

import pytest

from adaprune import Run

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "adaprune"
SHORT = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "benchmarks").glob("*.py"), *(ROOT / "docs").glob("*.py")])
ROOMS = re.findall(r"^\d+\. `(\w+)/`", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf8"), re.MULTILINE)


def imported(path: Path) -> set[str]:
    """The modules that a file imports from, as they are written: ``adaprune.ROOM`` for what a room's door hands on."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        assert not getattr(node, "level", 0), f"{path}: imports are written out"
        if isinstance(node, ast.ImportFrom):
            found |= {f"adaprune.{alias.name}" for alias in node.names} if node.module == "adaprune" else {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_before_it_and_through_their_doors(room):
    doors = {f"adaprune.{before}" for before in ROOMS[: ROOMS.index(room) + 1]}
    for path in (PACKAGE / room).rglob("*.py"):
        others = {n for n in imported(path) if n.startswith("adaprune.") and not n.startswith(f"adaprune.{room}.")}
        assert others <= doors, f"{path.relative_to(ROOT)} imports {others - doors}"


def test_what_a_door_says_of_imports_is_so():
    for room in ROOMS:
        door = (PACKAGE / room / "__init__.py").read_text(encoding="utf8")
        used = {n.split(".")[1] for path in (PACKAGE / room).rglob("*.py") for n in imported(path) if "adaprune." in n}
        told = re.search(r"^Imports (.*?)\.$", ast.get_docstring(ast.parse(door)), re.MULTILINE | re.DOTALL)[1]
        assert set(re.findall(r"`(\w+)`", told)) == used - {room}, room


def test_a_door_says_three_sentences():
    for door in PACKAGE.glob("*/**/__init__.py"):
        told = ast.get_docstring(ast.parse(door.read_text(encoding="utf8")))
        assert len(re.findall(r"\.(?=\s|$)", told)) == 3, door


def test_masks_are_torch_only():
    for path in (PACKAGE / "masks").glob("*.py"):
        foreign = {name.split(".")[0] for name in imported(path)} - {"adaprune", "torch", *sys.stdlib_module_names}
        assert not foreign, f"{path.name} imports {foreign}"


def test_the_list_of_rooms_is_whole():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ROOMS)
    hall = "__init__ __main__ ablations adapt adapted command fit given make_zoo nested"
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(hall.split())
    for room in ROOMS:
        assert 3 <= len(list((PACKAGE / room).glob("[!_]*.py"))) <= 10 or room == "methods"
    assert {path.parent.name for path in PACKAGE.glob("*/*/__init__.py")} == {"runtime"}  # within deploy/


def lengths(source: str) -> dict[str, int]:
    """The lines of a file and of each function and class in it, decorators counted."""
    found = {"file": len(source.splitlines())}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            found[f"{kind} {node.name}, line {node.lineno}"] = node.end_lineno - first + 1
    return found


def too_long(source: str) -> dict[str, int]:
    limits = {"file": 300, "function": 60}
    return {name: lines for name, lines in lengths(source).items() if lines > limits.get(name.split()[0], 300)}


@pytest.mark.parametrize("path", SHORT, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_and_functions_are_short(path):
    assert not too_long(path.read_text(encoding="utf8"))


def test_the_measure_of_length_can_fail():
    body = "    pass\n" * 60
    assert too_long(f"def f():\n{body}") == {"function f, line 1": 61}
    assert too_long(f"class C:\n    @staticmethod\n    async def f():\n{body.replace('    ', '        ')}")
    assert not too_long(f"def f():\n{body[9:]}") and too_long("pass\n" * 301) == {"file": 301}


def test_the_optimiser_of_the_paper_stays_readable():
    found = lengths((PACKAGE / "masks" / "optim.py").read_text(encoding="utf8"))
    assert [lines <= 180 for name, lines in found.items() if name.startswith("class AdaPrune,")] == [True]


def test_run_grows_no_further():
    # 30 when the rooms were built; `rank`, `pattern` and `head` came later. A new field comes with one retired.
    assert len(Run.model_fields) <= 30
