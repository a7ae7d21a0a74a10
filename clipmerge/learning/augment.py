"""Augment images: geometry, colour, grey, blur and noise, none of them aimed at a particular shift.

Augmentations act on preprocessed pixels, with any normalisation. Random numbers are drawn on the
CPU, so that a seed gives the same changes on every device. Only noise, which needs many numbers, is
drawn on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import get_args

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

from clipmerge.errors import ClipmergeError
from clipmerge.plugins import Augmentation

#: All kinds of change, in the order in which they are made.
AUGMENTATIONS: tuple[Augmentation, ...] = get_args(Augmentation)
# Strengths are common in contrastive learning, chosen once and never tuned to a shift. Most follow
# one magnitude: scales are 1 -+ 0.3, shifts half of it (a shift of 2 is the whole image), contrast
# and brightness twice as much, in units of the normalised image. It is also the share of images
# that become grey, and of those that are blurred.
_MAGNITUDE = 0.3
# Largest rotation.
_TURN = math.radians(25)
# Largest shear; channels are mixed, and noise is added, by up to twice as much.
_SHEAR = 0.2

#: Draws numbers between two bounds, (images, *shape), on the images' device.
_Draw = Callable[..., Tensor]


def strong_augment(
    pixels: Tensor, seed: int, kinds: tuple[Augmentation, ...] = AUGMENTATIONS
) -> Tensor:
    """Augment preprocessed images, (batch, 3, height, width), strongly; the seed decides how."""
    if kinds:
        _require_images(pixels)
    generator = torch.Generator().manual_seed(seed)
    draw = partial(_draw_uniform, generator, pixels)

    def change_some(changed: Tensor, share: float) -> Tensor:
        return torch.where(draw(0, 1, 1, 1, 1) < share, changed, pixels)

    if "geometry" in kinds:
        pixels = change_some(pixels.flip(-1), 0.5)
        pixels = _geometry(pixels, draw, 1.0)
    if "colour" in kinds:
        pixels = _colour(pixels, draw)
    if "grey" in kinds:
        grey = pixels.mean(1, keepdim=True).expand_as(pixels)
        pixels = change_some(grey, _MAGNITUDE)
    if "blur" in kinds:
        # over a window that grows with the image
        size = 2 * max(1, round(pixels.shape[-1] / 64)) + 1
        blurred = avg_pool2d(pixels, size, stride=1, padding=size // 2, count_include_pad=False)
        pixels = change_some(blurred, _MAGNITUDE)
    if "noise" in kinds:
        spread = draw(0, 2 * _SHEAR, 1, 1, 1)
        pixels = pixels + spread * _draw_normal(generator, pixels)
    return pixels


def weak_augment(pixels: Tensor, seed: int, strength: float) -> Tensor:
    """Rotate, scale, shear and shift images slightly, so that learning cannot memorise pixels.

    Strength 1 is as strong as `strong_augment`, and 0 does nothing. Strength 0.25 rotates by up to
    6 degrees, scales by up to 8% and shifts by up to 2% of the side, so that an image still shows
    the same thing.
    """
    if strength == 0:
        return pixels
    _require_images(pixels)
    draw = partial(_draw_uniform, torch.Generator().manual_seed(seed), pixels)
    return _geometry(pixels, draw, strength)


def _draw_uniform(
    generator: torch.Generator, images: Tensor, low: float, high: float, *shape: int
) -> Tensor:
    """Draw numbers between two bounds, (images, *shape), on the device of the images."""
    drawn = torch.rand((len(images), *shape), generator=generator)
    return (drawn * (high - low) + low).to(images)


def _draw_normal(generator: torch.Generator, images: Tensor) -> Tensor:
    """Draw standard normal numbers, in the shape of the images."""
    device = images.device
    if device.type != "cpu":
        seed = int(torch.randint(1 << 32, (), generator=generator))
        generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(images.shape, generator=generator, device=device)


def _require_images(pixels: Tensor) -> None:
    """Raise an error if the pixels are packed as patches."""
    if pixels.ndim != 4:
        raise ClipmergeError(
            "the model takes images as patches of any aspect ratio, which cannot be rotated or"
            " blurred; set measure.weak_aug=0 and measure.augmentations=[]"
        )


def _geometry(pixels: Tensor, draw: _Draw, strength: float) -> Tensor:
    """Rotate, scale, shear and shift images, and repeat the border outside.

    Points outside move to the centre of the nearest pixel. That equals ``padding_mode="border"``,
    which Apple's GPUs lack before torch 2.13.
    """
    turn = strength * draw(-_TURN, _TURN)
    scale = 1 + strength * draw(-_MAGNITUDE, _MAGNITUDE)
    shear = strength * draw(-_SHEAR, _SHEAR)
    right, down = (strength * draw(-_MAGNITUDE / 2, _MAGNITUDE / 2, 2)).unbind(1)
    cos = scale * turn.cos()
    sin = scale * turn.sin()
    affine = torch.stack([cos, shear - sin, right, sin, cos, down], dim=1).view(-1, 2, 3)
    grid = affine_grid(affine, list(pixels.shape), align_corners=False)
    height, width = pixels.shape[-2:]
    limits = torch.tensor([1 - 1 / width, 1 - 1 / height]).to(pixels)
    inside = grid.clamp(-limits, limits)
    return grid_sample(pixels, inside, padding_mode="zeros", align_corners=False)


def _colour(pixels: Tensor, draw: _Draw) -> Tensor:
    """Mix the channels a little, and change contrast and brightness."""
    mixing = torch.eye(3, device=pixels.device) + draw(-2 * _SHEAR, 2 * _SHEAR, 3, 3)
    # a row that nearly cancels would otherwise be blown up
    total = mixing.sum(2, keepdim=True).clamp_min(0.5)
    mixed = torch.einsum("bij,bjhw->bihw", mixing / total, pixels)
    contrast = draw(1 - 2 * _MAGNITUDE, 1 + 2 * _MAGNITUDE, 1, 1, 1)
    brightness = draw(-2 * _MAGNITUDE, 2 * _MAGNITUDE, 1, 1, 1)
    mean = mixed.mean((1, 2, 3), keepdim=True)
    return mean + (mixed - mean) * contrast + brightness
