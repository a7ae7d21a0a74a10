"""Images of the demo: handwritten digits, clean and under four shifts.

The zero-shot model saw heavily styled digits, the fine-tuned one only clean ones
(`benchmarks/digits` of commit 7fea82b5); the *shifts* are four single styles at greater strength.
Computed in float64 and rounded once, so every processor writes the same.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from clipmerge.images.digits import SIZE, digits_as_rgb, read_digits
from clipmerge.types import Names

TEMPLATE: str = "a photo of a {}."
"""Template of the class prompts; also the most frequent caption."""

SHIFTS: Names = ("noise", "inversion", "rotation", "blur")
"""The shifted copies of the test images, in the order of the demo's table."""

# the models have seen the first ones, in a shuffled order
_SPLITS = {"train": 700, "calibration": 697, "test": 400}
_SPLIT_SEED = 0
_SHIFT_SEED = 1


def shuffled_digits() -> tuple[Tensor, Tensor]:
    """All clean digits, always in the same order: ink in [0, 1], shape (N, 1, SIZE, SIZE), and
    digits 0 to 9, (N,).
    """
    ink, digits = read_digits()
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    return ink[order], digits[order]


def ink_of(split: str) -> tuple[Tensor, Tensor]:
    """The digits of ``train``, ``calibration`` or ``test``, which are disjoint; see
    `shuffled_digits`.
    """
    ink, digits = (torch.split(values, list(_SPLITS.values())) for values in shuffled_digits())
    number = list(_SPLITS).index(split)
    return ink[number], digits[number]


def shifted_pixels(shift: str, ink: Tensor) -> Tensor:
    """Apply one shift to clean digits, always with the same result; float64 like the ink."""
    generator = torch.Generator().manual_seed(_SHIFT_SEED)
    count = len(ink)
    if shift == "noise":
        noise = torch.randn(count, 3, SIZE, SIZE, generator=generator, dtype=ink.dtype)
        return (digits_as_rgb(ink) + 0.6 * noise).clamp(0, 1)
    if shift == "inversion":
        return digits_as_rgb(1 - ink)
    if shift == "rotation":
        side = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
        degrees = side * (20 + 20 * torch.rand(count, generator=generator, dtype=ink.dtype))
        return digits_as_rgb(
            posed(ink, degrees, torch.ones_like(degrees), torch.zeros(count, 2, dtype=ink.dtype))
        )
    return digits_as_rgb(blurred(ink, torch.full((count,), 4.5, dtype=ink.dtype)))


def posed(pixels: Tensor, degrees: Tensor, zoom: Tensor, offset: Tensor) -> Tensor:
    """Rotate, zoom and move each image about its centre; outside, its edge is repeated."""
    cosine, sine = (
        torch.cos(torch.deg2rad(degrees)) / zoom,
        torch.sin(torch.deg2rad(degrees)) / zoom,
    )
    rows = [
        torch.stack([cosine, -sine, offset[:, 0]], dim=1),
        torch.stack([sine, cosine, offset[:, 1]], dim=1),
    ]
    grid = affine_grid(torch.stack(rows, dim=1), list(pixels.shape), align_corners=False)
    return grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def blurred(pixels: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image with a Gaussian of its own width; sigma has shape (N,), in pixels."""
    axis = torch.arange(SIZE, dtype=pixels.dtype)
    distance = (axis[:, None] - axis[None, :]) / sigma[:, None, None]
    weights = torch.softmax(-0.5 * distance**2, dim=-1).unsqueeze(1)
    return (weights @ pixels).matmul(weights.transpose(-1, -2))
