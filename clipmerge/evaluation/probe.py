"""The robustness probe: fixed corruptions of images, each at one strength, the same in every run.

`UNRELATED` ones are of kinds that no recipe learns from (compare
`clipmerge.learning.augmentation`); the verdict rests on them. `RELATED` ones are stronger forms
of changes that `auto` learns from, and are reported apart. An image is first scaled to the model's
input size, so that a corruption is equally strong in images of any size.

Source:
    Hendrycks and Dietterich 2019, arXiv:1903.12261, for most strengths: the middle severities of
    ImageNet-C.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageFilter, ImageOps
from PIL.Image import Image

from clipmerge.images import ImageSet
from clipmerge.images.decoding import Encoded
from clipmerge.images.store import Store
from clipmerge.models import ImageTextModel
from clipmerge.types import Json, Names, Shape

#: Share of the values that noise sets to black or white.
NOISE = 0.06
#: Standard deviation of the Gaussian blur, as a share of the image's shorter side; at least a
#: pixel.
BLUR = 1 / 64
#: Share of the contrast that is kept.
CONTRAST = 0.3
#: JPEG quality, at most 100.
JPEG = 10
#: Share of the pixels along each side that pixelating keeps.
PIXELATE = 0.4
#: Bits of each channel that posterizing keeps.
POSTERIZE = 2
#: Share of each side that a rectangle hides.
OCCLUSION = 0.5
#: Added to an image's brightness, where 1 is white.
BRIGHTNESS = 0.3
#: Degrees of rotation, in a random direction.
ROTATION = 40.0

# Models that take an image as a list of patches have no fixed image size.
_USUAL_SIDE = 224
_SEED = 20260

#: Corruptions of kinds that no recipe learns from, in order.
UNRELATED = ("jpeg", "pixelate", "posterize", "dither", "occlusion")
#: Stronger forms of changes that `auto` learns from, in order.
RELATED = ("noise", "blur", "contrast", "brightness", "rotation")


def corrupt(image: Image, corruption: str, seed: int) -> Image:
    """Corrupt an RGB image at the model's input size; each corruption has its own stream of random
    numbers.
    """
    rng = np.random.default_rng([_SEED, (*UNRELATED, *RELATED).index(corruption), seed])
    pixels = np.array(image, dtype=np.float64)
    match corruption:
        case "jpeg":
            file = io.BytesIO()
            image.save(file, "JPEG", quality=JPEG)
            return Pillow.open(file).convert("RGB")
        case "pixelate":
            small = (max(1, round(PIXELATE * image.width)), max(1, round(PIXELATE * image.height)))
            return image.resize(small, Pillow.Resampling.BOX).resize(
                image.size, Pillow.Resampling.NEAREST
            )
        case "posterize":
            return ImageOps.posterize(image, POSTERIZE)
        case "dither":
            # print the image in the eight colours without or with all of red, green and blue
            palette = Pillow.new("P", (1, 1))
            palette.putpalette(
                [255 * (colour >> channel & 1) for colour in range(8) for channel in range(3)]
            )
            return image.quantize(palette=palette, dither=Pillow.Dither.FLOYDSTEINBERG).convert(
                "RGB"
            )
        case "occlusion":  # hide a rectangle, at a random place, by the mean colour of the image
            mean = np.rint(pixels.mean(axis=(0, 1)))
            height, width = (max(1, round(OCCLUSION * side)) for side in pixels.shape[:2])
            top, left = (
                rng.integers(pixels.shape[0] - height + 1),
                rng.integers(pixels.shape[1] - width + 1),
            )
            pixels[top : top + height, left : left + width] = mean
        case "noise":
            hit = rng.random(pixels.shape) < NOISE
            pixels = np.where(hit, 255 * rng.integers(0, 2, pixels.shape), pixels)
        case "blur":
            return image.filter(ImageFilter.GaussianBlur(max(1.0, BLUR * min(image.size))))
        case "contrast":
            mean = pixels.mean(axis=(0, 1))
            pixels = mean + CONTRAST * (pixels - mean)
        case "brightness":
            hue, saturation, value = image.convert("HSV").split()
            brighter = value.point(
                [min(255, round(level + 255 * BRIGHTNESS)) for level in range(256)]
            )
            return Pillow.merge("HSV", (hue, saturation, brighter)).convert("RGB")
        case _:  # rotate about the centre; the corners get the mean colour of the border
            border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).mean(
                axis=0
            )
            fill = tuple(int(level) for level in np.rint(border))
            turn = ROTATION * rng.choice([-1.0, 1.0])
            return image.rotate(turn, Pillow.Resampling.BILINEAR, fillcolor=fill)
    return Pillow.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Probe:
    """Held-back images under some corruptions, and the positions of the corrupted ones among them,
    by corruption.
    """

    sources: Json  # like the images
    positions: dict[str, Shape]
    per_image: int

    def mean_by_image(self, values: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
        """Average values (models, images of the corruption), by corruption, over each image:
        (models, images).
        """
        images = sum(map(len, self.positions.values())) // self.per_image
        models = len(next(iter(values.values())))
        total = np.zeros((models, images))
        for corruption, positions in self.positions.items():
            total[:, list(positions)] += values[corruption]
        return total / self.per_image


def probe(scaled: ScaledImages, corruptions: Names, *, enough: int, fewest: int) -> Probe:
    """Corrupt images, which are in a random order.

    Each gets all corruptions or, if there are many images, some of them in turn: at least
    ``fewest``, and in all about ``enough`` corrupted images.
    """
    images = scaled.images
    kinds = len(corruptions)
    per_image = min(kinds, max(fewest, enough // len(images)))
    positions = {
        # image i gets corruptions i * per_image to (i + 1) * per_image - 1, modulo their number
        corruption: tuple(
            at for at in range(len(images)) if (number - at * per_image) % kinds < per_image
        )
        for number, corruption in enumerate(corruptions)
    }
    sources = {
        corruption: replace(
            images,
            store=_Corrupted(scaled, corruption, chosen),
            labels=tuple(images.labels[at] for at in chosen),
        )
        for corruption, chosen in positions.items()
    }
    return Probe(sources, positions, per_image)


def input_side(model: ImageTextModel) -> int:
    """Shorter side of the model's input, in pixels."""
    pixels = model.pixels([Pillow.new("RGB", (_USUAL_SIDE, _USUAL_SIDE))])
    return min(pixels.shape[-2:]) if pixels.ndim == 4 else _USUAL_SIDE


@dataclass(frozen=True)
class ScaledImages:
    """Images at the model's input size; each is decoded once."""

    images: ImageSet
    side: int
    _decoded: dict[int, NDArray[np.uint8]] = field(default_factory=dict, repr=False)

    def image(self, position: int) -> Image:
        """One image, RGB."""
        if position not in self._decoded:
            image = self.images.image(position)
            scale = self.side / min(image.size)
            size = (
                max(self.side, round(scale * image.width)),
                max(self.side, round(scale * image.height)),
            )
            self._decoded[position] = np.asarray(image.resize(size, Pillow.Resampling.BICUBIC))
        return Pillow.fromarray(self._decoded[position])


@dataclass(frozen=True)
class _Corrupted(Store):
    """A store of images under one corruption, which is applied when they are read."""

    scaled: ScaledImages
    corruption: str
    positions: Shape

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, positions: Sequence[int]) -> list[Encoded]:
        encoded: list[Encoded] = []
        for at in (self.positions[position] for position in positions):
            file = io.BytesIO()
            corrupt(self.scaled.image(at), self.corruption, at).save(file, "BMP")
            encoded.append(file.getvalue())
        return encoded

    def name(self, position: int) -> str:
        return self.scaled.images.store.name(self.positions[position])
