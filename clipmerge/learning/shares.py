"""The calibration batches over all processes: each has a share, and values are gathered per
batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor

from clipmerge.distributed import DistributedContext, all_reduce_, peer_errors
from clipmerge.images.batches import Batch


class Shares:
    """This process's share of the batches, and access to the other processes'.

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

    def total(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
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

    def every_batch(self) -> list[Batch]:
        """All processes' batches, in order, in every process."""
        if self.context.world_size == 1:
            return self.batches
        gathered = self.gather([batch.to("cpu") for batch in self.batches])
        return [
            batch.to(self.context.device)
            for batch in sorted(gathered, key=lambda batch: batch.number)
        ]

    def by_batch(self, values: dict[int, Any]) -> list[Any]:
        """Collect one value per batch from every process, in batch order."""
        gathered = dict(self.gather(list(values.items())))
        return [gathered[number] for number in sorted(gathered)]

    def mean(self, per_batch: list[float]) -> float:
        """Average one value per batch over images, weighting batches by size."""
        total = sum(size * value for size, value in zip(self.batch_sizes, per_batch, strict=True))
        return float(total / self.images)
