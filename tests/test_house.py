"""The package keeps its house rules: small files, short functions, imports that only point down."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "adaprune"
FILES = sorted(PACKAGE.rglob("*.py"))

FLOORS = {
    0: "run refusals files datafiles movie_reviews metrics coding exercises",
    1: "masks counting allocation theta optim schedules heads encoders tasks schema "
    "records recipes job checkpoints ranks progress sampler spectra statistics theory",
    2: "training learning oneshot stages weights artifact comparison contrasts teachers",
    3: "methods diet sweeps ablations topology overlap graphs serving",
    4: "adapt nested figures drawings sketches task_inference",
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms.split()}

# Doors between rooms of one floor: (from, to) -> why the one needs the other.
DOORS = {
    ("run", "refusals"): "what a run is and how a misfit is told are two subjects",
    ("records", "schema"): "writing and reading is one file, what a record must hold another",
    ("counting", "masks"): "both denominators are counts of what can be masked",
    ("allocation", "counting"): "scores are shared out within a component",
    ("allocation", "masks"): "what each matrix keeps at the least is checked in one place",
    ("optim", "schedules"): "the penalty on scores rises as sparsity does",
    ("weights", "training"): "weights are trained by the same fit",
    ("learning", "training"): "a mask is learned by training",
    ("overlap", "topology"): "masks are read and refused in one place",
    ("graphs", "topology"): "blocks and what is effective in them are one topology",
    ("drawings", "figures"): "one look for all panels",
    ("sketches", "figures"): "those of the walkthroughs too",
    ("learning", "stages"): "a head trained before the mask is not trained again after a kill",
    ("oneshot", "training"): "gradients mean something under a trained head only",
    ("oneshot", "stages"): "and that head is trained once",
    ("nested", "adapt"): "a run is prepared and scored again as it was",
    ("job", "recipes"): "a job carries the plan that its recipe made",
    ("theory", "optim"): "the theorem is about the optimiser's own gradient",
    ("theory", "theta"): "and its runs start where the paper's do",
}


def module_name(path: Path) -> str:
    """Dotted name below the package; the package itself is the empty string."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def package_imports(tree: ast.AST, path: Path) -> set[str]:
    """Modules of the package that a file imports, at its top or inside a function."""
    package = ["adaprune", *path.relative_to(PACKAGE).parts[:-1]]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # One leading dot is the file's own package, each further dot one package up.
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join(above + ([node.module] if node.module else []))
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        found.update(nearest_module(name) for name in names if name.split(".")[0] == "adaprune")
    return found


def nearest_module(name: str) -> str:
    """The module that a dotted name belongs to: adaprune.masks.keep_top -> masks."""
    inside = name.split(".")[1:]
    while inside and ".".join(inside) not in MODULES:
        inside = inside[:-1]
    return ".".join(inside)


IMPORTS = {name: package_imports(ast.parse(path.read_text(encoding="utf8")), path) for name, path in MODULES.items()}


def room(module: str) -> str:
    return module.split(".")[0]


def may_import(source: str, target: str) -> bool:
    """Whether the floors let one module import another."""
    if source == "" or (source == room(source) == room(target) and source != target):
        return True  # a package's own front door names what is behind it
    if target == "":
        return False  # the front door imports everything, so going through it is a circle
    if (source, target) in DOORS:
        return True
    homeless = {room(source), room(target)} - set(FLOOR)
    return not homeless and FLOOR[room(target)] < FLOOR[room(source)]


def test_every_module_has_a_floor():
    homeless = [name for name in MODULES if name and room(name) not in FLOOR]
    assert not homeless, f"give these a floor in FLOORS: {homeless}"


def test_imports_point_down():
    upward = [
        f"{source or 'adaprune'} imports {target or 'adaprune'}"
        for source, targets in IMPORTS.items()
        for target in targets
        if not may_import(source, target)
    ]
    assert not upward


def test_doors_are_used_and_explained():
    for (source, target), reason in DOORS.items():
        assert target in IMPORTS.get(source, ()), f"{source} no longer imports {target}: close the door"
        assert reason.strip()


def test_imports_make_no_circle():
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> None:
        assert name not in way, "import circle: " + " -> ".join([*way, name])
        if name not in done:
            for target in IMPORTS[name]:
                visit(target, [*way, name])
            done.add(name)

    for name in IMPORTS:
        visit(name, [])
    assert done == set(MODULES)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("from adaprune.masks import keep_top", {"masks"}),
        ("from adaprune import masks", {"masks"}),
        ("import adaprune.masks as m", {"masks"}),
        ("from .masks import keep_top", {"masks"}),
        ("from . import masks", {"masks"}),
        ("from adaprune import keep_top", {""}),
        ("def f():\n    from adaprune.masks import keep_top", {"masks"}),
        ("import math", set()),
    ],
)
def test_package_imports_sees_every_form(line, expected):
    assert package_imports(ast.parse(line), PACKAGE / "heads.py") == expected


def test_package_imports_climbs_from_a_subpackage():
    assert package_imports(ast.parse("from ..masks import keep_top"), PACKAGE / "methods" / "x.py") == {"masks"}


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
