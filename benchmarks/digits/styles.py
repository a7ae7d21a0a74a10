"""Images and captions that the demo's zero-shot model is trained on: handwritten digits in every
style.

A *style* is a change of a digit between pen and photo: stroke, pose, colours, background, blur,
noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from clipmerge.demo.data import TEMPLATE, blurred, posed
from clipmerge.images.digits import CLASS_NAMES, SIZE, digits_as_rgb

if TYPE_CHECKING:
    from torch import Generator, Tensor

_TEMPLATES = (TEMPLATE, "a picture of a {}.", "a handwritten {}.", "a scan of the digit {}.")
#: Probability of each style in a training image; about one image in twenty-five has none and is
#: clean.
STYLE_RATE = 0.3


def captions() -> list[str]:
    """List all captions in the zero-shot model's training.

    Example:
        >>> captions()[0]
        'a photo of a zero.'
    """
    things = [
        f"{style}{digit}"
        for style in ("", *(f"{style} " for style in _STYLES))
        for digit in CLASS_NAMES
    ]
    return [template.format(thing) for thing in things for template in _TEMPLATES]


def styled_batch(
    ink: Tensor, digits: Tensor, generator: Generator, *, rate: float = STYLE_RATE
) -> tuple[Tensor, list[str]]:
    """Draw random styles for every digit, and a caption that names the digit and, usually, one of
    its styles."""
    import torch

    pixels = digits_as_rgb(ink)
    chosen = torch.rand(len(ink), len(_STYLES), generator=generator) < rate
    for index, style in enumerate(_STYLES.values()):
        hit = chosen[:, index]
        pixels = torch.where(hit[:, None, None, None], style(pixels, generator), pixels)
    return pixels, _describe(digits, chosen, generator)


def _describe(digits: Tensor, chosen: Tensor, generator: Generator) -> list[str]:
    """Write a caption for each image; one in three does not mention the style, as in real
    captions."""
    import torch

    draws = torch.rand(len(digits), 3, generator=generator).tolist()
    texts = []
    for digit, row, (talk, which, form) in zip(
        digits.tolist(), chosen.tolist(), draws, strict=True
    ):
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
    return posed(pixels, degrees, zoom, offset)


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

    return blurred(pixels, 1 + 4 * torch.rand(len(pixels), generator=generator))


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
