"""The package keeps its house rules: rooms import only rooms before them, files and functions are short."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "adaprune"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = re.findall(r"^\d\. `(\w+)/`", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf8"), re.MULTILINE)


def imported(path: Path) -> set[str]:
    """What a file imports of the package: its rooms, or files of the hall, by the name behind ``adaprune.``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            whole = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not getattr(node, "level", 0), f"{path}: imports are written out"
        found |= {name.split(".")[1] for name in whole if name.startswith("adaprune.")}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_before_it(room):
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    for path in (PACKAGE / room).glob("*.py"):
        assert imported(path) <= allowed, f"{path.relative_to(ROOT)} imports {imported(path) - allowed}"


def test_the_list_of_rooms_is_whole():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ROOMS)
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "adapt", "ablations", "nested", "make_zoo"}
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
