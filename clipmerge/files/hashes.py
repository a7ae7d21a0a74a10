"""The content of files: its sha256, and whether it stayed the same while it was read.

Hashes of large files are remembered in the user's cache until the file changes. Weights are mapped,
not copied (reading them by ``pread`` took 1.6 times the processor time of a merge). A file that is
overwritten meanwhile gives a mixture of old and new; one that is cut short is found when its next
run is read.
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

#: Bytes hashed at a time; a multiple of every system's mapping granularity.
WINDOW = 32 << 20
#: Smaller files are hashed faster than their hash is looked up.
REMEMBERED_BYTES = 16 << 20
#: A file that changes twice within one tick of the file system's clock keeps its times. So a hash
#: is remembered only if the file has not changed for longer than any such tick, in nanoseconds; git
#: does the same for its index.
SETTLED_NS = 3_000_000_000
#: Facts of which at least one differs after a file was written to or replaced: device, inode, size,
#: times of modification and of status change. The system sets the last at every write, and programs
#: cannot set it back.
FileState = tuple[int, int, int, int, int]


def file_state(file: Path) -> FileState:
    """The present state of a file."""
    status = file.stat()
    times = status.st_mtime_ns, status.st_ctime_ns
    return status.st_dev, status.st_ino, status.st_size, *times


def require_unchanged(states: dict[Path, FileState]) -> None:
    """Refuse results made from files that were written to, replaced or removed meanwhile."""
    for file, state in states.items():
        try:
            is_same = file_state(file) == state
        except OSError:
            is_same = False
        if not is_same:
            raise error_of_changed_file(file)


def error_of_changed_file(file: Path) -> CheckpointError:
    """The error for a file that changed meanwhile."""
    return CheckpointError(
        f"{file}: changed while it was read, or could not be read to its end; run again when"
        " nothing writes it"
    )


def sha256_of(path: Path) -> str:
    """Hash one file by large mapped windows: between two of them a thread waits for the interpreter
    lock.
    """
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
    """Hash one file, unless it was hashed before and has not changed since.

    A cache that cannot be read or written costs only time.
    """
    state = file_state(path)
    *_, size, modified, changed = state
    if size < REMEMBERED_BYTES:
        return sha256_of(path)
    entry = user_cache("hashes") / "-".join(map(str, state))
    with contextlib.suppress(OSError, ValueError):
        known = entry.read_text(encoding="ascii")
        if len(known) == 64:
            return known
    digest = sha256_of(path)
    is_settled = time.time_ns() - max(modified, changed) > SETTLED_NS
    if is_settled and file_state(path) == state:
        with contextlib.suppress(OSError):
            replace_bytes(entry, digest.encode())
    return digest
