"""The files around the package agree with each other and carry nothing of the machine that wrote them."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import adaprune

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins() -> dict[str, str]:
    """Package name -> exact version, from constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    for requirement in requirements:
        assert re.fullmatch(r"==[0-9][\w.]*", str(requirement.specifier)), f"not an exact pin: {requirement}"
    names = [canonicalize_name(requirement.name) for requirement in requirements]
    assert len(set(names)) == len(names), "constraints.txt names a package twice"
    return {name: str(requirement.specifier)[2:] for name, requirement in zip(names, requirements, strict=True)}


def citation() -> dict:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf8"))


def tracked_files() -> list[Path]:
    """Files that git tracks or would track."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and its checkout to know which files are tracked")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_the_container_installs_what_is_there():
    folder = ROOT / ".devcontainer"
    command = json.loads((folder / "devcontainer.json").read_text(encoding="utf8"))["postCreateCommand"]
    bash, script, python, *extras = command.split()
    assert (bash, script, python) == ("bash", ".devcontainer/install.sh", "python")
    assert set(extras) <= set(EXTRAS)
    subprocess.run(["bash", "-n", ROOT / script], check=True)


def make_dry(target: str) -> str:
    if shutil.which("make") is None:
        pytest.skip("needs make, which this machine does not have")
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_dependency_has_a_pin_within_its_range():
    asked = PROJECT["dependencies"] + [line for extra in EXTRAS.values() for line in extra]
    pinned = pins()
    for requirement in map(Requirement, asked):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version, f"constraints.txt does not pin {requirement.name}"
        assert requirement.specifier, f"pyproject.toml gives {requirement.name} no range"
        assert version in requirement.specifier, f"{requirement} excludes the pinned {version}"


def test_the_lock_has_what_make_installs_with_the_same_pins_and_a_hash():
    """To renew it: constraints.txt first, as its head says, then the command at the head of lock.txt."""
    blocks = re.findall(
        r"^(\S+)==(\S+).*((?:\n    --hash=sha256:[0-9a-f]{64}.*)+)$", (ROOT / "lock.txt").read_text(), re.M
    )
    locked = {canonicalize_name(name): version for name, version, _ in blocks}
    assert len(blocks) == (ROOT / "lock.txt").read_text().count("==") - (ROOT / "lock.txt").read_text().count(" == '")
    assert {name: version for name, version in locked.items() if pins().get(name, version) != version} == {}
    asked = PROJECT["dependencies"] + [
        line for extra in ("test", "lab", "methods", "sweep", "onnx") for line in EXTRAS[extra]
    ]
    assert {canonicalize_name(Requirement(line).name) for line in asked} - set(locked) == {"torch"}
    assert "-m pip install --no-deps --require-hashes -r lock.txt" in (ROOT / "Makefile").read_text(encoding="utf8")


def test_torch_is_pinned_to_the_plain_version():
    # A local suffix such as +cpu exists on one index only and would shut out every other machine.
    assert pins()["torch"] == "2.13.0"


def test_environment_yml_installs_what_make_installs():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf8"))
    python, pip, through_pip = environment["dependencies"]
    assert pip == "pip"
    assert python.removeprefix("python=") in PROJECT["requires-python"]
    extras = ",".join(["test", "lab", "methods", "sweep", "onnx"])
    assert set(EXTRAS) >= set(extras.split(","))
    assert through_pip["pip"] == ["-c constraints.txt", f"-e .[{extras}]"]
    assert f"-c constraints.txt --no-build-isolation -e '.[{extras}]'" in (ROOT / "Makefile").read_text()


def test_hooks_use_the_pinned_versions():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf8"))
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    used = {line for hook in hooks for line in hook["additional_dependencies"]}
    assert used == {f"{name}=={pins()[name]}" for name in ("ruff", "nbstripout")}


def test_makefile_and_hook_strip_the_same_keys():
    makefile = (ROOT / "Makefile").read_text(encoding="utf8")
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf8")
    keys = re.search(r'--extra-keys "([^"]+)"', makefile).group(1)
    assert f'"{keys}"' in hooks
    assert keys.split() == ["metadata.papermill", "cell.metadata.papermill", "metadata.language_info.version"]


def test_one_version_everywhere():
    assert PROJECT["version"] == adaprune.__version__ == citation()["version"]


def test_licence_is_the_same_everywhere():
    assert PROJECT["license"] == citation()["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text(encoding="utf8").startswith("MIT License")


def test_citation_has_what_the_format_requires():
    # The rules of CFF 1.2.0 that concern the fields used here; its checker pins an old jsonschema
    # that Jupyter excludes, so it cannot stand in the same environment.
    cff = citation()
    allowed = {"cff-version", "message", "title", "type", "authors", "version", "license", "keywords"}
    assert {"cff-version", "message", "title", "authors"} <= set(cff) <= allowed | {"preferred-citation"}
    assert cff["cff-version"] == "1.2.0"
    assert cff["type"] in {"software", "dataset"}
    assert all(set(author) == {"name"} for author in cff["authors"])
    assert isinstance(cff["version"], str) and all(isinstance(word, str) for word in cff["keywords"])


def test_preferred_citation_is_the_paper():
    paper = citation()["preferred-citation"]
    assert {"authors", "title", "type"} <= set(paper)
    assert [author["family-names"] for author in paper["authors"]] == ["Gao", "Colombo", "Wang"]
    assert paper["title"] == "Adapting by Pruning: A Case Study on BERT"
    assert (paper["type"], paper["year"]) == ("article", 2021)
    assert re.fullmatch(r"10\.\d{4,9}/arXiv\.2105\.03343", paper["doi"])
    assert paper["url"] == "https://arxiv.org/abs/2105.03343"
    assert {identifier["type"] for identifier in paper["identifiers"]} <= {"doi", "url", "swh", "other"}


def test_changelog_begins_with_this_version_or_what_comes_after_it():
    first, *others = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(encoding="utf8"), flags=re.M)[1:]
    heading = first.splitlines()[0]
    assert heading == PROJECT["version"] or (heading, others[0].splitlines()[0]) == ("Unreleased", PROJECT["version"])
    assert re.search(r"^- \S", first, re.M)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, by the setuptools that is there; nothing is fetched."""
    folder = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "adaprune", folder / "adaprune", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", "out"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *flags, "."], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "out").glob("*.whl")
    return path


