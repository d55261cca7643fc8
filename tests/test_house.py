"""The package keeps its house rules: rooms import only rooms before them, files and functions are short."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "adaprune"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = re.findall(r"^\d\. `(\w+)/`", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf8"), re.MULTILINE)


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
    for path in (PACKAGE / room).glob("*.py"):
        others = {n for n in imported(path) if n.startswith("adaprune.") and not n.startswith(f"adaprune.{room}.")}
        assert others <= doors, f"{path.relative_to(ROOT)} imports {others - doors}"


def test_what_a_door_says_of_imports_is_so():
    for room in ROOMS:
        door = (PACKAGE / room / "__init__.py").read_text(encoding="utf8")
        used = {n.split(".")[1] for path in (PACKAGE / room).glob("*.py") for n in imported(path) if "adaprune." in n}
        told = re.search(r"^Imports (.*?)\.$", ast.get_docstring(ast.parse(door)), re.MULTILINE | re.DOTALL)[1]
        assert set(re.findall(r"`(\w+)`", told)) == used - {room}, room


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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_short(path):
    source = path.read_text(encoding="utf8")
    assert len(source.splitlines()) <= 300
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    long = [
        f"{node.name} has {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, functions) and node.end_lineno - node.lineno + 1 > 60
    ]
    assert not long
