"""Calibration images as the measures see them."""

from __future__ import annotations

from dataclasses import dataclass

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
