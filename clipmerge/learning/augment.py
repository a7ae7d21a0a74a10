"""Generic changes of images: geometry, colour, grey, blur, noise and small views, aimed at no
particular shift.

They act on preprocessed pixels, so that they work for any checkpoint's normalisation. Random
numbers are drawn on the CPU, so that a seed gives the same changes on any device; only noise, of
which there is much, is drawn where the images are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

from clipmerge.errors import ClipmergeError
from clipmerge.plugins import Augmentation

#: All kinds of change, in the order in which they are made.
AUGMENTATIONS: tuple[Augmentation, ...] = get_args(Augmentation)
# Strengths are those of common augmentation in contrastive learning, chosen once and never tuned to
# a shift: turns, shears, shifts (a shift of 2 is the whole image) and scales, colours in units of
# the normalised image, and shares of the images that become grey or blurred.
_TURN, _SHEAR, _SHIFT, _SCALES = math.radians(25), 0.2, 0.15, (0.7, 1.3)
_CONTRAST, _BRIGHTNESS, _CHANNELS = 0.6, 0.6, 0.4
_GREY_SHARE, _BLUR_SHARE, _NOISE = 0.3, 0.3, 0.4
# Of a weak augmentation at strength 1: small enough to leave what an image shows as it is.
_WEAK_TURN, _WEAK_SCALE, _WEAK_SHIFT = math.radians(6), 0.08, 0.06


class _Draws:
    """Random numbers for every image."""

    def __init__(self, pixels: Tensor, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._like = pixels

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Numbers between two bounds, (images, *shape), on the images' device."""
        drawn = torch.rand((len(self._like), *shape), generator=self._generator)
        return (drawn * (high - low) + low).to(self._like)

    def chosen(self, share: float) -> Tensor:
        """Whether each image is among a share of all, (images, 1, 1, 1)."""
        return self.uniform(0, 1, 1, 1, 1) < share

    def normal(self) -> Tensor:
        """Standard normal numbers in the images' shape."""
        device, generator = self._like.device, self._generator
        if device.type != "cpu":
            seed = int(torch.randint(1 << 32, (), generator=generator))
            generator = torch.Generator(device).manual_seed(seed)
        return torch.randn(self._like.shape, generator=generator, device=device)


def strong_augment(
    pixels: Tensor, seed: int, kinds: tuple[Augmentation, ...] = AUGMENTATIONS
) -> Tensor:
    """Change every preprocessed image, (batch, 3, height, width), as the seed says."""
    if kinds:
        _require_images(pixels)
    draws = _Draws(pixels, seed)
    for kind in AUGMENTATIONS:
        if kind in kinds:
            pixels = _CHANGES[kind](pixels, draws)
    return pixels


def weak_augment(pixels: Tensor, seed: int, strength: float = 1.0) -> Tensor:
    """Rotate, scale and shift every image slightly, so that learning cannot memorise its pixels.

    Strength 1 rotates by up to 6 degrees, scales by up to 8% and shifts by up to 3% of the side; 0
    does nothing.
    """
    if strength == 0:
        return pixels
    _require_images(pixels)
    draws = _Draws(pixels, seed)
    turn = draws.uniform(-_WEAK_TURN, _WEAK_TURN) * strength
    scale = 1 + draws.uniform(-_WEAK_SCALE, _WEAK_SCALE) * strength
    shift = draws.uniform(-_WEAK_SHIFT, _WEAK_SHIFT, 2) * strength
    cos, sin = scale * turn.cos(), scale * turn.sin()
    rows = [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    return _resampled(pixels, rows)


def _require_images(pixels: Tensor) -> None:
    if pixels.ndim != 4:
        raise ClipmergeError(
            "the model takes images as patches of any aspect ratio, which cannot be rotated or"
            " blurred; set measure.weak_aug=0 and measure.augmentations=[]"
        )


def _resampled(pixels: Tensor, rows: list[Tensor]) -> Tensor:
    """Resample every image under an affine map of two rows of three numbers; outside, the border is
    repeated.

    A point outside moves to the centre of the nearest pixel, beside which nothing else counts: the
    same as ``padding_mode="border"``, which Apple's GPUs do not know before torch 2.13.
    """
    grid = affine_grid(torch.stack(rows, 1), list(pixels.shape), align_corners=False)
    height, width = pixels.shape[-2:]
    limits = torch.tensor([1 - 1 / width, 1 - 1 / height]).to(pixels)
    inside = torch.minimum(torch.maximum(grid, -limits), limits)
    return grid_sample(pixels, inside, padding_mode="zeros", align_corners=False)


def _geometry(pixels: Tensor, draws: _Draws) -> Tensor:
    """Rotate, scale, shear, shift and mirror; outside, the border is repeated."""
    turn = draws.uniform(-_TURN, _TURN)
    scale = draws.uniform(*_SCALES)
    shear = draws.uniform(-_SHEAR, _SHEAR)
    mirror = 1 - 2 * (draws.uniform(0, 1) < 0.5).to(pixels)
    shift = draws.uniform(-_SHIFT, _SHIFT, 2)
    cos, sin = scale * turn.cos(), scale * turn.sin()
    rows = [
        torch.stack([mirror * cos, shear - sin, shift[:, 0]], 1),
        torch.stack([mirror * sin, cos, shift[:, 1]], 1),
    ]
    return _resampled(pixels, rows)


def _colour(pixels: Tensor, draws: _Draws) -> Tensor:
    """Mix the channels a little, and change contrast and brightness."""
    mixing = torch.eye(3, device=pixels.device) + draws.uniform(-_CHANNELS, _CHANNELS, 3, 3)
    mixed = torch.einsum(
        "bij,bjhw->bihw", mixing / mixing.sum(2, keepdim=True).clamp_min(0.5), pixels
    )
    contrast = draws.uniform(1 - _CONTRAST, 1 + _CONTRAST, 1, 1, 1)
    brightness = draws.uniform(-_BRIGHTNESS, _BRIGHTNESS, 1, 1, 1)
    mean = mixed.mean((1, 2, 3), keepdim=True)
    return mean + (mixed - mean) * contrast + brightness


def _grey(pixels: Tensor, draws: _Draws) -> Tensor:
    grey = pixels.mean(1, keepdim=True).expand_as(pixels)
    return torch.where(draws.chosen(_GREY_SHARE), grey, pixels)


def _blur(pixels: Tensor, draws: _Draws) -> Tensor:
    """Average over a window that grows with the image."""
    size = 2 * max(1, round(pixels.shape[-1] / 64)) + 1
    blurred = avg_pool2d(pixels, size, stride=1, padding=size // 2, count_include_pad=False)
    return torch.where(draws.chosen(_BLUR_SHARE), blurred, pixels)


def _noise(pixels: Tensor, draws: _Draws) -> Tensor:
    spread = draws.uniform(0, _NOISE, 1, 1, 1)
    return pixels + spread * draws.normal()


_CHANGES: dict[Augmentation, Callable[[Tensor, _Draws], Tensor]] = {
    "geometry": _geometry,
    "colour": _colour,
    "grey": _grey,
    "blur": _blur,
    "noise": _noise,
}
