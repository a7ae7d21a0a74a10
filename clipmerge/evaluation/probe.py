"""The robustness probe: a fixed set of corruptions of images, at one strength each, the same in every run.

The corruptions and most strengths are those of ImageNet-C at its middle severities. An image is first scaled to the
size at which the model sees it, so that the same corruption is equally strong in an image of any size. No recipe
learns from them: the changes of `clipmerge.calibration.augmentation` are other kinds of change, or end below the
strengths here, and images of the probe are never shown to a recipe.

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
from clipmerge.models import ImageTextModel

if TYPE_CHECKING:
    from PIL.Image import Image

    from clipmerge.images.store import Encoded

#: Share of the entries that noise turns black or white.
NOISE = 0.06
#: Standard deviation of the Gaussian blur, as a share of the image's shorter side; at least a pixel.
BLUR = 1 / 64
#: Share of its contrast that an image keeps.
CONTRAST = 0.3
#: JPEG quality, of 100.
JPEG = 10
#: Share of the pixels along each side that pixelating keeps.
PIXELATE = 0.4
#: Added to an image's brightness, of 1.
BRIGHTNESS = 0.3
#: Degrees that an image is turned by, one way or the other.
ROTATION = 40.0

#: Corrupted images that a model is tested on, about: where images are many, each meets fewer of the corruptions.
_TESTS = 512
#: Each image meets at least so many corruptions.
_FEWEST = 2
# Models that take an image as a list of patches have no one size of image.
_USUAL_SIDE = 224
_SEED = 20260

_Corruption = Callable[["Image", np.random.Generator], "Image"]
_Pixels = NDArray[np.uint8]


def corrupted(image: Image, corruption: str, seed: int) -> Image:
    """Corrupt an image.

    Args:
        image: RGB, at the size at which the model sees it.
        corruption: One of `CORRUPTIONS`.
        seed: Of what is random in it; each corruption draws for itself.

    Returns:
        RGB, the same size.
    """
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
    """Turn about the centre; the corners are filled with the mean colour of the image's border."""
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
        sources: The images that each corruption was applied to, by its name; nothing is decoded yet.
        positions: The places of those images among those held back, by corruption.
        per_image: Corruptions that each image is put through.
    """

    sources: dict[str, LabelledImages]
    positions: dict[str, tuple[int, ...]]
    per_image: int

    def mean_by_image(self, values: dict[str, NDArray[np.bool_]]) -> NDArray[np.float64]:
        """Average over the corruptions that each image was put through.

        Args:
            values: Shape (models, images of the corruption), by corruption.

        Returns:
            Shape (models, images held back).
        """
        images = sum(map(len, self.positions.values())) // self.per_image
        models = len(next(iter(values.values())))
        total = np.zeros((models, images))
        for corruption, places in self.positions.items():
            total[:, list(places)] += values[corruption]
        return total / self.per_image


def probe(images: LabelledImages, side: int) -> Probe:
    """Put images through the probe: each through all corruptions, or where they are many through some, in turn.

    Args:
        images: The images, in a random order.
        side: Pixels of the shorter side at which the model sees an image, see `side_of`.
    """
    kinds = len(CORRUPTIONS)
    per_image = min(kinds, max(_FEWEST, _TESTS // len(images)))
    scaled = _Scaled(images, side)
    positions = {
        # image i meets corruptions i * per_image up to (i + 1) * per_image, counted round
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
    """Pixels of the shorter side at which a model sees an image."""
    from PIL import Image as Pillow

    pixels = model.pixels([Pillow.new("RGB", (_USUAL_SIDE, _USUAL_SIDE))])
    return min(pixels.shape[-2:]) if pixels.ndim == 4 else _USUAL_SIDE


@dataclass(frozen=True)
class _Scaled:
    """Images at the model's size; each is decoded once."""

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
class _Corrupted:
    """A store of images under one corruption, made as they are read."""

    scaled: _Scaled
    corruption: str
    positions: tuple[int, ...]
    blocks: tuple[int, ...] = ()

    def read(self, positions: Sequence[int]) -> list[Encoded]:
        return [{"bytes": self._encoded(self.positions[at]), "path": None} for at in positions]

    def name(self, position: int) -> str:
        return self.scaled.images.store.name(self.positions[position])

    def _encoded(self, position: int) -> bytes:
        file = io.BytesIO()
        corrupted(self.scaled.image(position), self.corruption, position).save(file, "BMP")
        return file.getvalue()
