"""What a record says of where it was made: versions, threads, time, and the commit of the source."""

import shutil
import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import pytest
import torch

from adaprune.runs.records import _git_commit, environment


def test_environment_names_versions_threads_and_start():
    found = environment(data_fingerprint="abc", seed=3, extra=1)
    assert found["packages"]["torch"] == torch.__version__ and found["packages"]["numpy"] == np.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["threads"] == torch.get_num_threads() and environment(5)["threads"] == 5
    assert abs((datetime.now(UTC) - datetime.fromisoformat(found["start_time"])).total_seconds()) < 60
    assert (found["data_fingerprint"], found["seed"], found["extra"]) == ("abc", 3, 1)


@pytest.mark.skipif(shutil.which("git") is None, reason="makes a checkout; runs where git is installed")
def test_git_commit_is_of_the_checkout_that_holds_the_source(tmp_path, monkeypatch):
    def git(*arguments):
        settings = ("user.name=a", "user.email=a@b", "commit.gpgsign=false")
        options = [option for setting in settings for option in ("-c", setting)]
        command = ["git", "-C", str(tmp_path), *options, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    source, installed = tmp_path / "source.py", tmp_path / "installed.py"
    source.write_text("1")
    assert _git_commit(source) is None  # no checkout
    git("init")
    record = tmp_path / "results" / "a.json"
    record.parent.mkdir()
    record.write_text("1")
    git("add", "source.py", "results")
    assert _git_commit(source) is None  # no commit yet
    git("commit", "-m", "x")
    installed.write_text("1")  # untracked: neither dirty, nor of this checkout
    commit = git("rev-parse", "HEAD")
    assert _git_commit(source) == commit and _git_commit(installed) is None
    record.unlink()  # records are no code
    assert _git_commit(source) == commit
    source.write_text("2")
    assert _git_commit(source) == f"{commit}+dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _git_commit(source) is None  # no git
