"""The sha256 of files, and whether a file changed while it was read.

Hashes of input weights are kept in the user's cache, because computing them takes a third of the
time of a merge. Weights are mapped into memory (reading them by ``pread`` took 1.6 times the
processor time of a merge). If a file is overwritten meanwhile, a merge would mix old and new bytes,
so the states of all files are compared at the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import time
from pathlib import Path

from clipmerge.errors import CheckpointError
from clipmerge.files import replace_bytes, user_cache

#: Bytes hashed at a time; a multiple of the mapping granularity of every system.
WINDOW = 32 << 20
#: The hash of a file is kept only if its last change is so many nanoseconds ago. If a file changes
#: twice within one tick of the file system's clock, its times do not show the second change. Git
#: treats its index the same way.
SETTLED_NS = 3_000_000_000
#: Device, inode, size, time of modification, and time of status change. Every write or replacement
#: changes at least one: the system sets the last at every write, and no program can set it back.
FileState = tuple[int, int, int, int, int]


def file_state(file: Path) -> FileState:
    """Read the state of a file, which every change of its content changes."""
    status = file.stat()
    times = status.st_mtime_ns, status.st_ctime_ns
    return status.st_dev, status.st_ino, status.st_size, *times


def require_unchanged(states: dict[Path, FileState]) -> None:
    """Refuse files that were written to, replaced or removed since these states were read."""
    for file, state in states.items():
        try:
            is_same = file_state(file) == state
        except OSError:
            is_same = False
        if not is_same:
            raise error_of_changed_file(file)


def error_of_changed_file(file: Path) -> CheckpointError:
    """The error for a file that changed while it was read."""
    return CheckpointError(
        f"{file}: changed while it was read, or could not be read to its end; run again when"
        " nothing writes it"
    )


def sha256_of(path: Path) -> str:
    """Hash a file in large mapped windows, which release the interpreter's lock for long."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for offset in range(0, size, WINDOW):
            length = min(WINDOW, size - offset)
            with mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=offset) as window:
                if hasattr(mmap, "MADV_WILLNEED"):  # pragma: no branch - absent on Windows
                    window.madvise(mmap.MADV_WILLNEED)
                digest.update(window)
    return digest.hexdigest()


def remembered_sha256(path: Path) -> str:
    """Hash a file, or look up its hash if it has not changed since it was hashed.

    If the cache cannot be read or written, the file is hashed every time.
    """
    state = file_state(path)
    entry = user_cache("hashes") / "-".join(map(str, state))
    with contextlib.suppress(OSError):
        return entry.read_text(encoding="ascii")
    digest = sha256_of(path)
    *_, modified, changed = state
    if time.time_ns() - max(modified, changed) > SETTLED_NS:
        with contextlib.suppress(OSError):
            replace_bytes(entry, digest.encode())
    return digest
