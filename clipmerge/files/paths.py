"""Paths as users write them."""

from __future__ import annotations

from pathlib import Path


def local_path(source: str) -> Path:
    """Where on disk a source would be, ``~`` and ``~user`` filled in; a home that is not known stays as it is written.

    Args:
        source: What the user or an adapter wrote.
    """
    path = Path(source)
    try:
        return path.expanduser()
    except RuntimeError:  # no such user, or one without a home, as in containers that run under a number
        return path
