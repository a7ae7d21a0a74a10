"""The memory of a device: what is free of it, images in pieces that are halved whenever it runs
out, and its reuse.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor

from clipmerge.distributed import is_out_of_memory
from clipmerge.finding import Finding

T = TypeVar("T")
# Assumed if the system does not report how much memory it has.
_USUAL = 16 << 30
# mallopt's parameters, the values that keep everything, and glibc's defaults.
_TRIM_THRESHOLD, _NEVER, _USUAL_TRIM = -1, -1, 128 << 10
_MMAP_MAX, _NONE, _USUAL_MMAPS = -4, 0, 65536


class MicroBatcher:
    """Runs images through a model in micro-batches, halved whenever memory runs out; ``tell`` gets
    a note of each halving.
    """

    def __init__(self, max_images: int | None, tell: Callable[[Finding], None]) -> None:
        self.max_images = max_images  # in a micro-batch; ``None`` for all that are given
        self._tell = tell

    def run(self, images: int, work: Callable[[int], T]) -> T:
        """Do work that holds the activations of at most the given number of images, of fewer and
        fewer until memory suffices.

        Work that fails is started again, so it must not build on what it did before.
        """
        while True:
            count = min(self.max_images or images, images)
            try:
                return work(count)
            except (RuntimeError, MemoryError) as error:
                # a retry in here would keep the tensors of the failed attempt alive
                if count <= 1 or not is_out_of_memory(error):
                    raise
            clear_device_cache(garbage_collection=True)
            self.max_images = count // 2
            self._tell(Finding.of("less-at-once", images=count, now=self.max_images))

    def forward(self, model: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
        """Send images through a model without a graph, in micro-batches."""
        return self.run(
            len(pixels),
            lambda count: torch.cat([model(piece) for piece in torch.split(pixels, count)]),
        )


def usable_memory(device: torch.device) -> int:
    """Bytes that this process may use: of a card what is free, else the machine's or the limit of a
    job.
    """
    card: Any = getattr(torch, device.type, None)
    if hasattr(card, "mem_get_info"):
        allocated = card.memory_allocated(device)
        try:
            return int(card.mem_get_info(device)[0] + card.memory_reserved(device) - allocated)
        except RuntimeError:  # some of Intel's cannot say it
            return int(card.get_device_properties(device).total_memory - allocated)
    if device.type == "mps":  # pragma: no cover - needs Apple's GPU
        return int(card.recommended_max_memory() - card.driver_allocated_memory())
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (
        AttributeError,
        ValueError,
        OSError,
    ):  # pragma: no cover - Windows, which has no sysconf
        return _USUAL
    return min([total, *_cgroup_limits()])


def _cgroup_limits(
    membership: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")
) -> Iterator[int]:
    """Limits of the control groups that this process is in, and of those around them; Linux alone
    has any.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if not controllers:  # cgroups version 2
            yield from _cgroup_limits_above(mounted, group, "memory.max")
        elif "memory" in controllers.split(","):
            yield from _cgroup_limits_above(mounted / "memory", group, "memory.limit_in_bytes")


def _cgroup_limits_above(root: Path, group: str, name: str) -> Iterator[int]:
    """Limits from a group up to the root, which is the container's own where the group's path is
    the host's.
    """
    parts = [part for part in group.split("/") if part]
    for length in range(len(parts), -1, -1):
        try:
            text = root.joinpath(*parts[:length], name).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text.isdecimal():  # "max" is no limit
            yield int(text)


@contextmanager
def retain_freed_memory() -> Iterator[None]:
    """In this context, reuse memory that tensors have freed, instead of asking the system for new
    pages.

    glibc's allocator asks the system for every large tensor and returns it afterwards. The system
    then clears and maps each page again, which takes several times as long as an elementwise
    operation on the tensor.
    """
    library = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
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
