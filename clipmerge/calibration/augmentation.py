"""Generic changes of images: geometry, colour, grey, blur, noise and small views, aimed at no particular shift.

They act on preprocessed pixels, so that they work for any checkpoint's normalisation. Random numbers are drawn on the
CPU, so that a seed gives the same changes on any device; only noise is drawn on a card by the card.
"""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

from clipmerge.errors import MeasureError
from clipmerge.plugins import Augmentation

#: All kinds of change.
KINDS: tuple[Augmentation, ...] = get_args(Augmentation)

_TURN, _SHEAR, _SHIFT = math.radians(25), 0.2, 0.15
_SCALES = (0.7, 1.3)
_CONTRAST, _BRIGHTNESS, _CHANNELS = 0.6, 0.6, 0.4
_GREY_SHARE, _BLUR_SHARE, _NOISE = 0.3, 0.3, 0.4
# Side of the hidden square as a share of the image's shorter side, and the number of values left by rounding.
_HIDDEN, _TONES = 0.5, 3
# Largest rotation, rescaling and shift of a view at strength 1; a shift of 2 is the whole image.
_VIEW_TURN, _VIEW_SCALE, _VIEW_SHIFT = math.radians(6), 0.08, 0.06


def augmented(pixels: Tensor, seed: int, kinds: tuple[Augmentation, ...] = KINDS) -> Tensor:
    """Change every preprocessed image, (batch, 3, height, width); the seed and the batch size fix how."""
    if kinds:
        _require_images(pixels)
    generator = torch.Generator().manual_seed(seed)
    for kind in KINDS:
        if kind in kinds:
            pixels = _CHANGES[kind](pixels, generator)
    return pixels


