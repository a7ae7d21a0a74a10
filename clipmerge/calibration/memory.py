"""How much memory a device has, and how much of it this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

# Assumed if the system does not report how much memory it has.
_USUAL = 16 << 30


def memory(device: torch.device) -> int:
    """Bytes that this process may use: the device's memory, or the limit of a container or a batch job."""
    if device.type == "cuda":  # pragma: no cover - needs a GPU
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # pragma: no cover - Windows, which has no sysconf
        return _USUAL
    return min([total, *_limits()])


def _limits(own: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Limits of the control groups that this process is in, and of those around them; Linux alone has any.

    Args:
        own: The kernel's list of this process's groups.
        mounted: Folder of the groups' files.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if not controllers:  # cgroups version 2
            yield from _limits_above(mounted, group, "memory.max")
        elif "memory" in controllers.split(","):
            yield from _limits_above(mounted / "memory", group, "memory.limit_in_bytes")


def _limits_above(root: Path, group: str, name: str) -> Iterator[int]:
    """Limits from a group up to the root, which is the container's own where the group's path is the host's."""
    parts = [part for part in group.split("/") if part]
    for length in range(len(parts), -1, -1):
        try:
            text = root.joinpath(*parts[:length], name).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text.isdecimal():  # "max" is no limit
            yield int(text)
