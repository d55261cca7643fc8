"""Data that several tests share: real GLUE files where they are at hand, and a few hand-written sentences."""

import gc
import os
import sys
from pathlib import Path

import pytest
import torch

import adaprune  # noqa: F401
from adaprune.methods import METHODS
from adaprune.runs import Run
from tests import small_data


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    """The folder with real GLUE files: `ADAPRUNE_GLUE`, else `../shared/glue` beside the repository."""
    folder = Path(os.environ.get("ADAPRUNE_GLUE") or Path(__file__).parents[2] / "shared" / "glue")
    if not (folder / "mrpc" / "train.parquet").is_file():
        pytest.skip(f"no GLUE files in {folder}; set ADAPRUNE_GLUE to a folder with mrpc/train.parquet")
    return folder


@pytest.fixture(autouse=True)
def small_runs_are_short():
    """One thread, and no garbage to look through: the Trainer collects it at every start, over all loaded modules.

    What is frozen here has just been collected, so nothing leaks; and what was frozen before is not looked at again.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def ask(ten_sentences, tiny_model_dir, tmp_path, monkeypatch):
    """Makes a small run, by short paths: they are part of its name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(tiny_model_dir)
    small = {"max_length": 16, "batch_size": 4, "epochs": 1, "results_dir": "out"}
    return lambda **fields: Run(**{"task": ten_sentences.name, "model": "tiny", **small, **fields})


@pytest.fixture
def all_public(monkeypatch):
    """Runs leave scores on samples of a user's own file as of a named task."""

    class Everything:
        def __contains__(self, task):
            return True

    monkeypatch.setattr(sys.modules["adaprune.adapt"], "KNOWN_TASKS", Everything())


@pytest.fixture
def ten_sentences(tmp_path: Path) -> Path:
    """A folder with train.csv, ten hand-written sentences in two classes, and validation.csv, four more."""
    return small_data.ten_sentences(tmp_path / "ten_sentences")


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random BERT of two layers, 16 wide, and a tokenizer that knows the ten sentences' words."""
    return small_data.tiny_model(tmp_path_factory.mktemp("tiny_bert"))


@pytest.fixture(scope="session")
def tiny_runs_dir(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A folder for runs that are made once for several tests: ``ten``, ``pairs``, ``tiny``; records go to ``out``."""
    folder = tmp_path_factory.mktemp("tiny_runs")
    small_data.ten_sentences(folder / "ten")
    small_data.pairs(folder / "pairs")
    (folder / "tiny").symlink_to(tiny_model_dir)
    return folder


@pytest.fixture
def forget():
    """Methods that a test brings along are gone after it."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)
