"""The content of files: its sha256, and whether it stayed the same while it was read.

Hashes of input weights are kept in the user's cache: computing them again takes a third of the time
of a merge. Weights are mapped instead of copied (reading them by ``pread`` took 1.6 times the
processor time of a merge). A file that is overwritten in the meantime yields a mixture of old and
new bytes; a truncated file is noticed when its next tensor is read.
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
#: Nanoseconds since its last change before the hash of a file is kept. Of two changes within one
#: tick of the file system's clock, the second one does not show. Git treats its index alike.
SETTLED_NS = 3_000_000_000
#: Device, inode, size, time of modification, and time of status change. After a write or a
#: replacement at least one of them differs: the system sets the last time at every write, and
#: programs cannot set it back.
FileState = tuple[int, int, int, int, int]


def file_state(file: Path) -> FileState:
    """The current state of a file."""
    status = file.stat()
    times = status.st_mtime_ns, status.st_ctime_ns
    return status.st_dev, status.st_ino, status.st_size, *times


def require_unchanged(states: dict[Path, FileState]) -> None:
    """Refuse results computed from files that were written to, replaced or removed since."""
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
    """Hash a file in large mapped windows: a thread waits for the interpreter lock between two."""
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
