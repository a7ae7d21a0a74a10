"""Refuse inputs that changed while they were read, by their state before and after.

Weights are mapped, not copied (reading them by ``pread`` took 1.6 times the processor time of a
merge). A file that is overwritten meanwhile gives a mixture of old and new; one that is cut short
is found when its next run is read.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterable
from pathlib import Path

from clipmerge.errors import CheckpointError

_opened: dict[Path, dict[str, int]] = {}


def watch(file: Path) -> None:
    """Remember the present state of a file of weights, before it is read."""
    with contextlib.suppress(OSError):  # the reader reports it
        _opened[file] = state_of(file)


def state_of(file: Path) -> dict[str, int]:
    """All facts of which at least one differs after a file was written to or replaced."""
    status = file.stat()
    return {
        "device": status.st_dev,
        "inode": status.st_ino,
        "size": status.st_size,
        "modified": status.st_mtime_ns,
        "changed": status.st_ctime_ns,
    }


def require_unchanged(files: Iterable[Path]) -> None:
    """Refuse results made from files that were written to, replaced or removed after `watch`."""
    for file in files:
        try:
            same = file not in _opened or _opened[file] == state_of(file)
        except OSError:
            same = False
        if not same:
            raise _changed(file)


def require_whole(mapped: mmap.mmap, file: Path) -> None:
    """Refuse to read a file that was cut short since it was mapped, which would end the process by
    a fault.
    """
    if mapped.size() < len(mapped):
        raise _changed(file)


def _changed(file: Path) -> CheckpointError:
    return CheckpointError(
        f"{file}: changed while it was read, or could not be read to its end; run again when"
        " nothing writes it"
    )
