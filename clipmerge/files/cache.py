"""The user's cache folder and configuration folder, at the system's usual places."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache(name: str) -> Path:
    """Return a folder in the user's cache: on Linux ``clipmerge/NAME`` in ``$XDG_CACHE_HOME`` or
    ``~/.cache``.
    """
    from platformdirs import (
        user_cache_path,
    )  # imported here because it takes 0.01 s, which ``--help`` saves

    return user_cache_path("clipmerge", appauthor=False) / name


def replace_bytes(file: Path, content: bytes) -> None:
    """Write a small file of a cache; concurrent readers see either the old or the new one
    completely.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(file)


def user_config() -> Path:
    """Return the user's configuration folder: on Linux ``clipmerge`` in ``$XDG_CONFIG_HOME`` or
    ``~/.config``.
    """
    from platformdirs import user_config_path

    return user_config_path("clipmerge", appauthor=False)
