"""Drawings turned into pictures: posed, on a background, through a camera.

Training, calibration and test use the same process, in two strengths: `PLAIN` for every stored
image, so that sources differ only in the drawings, and `STRONG` for training the zero-shot model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

from clipmerge.images.digits import SIZE, as_images

#: Function from pictures in [0, 1], shape (N, 3, SIZE, SIZE), and a source of randomness to
#: pictures of the same shape.
Change = Callable[[Tensor, Generator], Tensor]


@dataclass(frozen=True)
class Strength:
    """How much pictures of one drawing differ.

    Attributes:
        degrees: Largest rotation in either direction.
        zoom: Smallest and largest size, as a share of the whole picture.
        shift: Largest shift in either direction, in half pictures.
        background: Darkest background, 0 to 1; the lightest is 1.
        contrast: Largest relative change of contrast.
        noise: Largest standard deviation of the noise.
        blur: Probability of a blurred picture.
        recolour: Probability that the colour channels are mixed at random.
        grey: Probability of a grey picture.
        invert: Probability of an inverted picture.
        outline: Probability that only the edges are left.
        cutout: Probability that a square is covered.
    """

    degrees: float
    zoom: tuple[float, float]
    shift: float
    background: float
    contrast: float
    noise: float
    blur: float
    recolour: float = 0.0
    grey: float = 0.0
    invert: float = 0.0
    outline: float = 0.0
    cutout: float = 0.0


PLAIN = Strength(
    degrees=15, zoom=(0.75, 1.0), shift=0.12, background=0.8, contrast=0.2, noise=0.04, blur=0.2
)
STRONG = Strength(
    degrees=30,
    zoom=(0.65, 1.05),
    shift=0.2,
    background=0.0,
    contrast=0.6,
    noise=0.12,
    blur=0.3,
    recolour=0.4,
    grey=0.25,
    invert=0.1,
    outline=0.15,
    cutout=0.2,
)


def photographed(drawings: Tensor, strength: Strength, generator: Generator) -> Tensor:
    """Take one picture of each drawing.

    Args:
        drawings: RGBA in [0, 1], shape (N, 4, 2 SIZE, 2 SIZE).
        strength: How much they may differ.
        generator: Source of all randomness.

    Returns:
        RGB in [0, 1], shape (N, 3, SIZE, SIZE).
    """
    posed = _posed(drawings, strength, generator)
    colour, cover = posed[:, :3], posed[:, 3:]
    edges = _chance(len(drawings), strength.outline, generator)
    colour, cover = torch.where(edges, 0.0, colour), torch.where(edges, _edges(posed), cover)
    colour = _recoloured(colour, strength, generator)
    background = strength.background + (1 - strength.background) * torch.rand(
        len(drawings), 3, 1, 1, generator=generator
    )
    picture = colour * cover + background * (1 - cover)
    return _through_camera(avg_pool2d(picture, 2), strength, generator).clamp(0, 1)


def _chance(count: int, rate: float, generator: Generator) -> Tensor:
    return torch.rand(count, 1, 1, 1, generator=generator) < rate


def _between(count: int, low: float, high: float, generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _posed(drawings: Tensor, strength: Strength, generator: Generator) -> Tensor:
    """Rotate, scale and shift; colours are weighted by their opacity, so that the edges of a
    drawing stay clean."""
    count = len(drawings)
    angle = _between(count, -strength.degrees, strength.degrees, generator) * (math.pi / 180)
    zoom = _between(count, *strength.zoom, generator)
    move = strength.shift * (2 * torch.rand(count, 2, generator=generator) - 1)
    cosine, sine = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    matrix = torch.stack(
        [
            torch.stack([cosine, -sine, move[:, 0]], dim=1),
            torch.stack([sine, cosine, move[:, 1]], dim=1),
        ],
        dim=1,
    )
    weighted = torch.cat([drawings[:, :3] * drawings[:, 3:], drawings[:, 3:]], dim=1)
    grid = affine_grid(matrix, list(weighted.shape), align_corners=False)
    posed = grid_sample(weighted, grid, align_corners=False)
    return torch.cat([posed[:, :3] / posed[:, 3:].clamp(min=1e-3), posed[:, 3:]], dim=1)


def _edges(posed: Tensor) -> Tensor:
    """Strength of the local change of colour and cover, shape (N, 1, H, W)."""
    weighted = torch.cat([posed[:, :3] * posed[:, 3:], posed[:, 3:]], dim=1)
    across = (weighted[..., :, 2:] - weighted[..., :, :-2]).abs().amax(dim=1, keepdim=True)
    down = (weighted[..., 2:, :] - weighted[..., :-2, :]).abs().amax(dim=1, keepdim=True)
    both = torch.nn.functional.pad(across, (1, 1)) + torch.nn.functional.pad(down, (0, 0, 1, 1))
    return (2.5 * both).clamp(0, 1)


def _recoloured(colour: Tensor, strength: Strength, generator: Generator) -> Tensor:
    count = len(colour)
    mixing = torch.eye(3) + 0.5 * torch.randn(count, 3, 3, generator=generator)
    mixed = torch.einsum("nij,njhw->nihw", mixing, colour - 0.5) + 0.5
    colour = torch.where(_chance(count, strength.recolour, generator), mixed.clamp(0, 1), colour)
    grey = colour.mean(dim=1, keepdim=True).expand_as(colour)
    return torch.where(_chance(count, strength.grey, generator), grey, colour)


def _through_camera(picture: Tensor, strength: Strength, generator: Generator) -> Tensor:
    """Invert, cover, blur, change the contrast and add noise."""
    count = len(picture)
    picture = torch.where(_chance(count, strength.invert, generator), 1 - picture, picture)
    corner = torch.randint(0, SIZE - 8, (2, count, 1, 1, 1), generator=generator)
    axis = torch.arange(SIZE)
    covered = _inside(axis[:, None], corner[0]) & _inside(axis, corner[1])
    picture = torch.where(covered & _chance(count, strength.cutout, generator), 0.5, picture)
    soft = avg_pool2d(picture, 3, stride=1, padding=1, count_include_pad=False)
    picture = torch.where(_chance(count, strength.blur, generator), soft, picture)
    contrast = 1 + strength.contrast * (2 * torch.rand(count, 1, 1, 1, generator=generator) - 1)
    brightness = 0.3 * strength.contrast * (2 * torch.rand(count, 1, 1, 1, generator=generator) - 1)
    noise = strength.noise * torch.rand(count, 1, 1, 1, generator=generator)
    picture = 0.5 + contrast * (picture - 0.5) + brightness
    return picture + noise * torch.randn(picture.shape, generator=generator)


def _inside(axis: Tensor, start: Tensor) -> Tensor:
    return (axis >= start) & (axis < start + 8)


@dataclass(frozen=True)
class Pictures:
    """Pictures that are made once and kept.

    Attributes:
        drawings: RGBA of 8 bits, shape (N, 4, 2 SIZE, 2 SIZE).
        labels: Class of each drawing, shape (N,).
        copies: Number of pictures per drawing.
        seed: Seed of the poses and the camera; sources that must differ have different seeds.
        change: Change made to the pictures, if any.
        things: Index of the thing that each drawing shows, shape (N,); several drawings may show
            one thing.
    """

    drawings: Tensor
    labels: Tensor
    copies: int
    seed: int
    change: Change | None
    things: Tensor


def write_pictures(folder: Path, classes: tuple[str, ...], taken: Pictures) -> None:
    """Write plain pictures of drawings as PNG files, one subfolder per class, completely or not at
    all."""
    if folder.is_dir():
        return
    scratch = folder.with_name(f".{folder.name}")
    written: Counter[int] = Counter()
    for images in taken_images(taken):
        for thing, image, label in zip(
            taken.things.tolist(), images, taken.labels.tolist(), strict=True
        ):
            file = scratch / classes[label] / f"{thing:05d}-{written[thing]}.png"
            written[thing] += 1
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)
    scratch.rename(folder)


def taken_images(taken: Pictures) -> Iterator[list[Image]]:
    """Take one picture of every drawing, then the next one of every drawing, and so on."""
    generator = torch.Generator().manual_seed(taken.seed)
    for _ in range(taken.copies):
        pixels = photographed(taken.drawings.float() / 255, PLAIN, generator)
        yield as_images(taken.change(pixels, generator).clamp(0, 1) if taken.change else pixels)
