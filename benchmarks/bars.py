"""What the benchmarks end with: each target and whether it was reached, a file of all that was measured, exit code."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def parser_of(name: str, doc: str, judges: bool = True) -> argparse.ArgumentParser:
    """The command line of a benchmark: its first line, ``--json`` and, where it ``judges``, ``--check``."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=doc.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    if judges:
        parser.add_argument("--check", action="store_true", help="exit code 1 where a bar is not reached")
    return parser


def finish(asked: argparse.Namespace, environment: dict, bars: list[dict], **found: Any) -> int:
    """Prints the ``bars`` (what, found, limit, reached), writes everything to ``asked.json``; the exit code."""
    for bar in bars:
        said = "reached" if bar["reached"] else "NOT reached"
        print(f"{said:12} {bar['what']}: {bar['found']:.5g}, bar {bar['limit']:.5g}")
    if asked.json:
        asked.json.write_text(json.dumps({"environment": environment, **found, "bars": bars}, indent=1) + "\n")
    return int(getattr(asked, "check", False) and not all(bar["reached"] for bar in bars))
