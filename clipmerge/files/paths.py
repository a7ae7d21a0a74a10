"""Paths as users write them."""

from __future__ import annotations

from pathlib import Path


def local_path(source: str) -> Path:
    """The path of a source on disk, with ``~`` and ``~user`` filled in; an unknown home stays as it is written.

    Args:
        source: Path as the user or an adapter wrote it.
    """
    path = Path(source)
    try:
        return path.expanduser()
    except RuntimeError:  # no such user, or one without a home, as in containers that run under a number
        return path
