"""Calibration images as the measures see them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One calibration batch on the device.

    Attributes:
        number: Its place among all processes' batches.
        pixels: (batch, 3, height, width).
        labels: (batch,), class indices.
    """

    number: int
    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def pieces(self, size: int | None) -> list[Batch]:
        """Cut the batch into runs of at most so many images; ``None`` leaves it whole."""
        if size is None or size >= len(self):
            return [self]
        parts = zip(torch.split(self.pixels, size), torch.split(self.labels, size), strict=True)
        return [Batch(self.number, pixels, labels) for pixels, labels in parts]
