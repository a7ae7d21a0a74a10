"""Generic changes of images: geometry, colour, grey, blur, noise and small views, aimed at no
particular shift.

They act on preprocessed pixels, so that they work for any checkpoint's normalisation. Random
numbers are drawn on the CPU, so that a seed gives the same changes on any device.
"""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

from clipmerge.distributed import to_device
from clipmerge.errors import MeasureError
from clipmerge.plugins import Augmentation

#: Which images of a step, or of all, a process takes; a list in the order of its images.
Rows = slice | list[int]
#: All kinds of change.
AUGMENTATIONS: tuple[Augmentation, ...] = get_args(Augmentation)

_TURN, _SHEAR, _SHIFT = math.radians(25), 0.2, 0.15
_SCALES = (0.7, 1.3)
_CONTRAST, _BRIGHTNESS, _CHANNELS = 0.6, 0.6, 0.4
_GREY_SHARE, _BLUR_SHARE, _NOISE = 0.3, 0.3, 0.4
# Largest rotation, rescaling and shift of a view at strength 1; a shift of 2 is the whole image.
_VIEW_TURN, _VIEW_SCALE, _VIEW_SHIFT = math.radians(6), 0.08, 0.06


class _Draws:
    """Random numbers for every image of a step, of which a process keeps those of its own
    images.
    """

    def __init__(self, pixels: Tensor, seed: int, count: int | None, local_rows: Rows) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._count = len(pixels) if count is None else count
        self._local_rows = local_rows
        self._device = pixels.device
        self._dtype = pixels.dtype

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Numbers between two bounds, (images, *shape), on the images' device."""
        drawn = torch.rand((self._count, *shape), generator=self._generator) * (high - low) + low
        return to_device(drawn[self._local_rows].to(self._dtype), self._device)

    def mask(self, share: float) -> Tensor:
        """Whether each image is among a share of all, (images, 1, 1, 1)."""
        return self.uniform(0, 1, 1, 1, 1) < share

    def indices(self, share: float) -> Tensor:
        """Indices of a share of the images, counted by the CPU, which would wait for a card to
        count them.
        """
        drawn = torch.rand(self._count, generator=self._generator)[self._local_rows]
        return to_device((drawn < share).nonzero().flatten(), self._device)

    def normal(self, shape: torch.Size) -> Tensor:
        """Standard normal numbers, (images, *shape)."""
        drawn = torch.randn((self._count, *shape), generator=self._generator)
        return to_device(drawn[self._local_rows], self._device)


def strong_augment(
    pixels: Tensor,
    seed: int,
    kinds: tuple[Augmentation, ...] = AUGMENTATIONS,
    count: int | None = None,
    local_rows: Rows = slice(None),
) -> Tensor:
    """Change every preprocessed image, (batch, 3, height, width).

    The seed and the number of images fix how. A process that takes only the ``local_rows``
    of ``count`` images changes them as one that takes all.
    """
    if kinds:
        _require_images(pixels)
    draws = _Draws(pixels, seed, count, local_rows)
    for kind in AUGMENTATIONS:
        if kind in kinds:
            pixels = _CHANGES[kind](pixels, draws)
    return pixels


def weak_augment(
    pixels: Tensor,
    seed: int,
    strength: float = 1.0,
    count: int | None = None,
    local_rows: Rows = slice(None),
) -> Tensor:
    """Rotate, scale and shift every image slightly, so that learning cannot memorise its pixels.

    Strength 1 rotates by up to 6 degrees, scales by up to 8% and shifts by up to 3% of the side; 0
    does nothing. For ``count`` and ``local_rows`` see `strong_augment`.
    """
    if strength == 0:
        return pixels
    _require_images(pixels)
    draws = _Draws(pixels, seed, count, local_rows)
    turn = draws.uniform(-_VIEW_TURN, _VIEW_TURN) * strength
    scale = 1 + draws.uniform(-_VIEW_SCALE, _VIEW_SCALE) * strength
    shift = draws.uniform(-_VIEW_SHIFT, _VIEW_SHIFT, 2) * strength
    cos, sin = scale * turn.cos(), scale * turn.sin()
    rows = [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    return _resampled(pixels, rows)


def _require_images(pixels: Tensor) -> None:
    if pixels.ndim != 4:
        raise MeasureError(
            "the model takes images as patches of any aspect ratio, which cannot be rotated or"
            " blurred; set measure.weak_aug=0 and measure.augmentations=[]"
        )


def _resampled(pixels: Tensor, rows: list[Tensor]) -> Tensor:
    """Resample every image under an affine map of two rows of three numbers; outside, the border is
    repeated.
    """
    grid = affine_grid(torch.stack(rows, 1), list(pixels.shape), align_corners=False)
    if pixels.device.type == "mps":  # which does not know it before torch 2.13
        return sample_clamped(pixels, grid)
    return grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def sample_clamped(pixels: Tensor, grid: Tensor) -> Tensor:
    """The same as `grid_sample` that repeats the border: every point outside moves to the centre of
    the nearest pixel, beside which nothing else counts.
    """
    height, width = pixels.shape[-2:]
    limits = (1 - 1 / width, 1 - 1 / height)
    inside = [
        axis.clamp(-limit, limit) for axis, limit in zip(grid.unbind(-1), limits, strict=True)
    ]
    return grid_sample(pixels, torch.stack(inside, -1), padding_mode="zeros", align_corners=False)


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
    return torch.where(draws.mask(_GREY_SHARE), grey, pixels)


def _blur(pixels: Tensor, draws: _Draws) -> Tensor:
    """Average over a window that grows with the image."""
    size = 2 * max(1, round(pixels.shape[-1] / 64)) + 1
    chosen = draws.indices(_BLUR_SHARE)
    if not len(chosen):
        return pixels
    # with all images' channels as the last dimension a CPU adds up many at once, to the same sums
    planes = pixels[chosen].flatten(0, 1)[None].contiguous(memory_format=torch.channels_last)
    blurred = avg_pool2d(planes, size, stride=1, padding=size // 2, count_include_pad=False)
    return pixels.index_put((chosen,), blurred.view(-1, *pixels.shape[1:]))


def _noise(pixels: Tensor, draws: _Draws) -> Tensor:
    spread = draws.uniform(0, _NOISE, 1, 1, 1)
    return pixels + spread * draws.normal(pixels.shape[1:])


_CHANGES = {"geometry": _geometry, "colour": _colour, "grey": _grey, "blur": _blur, "noise": _noise}