def viewed(pixels: Tensor, seed: int, strength: float = 1.0) -> Tensor:
    """Rotate, scale and shift every image slightly, so that learning cannot memorise its pixels.

    Strength 1 rotates by up to 6 degrees, scales by up to 8% and shifts by up to 3% of the side; 0 does nothing.
    """
    if strength == 0:
        return pixels
    _require_images(pixels)
    generator = torch.Generator().manual_seed(seed)
    turn = _uniform(pixels, generator, -_VIEW_TURN, _VIEW_TURN) * strength
    scale = 1 + _uniform(pixels, generator, -_VIEW_SCALE, _VIEW_SCALE) * strength
    shift = _uniform(pixels, generator, -_VIEW_SHIFT, _VIEW_SHIFT, 2) * strength
    cos, sin = scale * turn.cos(), scale * turn.sin()
    rows = [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    return _resampled(pixels, rows)


def corrupted(pixels: Tensor, seed: int) -> Tensor:
    """Corrupt every image in a way that no change above resembles: hide a square of it, or round its values coarsely.

    Args:
        pixels: Preprocessed images, (batch, 3, height, width).
        seed: The same seed and batch size give the same corruptions.

    Returns:
        Same shape, device and dtype; packed patches come back unchanged.
    """
    if pixels.ndim != 4:
        return pixels
    generator = torch.Generator().manual_seed(seed)
    height, width = pixels.shape[-2:]
    side = round(_HIDDEN * min(height, width))
    top, left = (_uniform(pixels, generator, 0, length - side, 1, 1) for length in (height, width))
    rows = torch.arange(height, device=pixels.device)[:, None] - top
    columns = torch.arange(width, device=pixels.device)[None, :] - left
    inside = ((rows >= 0) & (rows < side) & (columns >= 0) & (columns < side))[:, None]
    hidden = pixels.where(~inside, pixels.mean((2, 3), keepdim=True))
    low, high = pixels.amin((1, 2, 3), keepdim=True), pixels.amax((1, 2, 3), keepdim=True)
    rounded = ((pixels - low) / (high - low).clamp_min(1e-6) * (_TONES - 1)).round() / (_TONES - 1) * (high - low) + low
    return torch.where(_chosen(pixels, generator, 0.5), hidden, rounded)


def _require_images(pixels: Tensor) -> None:
    if pixels.ndim != 4:
        raise MeasureError(
            "the model takes images as patches of any aspect ratio, which cannot be rotated or blurred; "
            "set measure.views=0 and measure.changes=[]"
        )


def _resampled(pixels: Tensor, rows: list[Tensor]) -> Tensor:
    """Resample every image under an affine map of two rows of three numbers; outside, the border is repeated."""
    grid = affine_grid(torch.stack(rows, 1), list(pixels.shape), align_corners=False)
    return grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def _uniform(pixels: Tensor, generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    drawn = torch.rand((len(pixels), *shape), generator=generator) * (high - low) + low
    return drawn.to(pixels)


def _chosen(pixels: Tensor, generator: torch.Generator, share: float) -> Tensor:
    return _uniform(pixels, generator, 0, 1, 1, 1, 1) < share


def _geometry(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, scale, shear, shift and mirror; outside, the border is repeated."""
    turn = _uniform(pixels, generator, -_TURN, _TURN)
    scale = _uniform(pixels, generator, *_SCALES)
    shear = _uniform(pixels, generator, -_SHEAR, _SHEAR)
    mirror = 1 - 2 * (_uniform(pixels, generator, 0, 1) < 0.5).to(pixels)
    shift = _uniform(pixels, generator, -_SHIFT, _SHIFT, 2)
    cos, sin = scale * turn.cos(), scale * turn.sin()
    rows = [torch.stack([mirror * cos, shear - sin, shift[:, 0]], 1), torch.stack([mirror * sin, cos, shift[:, 1]], 1)]
    return _resampled(pixels, rows)


def _colour(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Mix the channels a little, and change contrast and brightness."""
    mixing = torch.eye(3).to(pixels) + _uniform(pixels, generator, -_CHANNELS, _CHANNELS, 3, 3)
    mixed = torch.einsum("bij,bjhw->bihw", mixing / mixing.sum(2, keepdim=True).clamp_min(0.5), pixels)
    contrast = _uniform(pixels, generator, 1 - _CONTRAST, 1 + _CONTRAST, 1, 1, 1)
    brightness = _uniform(pixels, generator, -_BRIGHTNESS, _BRIGHTNESS, 1, 1, 1)
    mean = mixed.mean((1, 2, 3), keepdim=True)
    return mean + (mixed - mean) * contrast + brightness


def _grey(pixels: Tensor, generator: torch.Generator) -> Tensor:
    grey = pixels.mean(1, keepdim=True).expand_as(pixels)
    return torch.where(_chosen(pixels, generator, _GREY_SHARE), grey, pixels)


def _blur(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Average over a window that grows with the image."""
    size = 2 * max(1, round(pixels.shape[-1] / 64)) + 1
    # chosen on the CPU, which would wait for a card to count them
    chosen = (torch.rand(len(pixels), 1, 1, 1, generator=generator).flatten() < _BLUR_SHARE).nonzero().flatten()
    chosen = chosen.to(pixels.device)
    blurred = avg_pool2d(pixels[chosen], size, stride=1, padding=size // 2, count_include_pad=False)
    return pixels.index_put((chosen,), blurred)


def _noise(pixels: Tensor, generator: torch.Generator) -> Tensor:
    spread = _uniform(pixels, generator, 0, _NOISE, 1, 1, 1)
    if pixels.device.type == "cpu":
        return pixels + spread * torch.randn(pixels.shape, generator=generator)
    keys = torch.randint(1 << 32, (len(pixels),), generator=generator).to(pixels.device)
    return pixels + spread * _normal(keys, pixels[0].numel()).view_as(pixels).to(pixels)


def _normal(keys: Tensor, count: int) -> Tensor:
    """Standard normal numbers from a hash of a key and a place: (keys, count), the same on every device.

    A card draws them itself, without the time to draw them on the CPU and to send them; each row depends on its key
    alone, so that processes may share the rows.
    """
    places = torch.arange(2 * count, device=keys.device)
    hashed = _mixed(_mixed(places) + keys[:, None])
    first, second = ((hashed + 0.5) / (1 << 32)).tensor_split(2, dim=1)
    normal: Tensor = (-2 * first.log()).sqrt() * (2 * math.pi * second).cos()
    return normal


def _mixed(numbers: Tensor) -> Tensor:
    """A hash of 32 bits of each whole number, which changes about half of its bits with each of theirs."""
    low = (1 << 32) - 1
    numbers = numbers & low
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        numbers = ((numbers ^ (numbers >> shift)) * factor) & low
    return numbers ^ (numbers >> 16)


_CHANGES = {"geometry": _geometry, "colour": _colour, "grey": _grey, "blur": _blur, "noise": _noise}
