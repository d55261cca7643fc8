"""Files that are written completely or not at all, and read only up to a given size."""

from __future__ import annotations

import os
from pathlib import Path


def read_bytes(path: Path, limit: int) -> bytes:
    """A regular file's bytes; ValueError if it is not a regular file or is larger than ``limit``."""
    if path.exists() and not (path.is_file() and path.stat().st_size <= limit):
        raise ValueError(f"{path} is not a file of at most {limit} bytes")
    return path.read_bytes()


def write_bytes(path: Path, content: bytes) -> None:
    """Puts a file in place, in a folder that is made, once all of it is on disk: so a full disk is noticed here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.urandom(8).hex()}.tmp")  # on the same disk, so that replacing is atomic
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
