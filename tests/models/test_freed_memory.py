"""Freed memory is used again inside, and the system's pages outside."""

from __future__ import annotations

import platform
import resource
from pathlib import Path

import pytest
import torch

from clipmerge.models import freed_memory
from clipmerge.models.freed_memory import freed_memory_kept

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told")
ENTRIES = 16 << 20


def new_pages() -> int:
    """Pages that the system maps for a tensor of 64 MB, which an earlier one has given back."""
    torch.zeros(ENTRIES)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(ENTRIES)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize() / 1e6


def test_memory_is_used_again_inside_alone() -> None:
    with freed_memory_kept():
        inside = new_pages()
    assert inside < new_pages() / 4  # few even outside, where the system gives huge pages to all


def test_memory_goes_back_at_the_end() -> None:
    before = resident_mb()
    with freed_memory_kept():
        torch.ones(ENTRIES)
        assert resident_mb() > before + 50
    assert resident_mb() < before + 20


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freed_memory.platform, "libc_ver", lambda: ("", ""))
    assert freed_memory._glibc() is None
    with freed_memory_kept():
        assert new_pages() > 0
