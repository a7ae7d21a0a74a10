"""Images and captions of the demo: scikit-learn's handwritten digits in every style.

A *style* is a change of a digit between pen and photo: stroke, pose, colours, background, blur, noise. The zero-shot
model sees heavily styled digits with captions that name the style; the fine-tuned model sees only clean ones; the
*shifts* of the evaluation are four single styles at greater strength.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from clipmerge.images.digits import CLASS_NAMES, SIZE, as_rgb, read_digits

if TYPE_CHECKING:
    from torch import Generator, Tensor

TEMPLATE: str = "a photo of a {}."
"""Template of the class prompts; also the most frequent caption."""

SHIFTS: tuple[str, ...] = ("noise", "inversion", "rotation", "blur")
"""The shifted copies of the test images, in the order of the demo's table."""

_SPLITS = {"train": 1100, "calibration": 297, "test": 400}
_SPLIT_SEED = 0
_SHIFT_SEED = 1

_TEMPLATES = (TEMPLATE, "a picture of a {}.", "a handwritten {}.", "a scan of the digit {}.")
STYLE_RATE = 0.3
"""Probability of each style in a training image; about one image in twenty-five has none and is clean."""


def captions() -> list[str]:
    """List all captions in the zero-shot model's training.

    Example:
        >>> captions()[0]
        'a photo of a zero.'
    """
    things = [f"{style}{digit}" for style in ("", *(f"{style} " for style in _STYLES)) for digit in CLASS_NAMES]
    return [template.format(thing) for thing in things for template in _TEMPLATES]


def ink_of(split: str) -> tuple[Tensor, Tensor]:
    """Clean digits of ``train``, ``calibration`` or ``test``, which are disjoint.

    Returns:
        Ink in [0, 1], shape (N, 1, SIZE, SIZE), and digits 0 to 9, shape (N,).
    """
    import torch

    ink, digits = read_digits()
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    parts = dict(zip(_SPLITS, torch.split(order, list(_SPLITS.values())), strict=True))
    return ink[parts[split]], digits[parts[split]]


def shifted_pixels(shift: str, ink: Tensor) -> Tensor:
    """Apply one shift to clean digits, always with the same result."""
    import torch

    generator = torch.Generator().manual_seed(_SHIFT_SEED)
    count = len(ink)
    if shift == "noise":
        noise = torch.randn(count, 3, SIZE, SIZE, generator=generator)
        return (as_rgb(ink) + 0.6 * noise).clamp(0, 1)
    if shift == "inversion":
        return as_rgb(1 - ink)
    if shift == "rotation":
        side = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
        degrees = side * (20 + 20 * torch.rand(count, generator=generator))
        return as_rgb(_posed(ink, degrees, torch.ones(count), torch.zeros(count, 2)))
    return as_rgb(_blurred(ink, torch.full((count,), 4.5)))


def styled_batch(
    ink: Tensor, digits: Tensor, generator: Generator, *, rate: float = STYLE_RATE
) -> tuple[Tensor, list[str]]:
    """Draw random styles for every digit, and a caption that names the digit and, usually, one of its styles."""
    import torch

    pixels = as_rgb(ink)
    chosen = torch.rand(len(ink), len(_STYLES), generator=generator) < rate
    for index, style in enumerate(_STYLES.values()):
        hit = chosen[:, index]
        pixels = torch.where(hit[:, None, None, None], style(pixels, generator), pixels)
    return pixels, _describe(digits, chosen, generator)


def _describe(digits: Tensor, chosen: Tensor, generator: Generator) -> list[str]:
    """Write a caption for each image; one in three does not mention the style, as in real captions."""
    import torch

    draws = torch.rand(len(digits), 3, generator=generator).tolist()
    texts = []
    for digit, row, (talk, which, form) in zip(digits.tolist(), chosen.tolist(), draws, strict=True):
        styles = [style for style, used in zip(_STYLES, row, strict=True) if used]
        thing = CLASS_NAMES[digit]
        if styles and talk > 1 / 3:
            thing = f"{styles[int(which * len(styles))]} {thing}"
        texts.append(_TEMPLATES[int(form * len(_TEMPLATES))].format(thing))
    return texts


