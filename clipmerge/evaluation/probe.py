"""The robustness probe: a fixed set of image corruptions, each at one strength, the same in every run.

The corruptions and most strengths are those of ImageNet-C at its middle severities. An image is first scaled to the
model's input size, so that a corruption is equally strong in images of any size. No recipe learns from the
corruptions: the changes of `clipmerge.calibration.augmentation` are of other kinds, or weaker than here, and no recipe
sees images of the probe.

Source:
    Hendrycks and Dietterich 2019, arXiv:1903.12261.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clipmerge.images.dataset import LabelledImages
from clipmerge.images.store import Store
from clipmerge.models import ImageTextModel

if TYPE_CHECKING:
    from PIL.Image import Image

    from clipmerge.images.store import Encoded

#: Share of the values that noise sets to black or white.
NOISE = 0.06
#: Standard deviation of the Gaussian blur, as a share of the image's shorter side; at least a pixel.
BLUR = 1 / 64
#: Share of the contrast that is kept.
CONTRAST = 0.3
#: JPEG quality, at most 100.
JPEG = 10
#: Share of the pixels along each side that pixelating keeps.
PIXELATE = 0.4
#: Added to an image's brightness, where 1 is white.
BRIGHTNESS = 0.3
#: Degrees of rotation, in a random direction.
ROTATION = 40.0

#: Approximate number of corrupted images per model: with many images, each gets fewer of the corruptions.
_TESTS = 512
#: Each image gets at least this many corruptions.
_FEWEST = 2
# Models that take an image as a list of patches have no fixed image size.
_USUAL_SIDE = 224
_SEED = 20260

_Corruption = Callable[["Image", np.random.Generator], "Image"]
_Pixels = NDArray[np.uint8]


def corrupted(image: Image, corruption: str, seed: int) -> Image:
    """Corrupt an image."""
    return _CORRUPT[corruption](image, np.random.default_rng([_SEED, list(_CORRUPT).index(corruption), seed]))


def _noise(image: Image, rng: np.random.Generator) -> Image:
    pixels = np.array(image)
    hit = rng.random(pixels.shape) < NOISE
    return _image(np.where(hit, 255 * rng.integers(0, 2, pixels.shape), pixels))


def _blur(image: Image, _: np.random.Generator) -> Image:
    from PIL import ImageFilter

    return image.filter(ImageFilter.GaussianBlur(max(1.0, BLUR * min(image.size))))


def _contrast(image: Image, _: np.random.Generator) -> Image:
    pixels = np.asarray(image, dtype=np.float64)
    mean = pixels.mean(axis=(0, 1))
    return _image(mean + CONTRAST * (pixels - mean))


def _jpeg(image: Image, _: np.random.Generator) -> Image:
    from PIL import Image as Pillow

    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG)
    return Pillow.open(file).convert("RGB")


def _pixelate(image: Image, _: np.random.Generator) -> Image:
    from PIL import Image as Pillow

    small = (max(1, round(PIXELATE * image.width)), max(1, round(PIXELATE * image.height)))
    return image.resize(small, Pillow.Resampling.BOX).resize(image.size, Pillow.Resampling.NEAREST)


def _brightness(image: Image, _: np.random.Generator) -> Image:
    from PIL import Image as Pillow

    hue, saturation, value = image.convert("HSV").split()
    brighter = value.point([min(255, round(level + 255 * BRIGHTNESS)) for level in range(256)])
    return Pillow.merge("HSV", (hue, saturation, brighter)).convert("RGB")


def _rotation(image: Image, rng: np.random.Generator) -> Image:
    """Rotate about the centre; the corners get the mean colour of the image's border."""
    from PIL import Image as Pillow

    pixels = np.asarray(image, dtype=np.float64)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).mean(axis=0)
    fill = tuple(int(level) for level in np.rint(border))
    turn = ROTATION * rng.choice([-1.0, 1.0])
    return image.rotate(turn, Pillow.Resampling.BILINEAR, fillcolor=fill)


def _image(pixels: NDArray[np.generic]) -> Image:
    from PIL import Image as Pillow

    return Pillow.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


_CORRUPT: dict[str, _Corruption] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "jpeg": _jpeg,
    "pixelate": _pixelate,
    "brightness": _brightness,
    "rotation": _rotation,
}
#: Every corruption of the probe, in order.
CORRUPTIONS: tuple[str, ...] = tuple(_CORRUPT)


@dataclass(frozen=True)
class Probe:
    """Held-back images under the corruptions.

    Attributes:
        sources: Corrupted images by corruption; decoded on demand.
        positions: Positions of those images among the images held back, by corruption.
        per_image: Number of corruptions per image.
    """

    sources: dict[str, LabelledImages]
    positions: dict[str, tuple[int, ...]]
    per_image: int

    def mean_by_image(self, values: dict[str, NDArray[np.bool_]]) -> NDArray[np.float64]:
        """Average over the corruptions of each image."""
        images = sum(map(len, self.positions.values())) // self.per_image
        models = len(next(iter(values.values())))
        total = np.zeros((models, images))
        for corruption, places in self.positions.items():
            total[:, list(places)] += values[corruption]
        return total / self.per_image


def probe(images: LabelledImages, side: int) -> Probe:
    """Corrupt images: each with all corruptions or, if there are many images, each with some of them, in turn."""
    kinds = len(CORRUPTIONS)
    per_image = min(kinds, max(_FEWEST, _TESTS // len(images)))
    scaled = _Scaled(images, side)
    positions = {
        # image i gets corruptions i * per_image to (i + 1) * per_image - 1, modulo their number
        corruption: tuple(at for at in range(len(images)) if (number - at * per_image) % kinds < per_image)
        for number, corruption in enumerate(CORRUPTIONS)
    }
    sources = {
        corruption: replace(
            images,
            store=_Corrupted(scaled, corruption, places),
            labels=tuple(images.labels[at] for at in places),
        )
        for corruption, places in positions.items()
    }
    return Probe(sources, positions, per_image)


def side_of(model: ImageTextModel) -> int:
    """Shorter side of the model's input, in pixels."""
    from PIL import Image as Pillow

    pixels = model.pixels([Pillow.new("RGB", (_USUAL_SIDE, _USUAL_SIDE))])
    return min(pixels.shape[-2:]) if pixels.ndim == 4 else _USUAL_SIDE


@dataclass(frozen=True)
class _Scaled:
    """Images at the model's input size; each is decoded once."""

    images: LabelledImages
    side: int
    held: dict[int, _Pixels] = field(default_factory=dict)

    def image(self, position: int) -> Image:
        from PIL import Image as Pillow

        if position not in self.held:
            image = self.images.image(position)
            scale = self.side / min(image.size)
            size = (max(self.side, round(scale * image.width)), max(self.side, round(scale * image.height)))
            self.held[position] = np.asarray(image.resize(size, Pillow.Resampling.BICUBIC))
        return Pillow.fromarray(self.held[position])


@dataclass(frozen=True)
class _Corrupted(Store):
    """A store of images under one corruption, which is applied when they are read."""

    scaled: _Scaled
    corruption: str
    positions: tuple[int, ...]

    def read(self, positions: Sequence[int]) -> list[Encoded]:
        return [{"bytes": self._encoded(self.positions[at]), "path": None} for at in positions]

    def name(self, position: int) -> str:
        return self.scaled.images.store.name(self.positions[position])

    def _encoded(self, position: int) -> bytes:
        file = io.BytesIO()
        corrupted(self.scaled.image(position), self.corruption, position).save(file, "BMP")
        return file.getvalue()
