"""Changes of structure change no result: tiny seeded runs leave what they left when tests/golden.json was written."""

import json
from pathlib import Path

import pytest
import torch

from tests.golden import fingerprints

WRITTEN = Path(__file__).with_name("golden.json")


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.__version__.startswith("2.13.0"),
    reason="the last bits of a sum are those of another processor or torch",
)
def test_tiny_runs_of_every_method_leave_what_they_left(tiny_runs_dir, monkeypatch):
    pytest.importorskip("peft", reason="lora needs peft, of the extra adaprune[methods]")
    monkeypatch.chdir(tiny_runs_dir)  # what test_adapt.py has made there is finished and read, the rest made
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = fingerprints(Path("ten"), Path("tiny"), Path("out"))
    finally:
        torch.set_num_threads(before)
    assert found == json.loads(WRITTEN.read_text())
