"""Pictures reach a model as its own processor reads them, but where the processor is at fault."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor

from clipmerge.errors import DataError
from clipmerge.images.decoding import Encoded, open_picture, to_rgb
from tests.support.image_files import saved

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (40, 50, 3)).astype(np.uint8)
RGB = Image.fromarray(COLOURS)
ALPHA = Image.fromarray(np.linspace(0, 255, 2000).astype(np.uint8).reshape(40, 50))
GREY = np.linspace(0, 65535, 2000).astype(np.uint16).reshape(40, 50)


def transparent() -> Image.Image:
    image = RGB.copy()
    image.putalpha(ALPHA)
    return image


def palette() -> bytes:
    return saved(RGB.quantize(16), "PNG", transparency=3)


PICTURES: dict[str, Callable[[], bytes]] = {
    "RGB": lambda: saved(RGB, "PNG"),
    "transparent": lambda: saved(transparent(), "PNG"),
    "transparent palette": palette,
    "a transparent colour": lambda: saved(RGB, "PNG", transparency=tuple(COLOURS[3, 3].tolist())),
    "CMYK": lambda: saved(RGB.convert("CMYK"), "JPEG"),
    "a line": lambda: saved(RGB.resize((900, 1)), "PNG"),
}


def processors() -> dict[str, Callable[[Image.Image], Tensor]]:
    processor: Any = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    return {
        "transformers": lambda image: processor(image, return_tensors="pt")["pixel_values"][0],
        "open_clip": open_clip.image_transform(32, is_train=False),
    }


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_is_as_the_processor_reads_its_file(kind: str) -> None:
    content = PICTURES[kind]()
    for name, process in processors().items():
        expected = process(Image.open(io.BytesIO(content)))
        assert torch.equal(process(open_picture("x", content)), expected), name


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
