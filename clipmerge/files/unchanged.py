"""Detect inputs that change while they are read, by their state before and after, and by faults while reading.

Weights are mapped, not copied. A file that is overwritten meanwhile gives a mixture of old and new, and one that is
truncated ends the process by SIGBUS without a message. On 64-bit Linux that fault is caught: zeros are mapped instead
of the missing part, so that reading continues, and the file is marked as damaged, which `require_unchanged` reports.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import platform
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clipmerge.errors import CheckpointError

_State = tuple[int, int, int, int, int]
_opened: dict[Path, _State] = {}
_damaged: set[Path] = set()
# First and one past the last address of a mapping, and its file.
_mapped: dict[int, tuple[int, Path]] = {}
_HAS_FAULTS = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
_WITH_ADDRESS, _RESTORED_MASK = 4, 128  # SA_SIGINFO; bytes of sigset_t
_ADDRESS_AT = 16  # of si_addr in siginfo_t, on 64-bit Linux
_MAP_FIXED = 0x10


def watch(file: Path) -> None:
    """Remember the present state of a file, before it is read."""
    with contextlib.suppress(OSError):  # the reader reports it
        _opened[file] = _state(file)
        _damaged.discard(file)


def _state(file: Path) -> _State:
    status = file.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def require_unchanged(files: Iterable[Path]) -> None:
    """Refuse results made from files that changed after they were opened."""
    for file in files:
        try:
            same = file not in _opened or _opened[file] == _state(file)
        except OSError:
            same = False
        if not same or file in _damaged:
            raise CheckpointError(
                f"{file}: changed while it was read, or could not be read to its end; run again when nothing writes it"
            )


def guard(mapped: mmap.mmap, file: Path) -> int:
    """Catch faults in a mapping of a file."""
    start = np.frombuffer(mapped, np.uint8, count=1).ctypes.data
    return guard_range(start, len(mapped), file)


def guard_range(start: int, length: int, file: Path) -> int:
    """Catch faults in a range of addresses; see `guard`."""
    _install()
    _mapped[start] = start + length, file
    return start


def unguard(start: int) -> None:
    """Stop catching faults in a mapping, before it is closed."""
    _mapped.pop(start, None)


@contextlib.contextmanager
def guarded(mapped: mmap.mmap, file: Path) -> Iterator[None]:
    """Catch faults in a mapping during a block that reads it."""
    start = guard(mapped, file)
    try:
        yield
    finally:
        unguard(start)


class _Action(ctypes.Structure):
    """``struct sigaction`` of Linux's C libraries."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * _RESTORED_MASK),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_kept: list[Any] = []  # keeps the handler, its type and the previous handler alive as long as the process


def _install() -> None:
    if _kept or not _HAS_FAULTS:
        return
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
    before = _Action()

    def on_fault(_number: int, info: int, _context: int) -> None:
        address = ctypes.c_uint64.from_address(info + _ADDRESS_AT).value
        if not _fill(library, address):  # not our mapping, or mapping failed: the fault recurs and ends the process
            library.sigaction(signal.SIGBUS, ctypes.byref(before), None)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(on_fault)
    action = _Action(ctypes.cast(handler, ctypes.c_void_p).value, flags=_WITH_ADDRESS)
    _kept.extend((library, before, handler, action))
    library.sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(before))


def _fill(library: Any, address: int) -> bool:
    """Map zeros from a page to the end of its mapping."""
    for start, (end, file) in list(_mapped.items()):
        if start <= address < end:
            page = address // mmap.PAGESIZE * mmap.PAGESIZE
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
            _damaged.add(file)
            return bool(library.mmap(page, end - page, mmap.PROT_READ, flags, -1, 0) == page)
    return False