def _bold(pixels: Tensor, _: Generator) -> Tensor:
    from torch.nn.functional import max_pool2d

    return max_pool2d(pixels, kernel_size=3, stride=1, padding=1)


def _thin(pixels: Tensor, _: Generator) -> Tensor:
    from torch.nn.functional import max_pool2d

    return 1 - max_pool2d(1 - pixels, kernel_size=3, stride=1, padding=1)


def _rotated(pixels: Tensor, generator: Generator) -> Tensor:
    import torch

    count = len(pixels)
    degrees = 90 * torch.rand(count, generator=generator) - 45
    zoom = 0.85 + 0.3 * torch.rand(count, generator=generator)
    offset = 0.3 * torch.rand(count, 2, generator=generator) - 0.15
    return _posed(pixels, degrees, zoom, offset)


def _coloured(pixels: Tensor, generator: Generator) -> Tensor:
    import torch

    count = len(pixels)
    front = 0.5 + 0.5 * torch.rand(count, 3, 1, 1, generator=generator)
    back = 0.4 * torch.rand(count, 3, 1, 1, generator=generator)
    return torch.lerp(back, front, pixels)


def _inverted(pixels: Tensor, _: Generator) -> Tensor:
    return 1 - pixels


def _textured(pixels: Tensor, generator: Generator) -> Tensor:
    """Add stripes of random direction, width and strength to the image."""
    import torch

    count = len(pixels)
    angle, period, phase, strength = torch.rand(4, count, 1, 1, 1, generator=generator)
    axis = torch.arange(SIZE, dtype=pixels.dtype)
    along = axis[:, None] * torch.sin(math.pi * angle) + axis * torch.cos(math.pi * angle)
    stripes = torch.sin(2 * math.pi * (along / (4 + 12 * period) + phase))
    striped: Tensor = pixels + (0.05 + 0.25 * strength) * stripes
    return striped.clamp(0, 1)


def _blurry(pixels: Tensor, generator: Generator) -> Tensor:
    import torch

    return _blurred(pixels, 1 + 4 * torch.rand(len(pixels), generator=generator))


def _faded(pixels: Tensor, generator: Generator) -> Tensor:
    import torch

    contrast = 0.3 + 0.5 * torch.rand(len(pixels), 1, 1, 1, generator=generator)
    level = torch.rand(len(pixels), 1, 1, 1, generator=generator)
    return level + contrast * (pixels - level)


def _noisy(pixels: Tensor, generator: Generator) -> Tensor:
    import torch

    strength = 0.1 + 0.6 * torch.rand(len(pixels), 1, 1, 1, generator=generator)
    return (pixels + strength * torch.randn(pixels.shape, generator=generator)).clamp(0, 1)


_STYLES: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "bold": _bold,
    "thin": _thin,
    "rotated": _rotated,
    "coloured": _coloured,
    "inverted": _inverted,
    "textured": _textured,
    "blurry": _blurry,
    "faded": _faded,
    "noisy": _noisy,
}
"""Functions of pixels in [0, 1] by style word, in the order of pen, page and camera."""


def _posed(pixels: Tensor, degrees: Tensor, zoom: Tensor, offset: Tensor) -> Tensor:
    """Rotate, zoom and move each image about its centre; outside, its edge is repeated."""
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    cosine, sine = torch.cos(torch.deg2rad(degrees)) / zoom, torch.sin(torch.deg2rad(degrees)) / zoom
    rows = [
        torch.stack([cosine, -sine, offset[:, 0]], dim=1),
        torch.stack([sine, cosine, offset[:, 1]], dim=1),
    ]
    grid = affine_grid(torch.stack(rows, dim=1), list(pixels.shape), align_corners=False)
    return grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _blurred(pixels: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image with a Gaussian of its own width; sigma has shape (N,), in pixels."""
    import torch

    axis = torch.arange(SIZE, dtype=pixels.dtype)
    distance = (axis[:, None] - axis[None, :]) / sigma[:, None, None]
    weights = torch.softmax(-0.5 * distance**2, dim=-1).unsqueeze(1)
    blurred: Tensor = weights @ pixels @ weights.transpose(-1, -2)
    return blurred
