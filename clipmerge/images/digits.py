"""scikit-learn's handwritten digits, which need no files."""

from __future__ import annotations

import io
from functools import cache

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from clipmerge.errors import DataError
from clipmerge.images.store import ImageList, OpenedSource

#: Words for the digits 0 to 9.
CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
#: Height and width of an image, in pixels.
SIZE = 32


@cache
def read_digits() -> tuple[Tensor, Tensor]:
    """Read scikit-learn's digits once: ink in [0, 1] of shape (1797, 1, SIZE, SIZE), float64, and
    labels (1797,).
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "the handwritten digits come from scikit-learn, which is not installed. Run `pip"
            " install 'clipmerge[demo]'`"
        ) from error
    bunch = load_digits()
    small = torch.from_numpy(bunch.images).double().div(16).unsqueeze(1)
    ink = interpolate(small, size=(SIZE, SIZE), mode="bicubic", align_corners=False).clamp(0, 1)
    return ink, torch.from_numpy(bunch.target).long()


def as_rgb(ink: Tensor) -> Tensor:
    """Repeat grey (N, 1, H, W) into colour (N, 3, H, W)."""
    return ink.expand(-1, 3, -1, -1)


def as_images(pixels: Tensor) -> list[Image.Image]:
    """Turn pixels in [0, 1], shape (N, 3, H, W), into 8-bit RGB images."""
    eight_bit = pixels.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return [Image.fromarray(array) for array in eight_bit]


def load_digits() -> OpenedSource:
    """All digits as a source of images, light on dark."""
    ink, labels = read_digits()
    encoded = []
    for image in as_images(as_rgb(ink)):
        file = io.BytesIO()
        image.save(file, "PNG")
        encoded.append(file.getvalue())
    names = tuple(f"digits, image {number}" for number in range(len(encoded)))
    return OpenedSource(ImageList(tuple(encoded), names), tuple(labels.tolist()), CLASS_NAMES)
