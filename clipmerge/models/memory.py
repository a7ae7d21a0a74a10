"""The memory of a device: what is free of it, images in pieces that are halved whenever it runs
out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor

from clipmerge.distributed import is_out_of_memory
from clipmerge.finding import Finding

T = TypeVar("T")
# Assumed if the system does not report how much memory it has.
_USUAL = 16 << 30


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
    """Bytes that this process may use: of a card what is free and else the
    machine's.
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
    return total
