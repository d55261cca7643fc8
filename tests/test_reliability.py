"""The benchmark of reliability, small: what it counts as wrong is counted, and nothing is."""

import subprocess
from pathlib import Path

import pytest
import torch

from adaprune import MaskedEncoder
from benchmarks import reliability


def test_threads_get_their_own_rows(tmp_path):
    found = reliability.threads(tmp_path, seconds=1.0, count=4)
    assert found["calls"] >= 4 and found["rows"] >= found["calls"] and found["wrong_rows"] == 0


def test_a_wrong_row_is_seen(tmp_path, monkeypatch):
    """A server that gives one in five rows to another task."""
    real, names = MaskedEncoder.forward, list(reliability.TASKS)

    def mixed_up(self, input_ids, tasks=None, **inputs):
        told = tasks if len(set(tasks)) == 1 else [names[0] if n % 5 == 0 else task for n, task in enumerate(tasks)]
        out = real(self, input_ids, told, **inputs)
        width = max(self.task(task).config.num_labels for task in tasks)
        out.logits = torch.nn.functional.pad(out.logits, (0, max(0, width - out.logits.shape[1])), value=-torch.inf)
        return out

    monkeypatch.setattr(MaskedEncoder, "forward", mixed_up)
    assert reliability.threads(tmp_path, seconds=1.0, count=2)["wrong_rows"] > 0


def test_bars_are_judged():
    found = {
        "threads": {"wrong_rows": 1, "memory_growth_bytes": 20_000_000},
        "kills": {"records_lost": 0, "records_written_twice": 2, "files_that_differ": 0},
        "full": {"skipped": "no right to mount"},
    }
    reached = {bar["what"]: bar["reached"] for bar in reliability.judge(found)}
    assert reached == {
        "threads: wrong_rows": False, "threads: memory_growth_bytes": True, "kills: records_lost": True,
        "kills: records_written_twice": False, "kills: files_that_differ": True,
    }  # fmt: skip


@pytest.mark.parametrize("content", [b"", b'{"run": 1}', b"{"])
def test_half_written_files_are_counted(tmp_path, content):
    (tmp_path / "masks").mkdir()
    (tmp_path / "a.json").write_bytes(content)
    (tmp_path / "masks" / "a.safetensors").write_bytes(content)
    (tmp_path / ".b.tmp").write_bytes(b"")
    assert reliability._half_written(tmp_path) == 3


def test_the_slurm_of_one_machine_says_what_it_can_do():
    script = Path(reliability.__file__).parents[1] / "sweeps" / "slurm" / "one_machine.sh"
    assert subprocess.run(["sh", "-n", script]).returncode == 0
    done = subprocess.run(["sh", script], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert [line.split()[2] for line in done.stderr.splitlines()] == ["up", "try", "down"]
