"""Paths as people write them: ``~`` is the home folder, ``$NAME`` an environment variable."""

import os
import re
from pathlib import Path


def expanded(path: str | os.PathLike) -> Path:
    """``path`` with ``~`` and environment variables put in; one that exists as it is written stays as it is.

    Raises:
        ValueError: a variable that is not set, or ``~name`` of nobody.
    """
    found = Path(path)
    if os.path.lexists(found):
        return found
    put = os.path.expandvars(os.path.expanduser(found))
    if lacking := re.match(r"~[^/\\]*", put) or re.search(r"\$(\w+|\{\w+\})", put):
        kind = "home folder" if put.startswith("~") else "environment variable"
        raise ValueError(f"{path}: there is no {kind} {lacking[0]}: set it, or write the path in full")
    return Path(put)


def public(path: str | os.PathLike) -> str:
    """``path`` as strangers may read it: of a place on this machine its last part, of a name or id all of it.

    >>> public("/home/anna/tickets.csv"), public("~/m"), public("user/model")
    ('tickets.csv', 'm', 'user/model')
    """
    told = str(path)
    local = os.path.isabs(told) or told.startswith(("~", "$", "..")) or ":" in told
    return expanded(told).name if local else told
