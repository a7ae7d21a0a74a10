"""Faults of processors that are corrected, and pictures that cannot be read."""

import numpy as np
import pytest
from PIL import Image

from clipmerge.errors import DataError
from clipmerge.images.decoding import Encoded, open_picture, to_rgb
from tests.support.image_files import saved

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (40, 50, 3)).astype(np.uint8)
RGB = Image.fromarray(COLOURS)
GREY = np.linspace(0, 65535, 2000).astype(np.uint16).reshape(40, 50)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (Image.fromarray(GREY), "PNG"),
        (Image.fromarray(GREY), "TIFF"),
        (Image.fromarray((GREY / 65535).astype(np.float32)), "TIFF"),
    ],
)
def test_grey_of_many_bits_is_scaled(image: Image.Image, kind: str) -> None:
    found = open_picture("x", saved(image, kind))
    assert found.mode == "L"
    assert np.array_equal(np.asarray(found), np.rint(GREY / 257).astype(np.uint8))


def test_pictures_of_phones_are_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    content = saved(RGB.rotate(90, expand=True), "PNG", exif=exif)
    assert np.array_equal(np.asarray(open_picture("x", content)), COLOURS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x: cannot be read as an image (no bytes)"),
        (saved(RGB, "PNG")[:700], "x: cannot be read as an image (image file is truncated"),
        (b"\0\0\0\x18ftypheic" + bytes(12), "x: is a HEIC picture, which needs pillow-heif"),
        (Image.new("RGB", (0, 0)), "x: cannot be read as an image (no pixels)"),
        (saved(Image.new("L", (2000, 1)), "PNG"), "2000 x 1 pixels, too long and thin"),
        (saved(Image.fromarray(GREY / 9.0), "TIFF"), "x: holds 32-bit or signed numbers"),
    ],
)
def test_what_cannot_be_read_is_named(content: Encoded, message: str) -> None:
    with pytest.raises(DataError) as raised:
        open_picture("x", content)
    assert message in str(raised.value)


def test_transparent_pixels_become_white() -> None:
    clear = saved(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "PNG")
    assert to_rgb(open_picture("x", clear)).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(RGB) is RGB
