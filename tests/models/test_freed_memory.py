"""Freed memory is used again inside, and the system's pages outside.

The checks run in processes of their own: what other tests left free in this one would be used again
in any case.
"""

import platform

import pytest

from clipmerge.models import memory as module
from clipmerge.models.memory import retain_freed_memory
from tests.support.command import python

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told"
)
CHECKS = """
import resource, sys
import torch
from clipmerge.models.memory import retain_freed_memory

ENTRIES = 16 << 20  # 64 MB

def new_pages():
    torch.zeros(ENTRIES)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(ENTRIES)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident_mb():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * resource.getpagesize() / 1e6

if sys.argv[1] == "used again inside alone":
    with retain_freed_memory():
        inside = new_pages()
    assert inside < new_pages() / 4, inside  # few even outside, where the system gives huge pages to all
else:
    before = resident_mb()
    with retain_freed_memory():
        torch.ones(ENTRIES)
        assert resident_mb() > before + 50
    assert resident_mb() < before + 20
"""


@pytest.mark.slow
@pytest.mark.parametrize("check", ["used again inside alone", "goes back at the end"])
def test_memory_is(check: str) -> None:
    ended = python("-c", CHECKS, check)
    assert ended.returncode == 0, ended.stderr


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.platform, "libc_ver", lambda: ("", ""))
    with retain_freed_memory():
        pass
