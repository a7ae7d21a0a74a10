"""Reuse memory that tensors have freed, instead of asking the system for new pages.

The C library's allocator on Linux asks the system for every large tensor and returns it afterwards. The system then
clears and maps each page again, which takes several times as long as an elementwise operation on the tensor.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# mallopt's parameters, the values that keep everything, and glibc's defaults.
_TRIM_THRESHOLD, _NEVER, _USUAL_TRIM = -1, -1, 128 << 10
_MMAP_MAX, _NONE, _USUAL_MMAPS = -4, 0, 65536


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """In this context, keep freed memory for further tensors; return it to the system at the end. Only with glibc."""
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(_MMAP_MAX, _NONE)
    library.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        library.mallopt(_MMAP_MAX, _USUAL_MMAPS)
        library.mallopt(_TRIM_THRESHOLD, _USUAL_TRIM)
        library.malloc_trim(0)


def _glibc() -> Any:
    """The C library, if it is glibc."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
