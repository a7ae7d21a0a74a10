"""The user's cache."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache(name: str) -> Path:
    """Give a place in the user's cache: ``$XDG_CACHE_HOME`` or ``~/.cache``, then ``clipmerge/NAME``.

    Args:
        name: Name of the folder.

    Returns:
        The folder, which need not exist.

    Raises:
        RuntimeError: If there is no such variable, and the user has no home.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # the XDG specification has relative paths ignored
    return (base if base.is_absolute() else Path.home() / ".cache") / "clipmerge" / name
