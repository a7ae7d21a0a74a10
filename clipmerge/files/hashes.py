"""The content of files: its sha256, and whether it stayed the same while it was read.

Hashes of large files are remembered in the user's cache until the file changes. Weights are mapped,
not copied (reading them by ``pread`` took 1.6 times the processor time of a merge). A file that is
overwritten meanwhile gives a mixture of old and new; one that is cut short is found when its next
run is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import time
from collections.abc import Iterable
from pathlib import Path

from clipmerge.errors import CheckpointError
from clipmerge.files.paths import replace_bytes, user_cache

#: Bytes hashed at a time; a multiple of every system's mapping granularity.
WINDOW = 32 << 20
#: Smaller files are hashed faster than their hash is looked up.
REMEMBERED_BYTES = 16 << 20
#: A file that changes twice within one tick of the file system's clock keeps its times. So a hash
#: is remembered only if the file has not changed for longer than any such tick, in nanoseconds; git
#: does the same for its index.
SETTLED_NS = 3_000_000_000


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

    A file is unchanged if its device, inode, size, time of modification and time of status change
    are the same; the system sets the last at every write, and programs cannot set it back. A cache
    that cannot be read or written costs only time.
    """
    before = file_state(path)
    if before["size"] < REMEMBERED_BYTES:
        return sha256_of(path)
    entry = None
    # RuntimeError: a user without a home
    with contextlib.suppress(OSError, RuntimeError, ValueError, TypeError, KeyError):
        entry = (
            user_cache("hashes")
            / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"
        )
        record = json.loads(entry.read_text(encoding="ascii"))
        if record["state"] == before:
            return str(record["sha256"])
    digest = sha256_of(path)
    settled = time.time_ns() - max(before["changed"], before["modified"]) > SETTLED_NS
    if entry and settled and file_state(path) == before:
        with contextlib.suppress(OSError):
            replace_bytes(entry, json.dumps({"state": before, "sha256": digest}).encode())
    return digest


# The state of each watched file before it was read.
_opened: dict[Path, dict[str, int]] = {}


def remember_state(file: Path) -> None:
    """Remember the present state of a file of weights, before it is read."""
    with contextlib.suppress(OSError):  # the reader reports it
        _opened[file] = file_state(file)


def file_state(file: Path) -> dict[str, int]:
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
    """Refuse results made from files that were written to, replaced or removed after
    `remember_state`.
    """
    for file in files:
        try:
            same = file not in _opened or _opened[file] == file_state(file)
        except OSError:
            same = False
        if not same:
            raise _changed_error(file)


def require_not_truncated(mapped: mmap.mmap, file: Path) -> None:
    """Refuse to read a file that was cut short since it was mapped, which would end the process by
    a fault.
    """
    if mapped.size() < len(mapped):
        raise _changed_error(file)


def _changed_error(file: Path) -> CheckpointError:
    return CheckpointError(
        f"{file}: changed while it was read, or could not be read to its end; run again when"
        " nothing writes it"
    )