def test_a_wheel_has_the_package_the_zoo_and_the_papers_numbers_alone(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    zoo = {f"adaprune/zoo/{path.name}" for path in (ROOT / "adaprune" / "zoo").iterdir()}
    paper = {f"adaprune/report/paper/{name}.csv" for name in ("results", "ablations")}
    assert len(zoo) >= 2 and {name for name in inside if name.startswith("adaprune/zoo/")} == zoo
    assert {name for name in inside if name.endswith(".csv")} == paper
    others = {name for name in inside - zoo - paper if ".dist-info/" not in name}
    assert others and all(name.startswith("adaprune/") and name.endswith(".py") for name in others), others


def test_an_installed_wheel_predicts_and_fits_without_the_repository(wheel, tmp_path):
    """In an environment that borrows all packages but adaprune from this one; `make test-wheel` installs them."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    own = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    # Folders named in a file come last, and their own .pth files, such as the editable install's, are not read.
    borrowed = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (own / "borrowed.pth").write_text("\n".join(borrowed))
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(install, env=alone, check=True)
    script = [python, "-I", ROOT / "tests" / "from_wheel.py", ROOT / "README.md"]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    bad, fitted = done.stdout.splitlines()
    said = float(re.search(r"# negative: ([\d.]+)", (ROOT / "README.md").read_text(encoding="utf8"))[1])
    assert float(re.search(r"[\d.]+", bad)[0]) == pytest.approx(said, abs=0.0051) and fitted == "True"


def test_make_run_adapts_with_three_methods_in_an_ignored_folder():
    commands = make_dry("run")
    assert "for method in adaprune features magnitude" in commands
    assert "-p task movie_reviews -p model minilm -p sparsity 0.5" in commands
    assert "-p results_dir runs/results" in commands
    ignored = (ROOT / "runs" / ".gitignore").read_text(encoding="utf8").splitlines()
    assert ignored[1:] == ["*", "!.gitignore"]  # so that the folder is there in a fresh clone


def test_make_test_runs_every_check():
    commands = make_dry("test")
    checks = ["ruff check", "ruff format --check", "--verify", "01_adapt.ipynb", "pytest", "--nbval-lax"]
    missing = [check for check in checks if check not in commands]
    assert not missing


def test_make_alone_lists_the_targets():
    if shutil.which("make") is None:
        pytest.skip("needs make, which this machine does not have")
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in (
        "run",
        "test",
        "test-browser",
        "test-wheel",
        "lab",
        "site",
        "data",
        "env",
        "clean",
        "lint",
        "format",
    ):
        assert f"make {target} " in listed


def test_make_refuses_an_old_python_in_one_sentence(tmp_path):
    if shutil.which("make") is None:
        pytest.skip("needs make, which this machine does not have")
    command = ["make", "env", f"VENV={tmp_path / 'env'}", "PYTHON=python-that-is-missing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "adaprune needs Python 3.11 or later; 'python-that-is-missing' was not found" in done.stderr
    assert not (tmp_path / "env").exists()


def test_continuous_integration_calls_make_test():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, ".ci/run is not executable"
    assert script.read_text(encoding="utf8").rstrip().endswith("exec make test")


def test_nothing_of_the_machine_is_tracked():
    # Written in halves, so that this file passes its own check.
    forbidden = ["/wo" + "rk/", "/ro" + "ot/", "pypi" + ".org", "files.python" + "hosted"]
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in tracked_files()
        for word in forbidden
        if word.encode() in path.read_bytes()
    ]
    assert not found
