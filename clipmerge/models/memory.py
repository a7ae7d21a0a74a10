"""Images in pieces that fit into a device's memory: estimated on a CPU, halved wherever it runs
out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from clipmerge.distributed import is_out_of_memory

T = TypeVar("T")
# Share of a machine's memory that activations may take: the rest is weights, and others'.
_SHARE = 0.25


class MicroBatcher:
    """Runs images through a model in micro-batches, halved whenever memory runs out; ``tell`` gets
    a note of each halving.
    """

    def __init__(self, max_images: int | None, tell: Callable[[str], None]) -> None:
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
            self._tell(
                f"memory does not suffice for {count} images at once: going on with"
                f" {self.max_images}"
            )

    def forward(self, model: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
        """Send images through a model without a graph, in micro-batches."""
        return self.run(
            len(pixels),
            lambda count: torch.cat([model(piece) for piece in torch.split(pixels, count)]),
        )


def affordable_images(
    module: torch.nn.Module, embed: Callable[[Tensor], Tensor], image: Tensor
) -> int | None:
    """How many images' activations fit into a CPU's memory, from those of one image, (1, 3, height,
    width); ``None`` for a card, which says when it has too little.
    """
    pages = getattr(os, "sysconf", None)
    if image.device.type != "cpu" or pages is None:
        return None
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        graph = embed(image)  # alive until all is counted, or its memory would be used again
    room = _SHARE * pages("SC_PAGE_SIZE") * pages("SC_PHYS_PAGES")
    count = max(1, int(room / max(1, sum(sizes.values()))))
    del graph
    return count
