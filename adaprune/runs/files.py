"""Files that are whole or not there at all, and are read only up to a size."""

from __future__ import annotations

import os
from pathlib import Path


def read_bytes(path: Path, limit: int) -> bytes:
    """A regular file's bytes; ValueError where it is none or larger than ``limit``."""
    if path.exists() and not (path.is_file() and path.stat().st_size <= limit):
        raise ValueError(f"{path} is not a file of at most {limit} bytes")
    return path.read_bytes()


def write_bytes(path: Path, content: bytes) -> None:
    """Puts a file in place once all of it is on the disk: a full disk shows here, not at some later flush."""
    temporary = path.with_name(f".{os.urandom(8).hex()}.tmp")  # same disk: replacing is atomic
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
