"""The user's cache."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache(name: str) -> Path:
    """Return a folder in the user's cache: ``clipmerge/NAME`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Args:
        name: Name of the folder.

    Returns:
        The folder, which need not exist.

    Raises:
        RuntimeError: If the variable is not set and the user has no home.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # the XDG specification says to ignore relative paths
    return (base if base.is_absolute() else Path.home() / ".cache") / "clipmerge" / name
