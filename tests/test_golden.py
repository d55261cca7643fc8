"""Changes of structure change no result: tiny seeded runs leave what they left when tests/golden.json was written."""

import json
from pathlib import Path

import pytest
import torch

from tests.golden import fingerprints

WRITTEN = Path(__file__).with_name("golden.json")


KIND = torch.backends.cpu.get_cpu_capability() + ("+AMX" if torch.cpu._is_amx_tile_supported() else "")
FINGERPRINTS = json.loads(WRITTEN.read_text()).get(KIND)  # each kind of processor rounds in its own way


@pytest.mark.skipif(
    FINGERPRINTS is None or not torch.__version__.startswith("2.13.0"),
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
    assert FINGERPRINTS == {
        name: found[name] for name in FINGERPRINTS
    }  # a kind lacks what changed since it was written
