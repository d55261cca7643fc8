"""Paths as people write them: ``~`` is the home folder, ``$NAME`` an environment variable."""

import os
import re
from pathlib import Path


def expanded(path: str | os.PathLike) -> Path:
    """``path`` with ``~`` and environment variables expanded; a path that exists as written is unchanged.

    Raises:
        TypeError: neither a text nor a path.
        ValueError: an empty text, a variable that is not set or empty, or ``~name`` of an unknown user.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"a path or name must be text, got {str(path)[:80]!r} ({type(path).__name__})")
    if not str(path).strip():  # pathlib takes it for this folder
        raise ValueError(f"a path is empty, {str(path)!r}: name a file or folder ('.' is this folder)")
    found = Path(path)
    if os.path.lexists(found):
        return found
    given = {name: value for name, value in os.environ.items() if value}  # an empty one would name another folder
    put = re.sub(r"\$(\w+)|\$\{(\w+)\}", lambda m: given.get(m[1] or m[2], m[0]), os.path.expanduser(found))
    if lacking := re.match(r"~[^/\\]*", put) or re.search(r"\$(\w+|\{\w+\})", put):
        kind = "home folder" if put.startswith("~") else "environment variable"
        raise ValueError(f"{path}: there is no {kind} {lacking[0]}: set it, or write the path in full")
    return Path(put)


def public(path: str | os.PathLike) -> str:
    """``path`` as others may see it: only the last part of a local path, but all of a name or id.

    A path is local if it looks so or is there.

    >>> public("/home/anna/tickets.csv"), public("~/m"), public("user/model")
    ('tickets.csv', 'm', 'user/model')
    """
    told = str(path)
    local = os.path.isabs(told) or told.startswith(("~", "$", "..")) or ":" in told or os.path.lexists(told)
    return expanded(told).name if local else told
