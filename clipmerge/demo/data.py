"""Images of the demo: handwritten digits, clean and under four shifts.

The zero-shot model was trained on heavily styled digits, and fine-tuned on clean ones. The shifts
are four of these styles, stronger. They are computed in float64 and rounded once, so that every
processor writes the same images.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from clipmerge.images.digits import SIZE, digits_as_rgb, read_digits
from clipmerge.types import Names

TEMPLATE: str = "a photo of a {}."
"""Template of the class prompts. It was also the most frequent caption in training."""

SHIFTS: Names = ("noise", "inversion", "rotation", "blur")
"""The shifted copies of the test images, in the order of the demo's table."""

# Number of digits in each split. The models were trained on ``train``.
_SPLITS = {"train": 700, "calibration": 697, "test": 400}
_SPLIT_SEED = 0
_SHIFT_SEED = 1


def digits_of_split(split: str) -> tuple[Tensor, Tensor]:
    """Return the clean digits of ``train``, ``calibration`` or ``test``, which are disjoint.

    Returns:
        Ink in [0, 1], shape (N, 1, SIZE, SIZE), and digits 0 to 9, shape (N,).
    """
    ink, digits = read_digits()
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    parts = dict(zip(_SPLITS, torch.split(order, list(_SPLITS.values())), strict=True))
    return ink[parts[split]], digits[parts[split]]


def shifted_pixels(shift: str, ink: Tensor) -> Tensor:
    """Apply a shift to clean digits. The same digits always give the same pixels.

    Args:
        shift: One of `SHIFTS`.
        ink: The digits, (N, 1, SIZE, SIZE), in [0, 1].

    Returns:
        RGB, (N, 3, SIZE, SIZE), in [0, 1].
    """
    generator = torch.Generator().manual_seed(_SHIFT_SEED)
    count = len(ink)
    if shift == "noise":
        noise = torch.randn(count, 3, SIZE, SIZE, generator=generator, dtype=ink.dtype)
        noisy = digits_as_rgb(ink) + 0.6 * noise
        return noisy.clamp(0, 1)
    if shift == "inversion":
        return digits_as_rgb(1 - ink)
    if shift == "rotation":
        side = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
        share = torch.rand(count, generator=generator, dtype=ink.dtype)
        degrees = side * (20 + 20 * share)
        turned = _rotate(ink, degrees)
        return digits_as_rgb(turned)
    return digits_as_rgb(_blur(ink, sigma=4.5))


def _rotate(pixels: Tensor, degrees: Tensor) -> Tensor:
    """Rotate each image about its centre, and fill the corners with the colour of its edge."""
    angle = torch.deg2rad(degrees)
    cosine = torch.cos(angle)
    sine = torch.sin(angle)
    nothing = torch.zeros_like(angle)
    across = torch.stack([cosine, -sine, nothing], dim=1)
    down = torch.stack([sine, cosine, nothing], dim=1)
    turn = torch.stack([across, down], dim=1)
    grid = affine_grid(turn, list(pixels.shape), align_corners=False)
    return grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _blur(pixels: Tensor, sigma: float) -> Tensor:
    """Blur each image with a Gaussian whose width is ``sigma`` pixels."""
    axis = torch.arange(SIZE, dtype=pixels.dtype)
    distance = (axis[:, None] - axis[None, :]) / sigma
    weights = torch.softmax(-0.5 * distance**2, dim=-1)
    down = weights @ pixels
    return down @ weights.T
