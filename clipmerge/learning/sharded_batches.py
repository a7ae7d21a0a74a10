"""Batches of images sharded over the processes; values are gathered batch by batch, and learning
reads single images by their positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from clipmerge.distributed import DistributedContext, all_reduce_, broadcast_, peer_errors
from clipmerge.images.batches import Batch
from clipmerge.types import Tensors


class ShardedBatches:
    """This process's batches, and access to the other processes'.

    Attributes:
        context: The processes.
        batches: This process's batches, on its device.
        batch_sizes: Images in every batch of all processes, in batch order.
    """

    def __init__(self, batches: Iterable[Batch], context: DistributedContext) -> None:
        """Move the batches to the device and get the sizes of the other processes' batches."""
        self.context = context
        self.batches = [batch.to(context.device) for batch in batches]
        sizes = dict(self.gather([(batch.number, len(batch)) for batch in self.batches]))
        self.batch_sizes = tuple(sizes[number] for number in sorted(sizes))

    @property
    def images(self) -> int:
        """Images over all processes."""
        return sum(self.batch_sizes)

    def gather(self, items: list[Any]) -> list[Any]:
        """Collect items from every process, in every process."""
        if self.context.world_size == 1:
            return items
        with peer_errors():
            gathered: list[Any] = gather_object(items)
        return gathered

    def total(self, tensors: Tensors) -> Tensors:
        """Sum tensors of the same names and shapes over all processes; the sums lie on the CPU."""
        sums = {}
        for name, value in tensors.items():
            total = value if self.context.world_size == 1 else value.clone()
            self.all_reduce_(total)
            sums[name] = total.cpu()
        return sums

    def all_reduce_(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all processes, in place; the same bits in each of
        them.
        """
        all_reduce_(self.context, tensor)

    @cached_property
    def _every_batch(self) -> list[Batch]:
        """All processes' batches, in order; the first use waits for all processes."""
        return self.batches if self.context.world_size == 1 else self._exchange()

    @cached_property
    def _rows(self) -> list[tuple[Batch, int]]:
        """Batch and row of every image, by its position among those of all processes."""
        return [(batch, row) for batch in self._every_batch for row in range(len(batch))]

    def _exchange(self) -> list[Batch]:
        """Send every batch to all processes, as tensors: pickled, the images of all would lie in
        the memory of each several times over.
        """
        local_batches = {batch.number: batch for batch in self.batches}
        context = self.context
        listed = self.gather(
            [
                (number, context.rank, tuple(batch.pixels.shape), batch.pixels.dtype)
                for number, batch in local_batches.items()
            ]
        )
        batches = []
        for number, rank, shape, dtype in sorted(listed, key=lambda item: item[0]):
            batch = local_batches.get(number)
            if batch is None:
                pixels = torch.empty(shape, dtype=dtype, device=context.device)
                labels = torch.empty(shape[0], dtype=torch.int64, device=context.device)
                batch = Batch(number, pixels, labels)
            broadcast_(context, batch.pixels, rank)
            broadcast_(context, batch.labels, rank)
            batches.append(batch)
        return batches

    @cached_property
    def labels(self) -> list[int]:
        """Labels of all processes' images, by position."""
        return [label for batch in self._every_batch for label in batch.labels.tolist()]

    def select(self, positions: Sequence[int], number: int = 0) -> Batch:
        """Copy the images at some positions among all processes' into a batch of this number."""
        rows = [self._rows[position] for position in positions]
        pixels = torch.stack([batch.pixels[row] for batch, row in rows])
        return Batch(number, pixels, torch.stack([batch.labels[row] for batch, row in rows]))

    def by_batch(self, values: dict[int, Any]) -> list[Any]:
        """Collect one value per batch from every process, in batch order."""
        gathered = dict(self.gather(list(values.items())))
        return [gathered[number] for number in sorted(gathered)]

    def mean(self, per_batch: list[float]) -> float:
        """Average one value per batch over images, weighting batches by size."""
        total = sum(size * value for size, value in zip(self.batch_sizes, per_batch, strict=True))
        return float(total / self.images)
