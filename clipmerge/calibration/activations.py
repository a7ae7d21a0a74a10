"""Memory that activations take, and the number of images whose activations fit into it at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from clipmerge.models.precision import Precision, passes

if TYPE_CHECKING:
    from clipmerge.calibration.objective import Objective

# Share of the device's memory that activations may take; more images go through the model in pieces.
_SHARE = 0.25
# On a card, the same of what nothing else has taken; gradients and buffers of kernels need the rest.
_SHARE_OF_FREE = 0.6


class Activations:
    """What a model's activations take, measured once."""

    def __init__(self, objective: Objective, precision: Precision) -> None:
        """Send an image through, and then two."""
        device = objective.shares.accelerator.device
        self._room = (_SHARE_OF_FREE if device.type == "cuda" else _SHARE) * memory(device)
        self._each = _bytes_per_image(objective, precision)

    def images(self, times: int = 1) -> int | None:
        """How many images' activations fit this many times; at least one, and ``None`` if it is unknown."""
        return max(1, int(self._room / (times * self._each))) if self._each else None


def _bytes_per_image(objective: Objective, precision: Precision) -> int:
    """Bytes kept for the backward pass per additional image; weights, which it needs too, are not counted."""
    if not objective.shares.batches:
        return 0
    pixels = objective.shares.batches[0].pixels[:1]
    # repeated, as a view of the batch would count all of its images
    one, two = (_saved(objective, pixels.repeat(count, *[1] * (pixels.ndim - 1)), precision) for count in (1, 2))
    return two - one


def _saved(objective: Objective, pixels: Tensor, precision: Precision) -> int:
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # with its graph, an operation that saves its own output would never be freed

    with saved_tensors_hooks(keep, lambda tensor: tensor), passes(pixels.device, precision):
        graph = objective.criterion.embed(pixels)  # kept alive until all is counted, or its memory would be reused
    del graph
    return sum(sizes.values())


# Assumed if the system does not report how much memory it has.
_USUAL = 16 << 30


def memory(device: torch.device) -> int:
    """Bytes that this process may use: of a card what is free, else the machine's or the limit of a job."""
    if device.type == "cuda":  # pragma: no cover - needs a GPU
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # pragma: no cover - Windows, which has no sysconf
        return _USUAL
    return min([total, *_limits()])


def _limits(own: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Limits of the control groups that this process is in, and of those around them; Linux alone has any."""
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
