"""Five corruptions of test images, from which no recipe learns.

Images are first scaled to the model's input size, so that a corruption is equally strong for all
sizes. Every run corrupts an image in the same way.

Source:
    Hendrycks and Dietterich 2019, arXiv:1903.12261: the middle severities of ImageNet-C.
"""

from __future__ import annotations

import io
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps
from PIL.Image import Dither, Image, Resampling

from clipmerge.images.image_set import Pictures

CORRUPTIONS = ("jpeg", "pixelate", "posterize", "dither", "occlusion")
# JPEG quality, at most 100.
_JPEG = 10
# Factor by which pixelating scales each side.
_PIXELATE = 0.4
# Bits per channel after posterizing.
_POSTERIZE = 2
# Height and width of the hidden rectangle, as a share of the image's.
_OCCLUSION = 0.5
# Number of corrupted images that are enough. Small sets are copied several times to get them.
_ENOUGH = 512
_SEED = 20260


def corrupt(image: Image, corruption: str, seed: int) -> Image:
    """Corrupt an RGB image that has the model's input size."""
    match corruption:
        case "jpeg":
            file = io.BytesIO()
            image.save(file, "JPEG", quality=_JPEG)
            return Pillow.open(file).convert("RGB")
        case "pixelate":
            small = ImageOps.scale(image, _PIXELATE, Resampling.BOX)
            return small.resize(image.size, Resampling.NEAREST)
        case "posterize":
            return ImageOps.posterize(image, _POSTERIZE)
        case "dither":  # as if printed in the eight mixtures of full red, green and blue
            palette = Pillow.new("P", (1, 1))
            palette.putpalette(
                [255 * (colour >> channel & 1) for colour in range(8) for channel in range(3)]
            )
            return image.quantize(palette=palette, dither=Dither.FLOYDSTEINBERG).convert("RGB")
        case _:  # hide a random rectangle behind the mean colour
            pixels = np.array(image)
            height, width = (max(1, round(_OCCLUSION * side)) for side in pixels.shape[:2])
            rng = np.random.default_rng([_SEED, seed])
            top = rng.integers(pixels.shape[0] - height + 1)
            left = rng.integers(pixels.shape[1] - width + 1)
            mean = np.rint(pixels.mean(axis=(0, 1)))
            pixels[top : top + height, left : left + width] = mean
            return Pillow.fromarray(pixels)


def corrupted_sets(images: Any, side: int) -> dict[str, Any]:
    """Make one or several corrupted copies of a set of images, by name of the copy.

    The corruptions take turns from image to image. An image has a different one in every copy.

    Args:
        images: The set of images.
        side: Shorter side of the model's input, in pixels.
    """
    copies = min(len(CORRUPTIONS), max(1, _ENOUGH // len(images)))
    scaled: list[Image] = []
    for at in range(len(images)):
        image = images.image(at)
        scaled.append(ImageOps.scale(image, side / min(image.size), Resampling.BICUBIC))

    def corrupted(at: int, copy: int) -> Image:
        turn = (at * copies + copy) % len(CORRUPTIONS)
        return corrupt(scaled[at], CORRUPTIONS[turn], at)

    sets: dict[str, Any] = {}
    for copy in range(copies):
        get = partial(corrupted, copy=copy)
        pictures = Pictures(get, images.pictures.name_of, range(len(images)))
        sets[f"corrupted {copy}"] = replace(images, pictures=pictures)
    return sets
