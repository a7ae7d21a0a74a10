"""Read small text and JSON files; every failure is an `Unreadable` with the reason, to be written
after a file's name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipmerge.errors import ClipmergeError


class Unreadable(ValueError):
    """Why a file cannot be read, without its name."""


@contextmanager
def refusing(kind: type[ClipmergeError], what: str) -> Iterator[None]:
    """Make an error of the reason why something cannot be read: ``what (reason)``."""
    try:
        yield
    except Unreadable as error:
        raise kind(f"{what} ({error})") from None


def read_text(path: Path) -> str:
    """Read a text file, without the mark of its byte order."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from None
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8: {error.reason} at byte {error.start}") from None


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise Unreadable(str(error)) from None
