"""Batches of labelled images: decoded, preprocessed and dealt out to processes."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clipmerge.images.dataset import LabelledImages
from clipmerge.images.store import Pixels

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

# A batch is the unit of the bootstrap, so there should be a few of them even when images are scarce.
_LARGEST_BATCH = 128
_FEWEST_BATCHES = 8


@dataclass(frozen=True)
class Batch:
    """One batch of preprocessed images.

    Attributes:
        number: Its index among the batches of all processes.
        pixels: (batch, 3, height, width), float32.
        labels: (batch,), class indices, int64.
    """

    number: int
    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(self.number, self.pixels.to(device), self.labels.to(device))

    def pieces(self, size: int | None) -> list[Batch]:
        """Split the batch into pieces of at most ``size`` images; ``None`` leaves it whole."""
        if size is None or size >= len(self):
            return [self]
        import torch

        parts = zip(torch.split(self.pixels, size), torch.split(self.labels, size), strict=True)
        return [Batch(self.number, pixels, labels) for pixels, labels in parts]


def batch_size_for(images: int, wanted: int | None) -> int:
    """Choose the batch size: at most 128, and small enough for eight batches.

    Example:
        >>> batch_size_for(1024, None), batch_size_for(160, None), batch_size_for(160, 64)
        (128, 20, 64)
    """
    return wanted or max(1, min(_LARGEST_BATCH, -(-images // _FEWEST_BATCHES)))


def read_batches(
    images: LabelledImages,
    batch_size: int,
    to_pixels: Callable[[list[Image]], Tensor],
    *,
    share: tuple[int, int] = (0, 1),
    skipped: Container[int] = (),
) -> Iterator[Batch]:
    """Decode and preprocess images, batch by batch, in their order."""
    import torch

    rank, world = share
    for number, start in enumerate(range(0, len(images), batch_size)):
        if number % world == rank and number not in skipped:
            positions = range(start, min(start + batch_size, len(images)))
            if isinstance(images.store, Pixels):
                pixels = images.store.batch(positions)
            else:
                pixels = to_pixels([images.image(position) for position in positions])
            yield Batch(number, pixels, torch.tensor([images.labels[position] for position in positions]))
