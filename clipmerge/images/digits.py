"""Handwritten digits, which come with clipmerge.

They are the test set of *Optical Recognition of Handwritten Digits* (Alpaydin and Kaynak 1998, UCI
machine learning repository, CC BY 4.0), the same 1,797 images that scikit-learn has.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from clipmerge.images.image_set import OpenedSource, Pictures

#: Words for the digits 0 to 9.
CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
#: Height and width of an image, in pixels.
SIZE = 32


@cache
def read_digits() -> tuple[Tensor, Tensor]:
    """Read the digits, once: ink in [0, 1], (1797, 1, SIZE, SIZE), float64, and labels, (1797,)."""
    file = Path(__file__).with_name("digits.npz")
    with np.load(file) as stored:
        levels = torch.from_numpy(stored["images"])  # 0 to 16
        labels = torch.from_numpy(stored["labels"])
    small = levels.double().unsqueeze(1) / 16
    ink = interpolate(small, SIZE, mode="bicubic").clamp(0, 1)
    return ink, labels.long()


def digits_as_rgb(ink: Tensor) -> Tensor:
    """Repeat the grey channel, (N, 1, H, W), as (N, 3, H, W)."""
    return ink.expand(-1, 3, -1, -1)


def as_images(pixels: Tensor) -> list[Image.Image]:
    """Convert pixels in [0, 1], (N, 1 or 3, H, W), to 8-bit RGB images."""
    channels_last = digits_as_rgb(pixels).permute(0, 2, 3, 1)
    levels = (255 * channels_last).round().byte()
    return list(map(Image.fromarray, levels.numpy()))


def load_digits() -> OpenedSource:
    """Open all digits, light on dark, as a source of images."""
    ink, labels = read_digits()
    images = as_images(ink)
    return OpenedSource(
        "digits",
        Pictures(images.__getitem__, "digits, image {}".format, range(len(images))),
        labels.tolist(),
        captioned=False,
        class_names=CLASS_NAMES,
        verbatim=True,
    )
