"""The sha256 of files, and a check that no file changed while it was read.

Weights are mapped into memory (reading them by ``pread`` took 1.6 times the processor time of a
merge). If a file is overwritten during a merge, the output would mix old and new bytes, so the
states of all files are compared at the end.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from clipmerge.errors import CheckpointError

#: Device, inode, size, time of modification, and time of status change. Every write or replacement
#: changes at least one: the system sets the last at every write, and no program can set it back.
FileState = tuple[int, int, int, int, int]


def file_state(file: Path) -> FileState:
    """Return the identity, size and times of a file, which change when its content changes."""
    status = file.stat()
    times = status.st_mtime_ns, status.st_ctime_ns
    return status.st_dev, status.st_ino, status.st_size, *times


def require_unchanged(states: dict[Path, FileState]) -> None:
    """Raise an error if a file was written, replaced or removed since `file_state` was called."""
    for file, state in states.items():
        with contextlib.suppress(OSError):
            if file_state(file) == state:
                continue
        raise CheckpointError(
            f"{file}: changed while it was read, or could not be read to its end; run again when no"
            " program writes to it"
        )


def sha256_of(path: Path) -> str:
    """Compute the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
