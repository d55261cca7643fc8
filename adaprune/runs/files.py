"""Files that are written completely or not at all, and read only up to a given size."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def read_bytes(path: Path, limit: int) -> bytes:
    """A regular file's bytes; ValueError if it is not a regular file or is larger than ``limit``."""
    if path.exists() and not (path.is_file() and path.stat().st_size <= limit):
        raise ValueError(f"{path} is not a file of at most {limit} bytes")
    return path.read_bytes()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to, whose file then replaces ``path`` atomically; makes the folder.

    If writing fails, or the disk turns out to be full (OSError), an older file stays and no temporary one does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.urandom(8).hex()}.tmp")  # on the same disk, so that replacing is atomic
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically and makes its folder. A full disk raises OSError, and an older file stays."""
    with replacing(path) as temporary, temporary.open("xb") as file:
        file.write(content)
