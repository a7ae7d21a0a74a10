"""One image decoded: every depth and mode becomes eight bits of RGB, and what would keep a decoder
busy is refused."""

import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipmerge.errors import DataError
from clipmerge.images.dataset import load_images
from clipmerge.images.decoding import decode, image_sides
from tests.support.image_files import (
    chunk,
    drawn_over,
    metadata,
    save_plain_parquet,
    saved,
    with_chunk,
)

SHADES = np.random.default_rng(0).integers(0, 65536, (6, 5)).astype(np.uint16)
SHADES.flat[:4] = (0, 65535, 128, 129)  # both ends, and where rounding turns
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype(np.uint8))


def eight_bits(values: np.ndarray, white: int = 65535) -> list[list[int]]:
    """Pixel by pixel, in whole numbers: the nearest of 256 shades."""
    return [[(2 * 255 * int(value) + white) // (2 * white) for value in row] for row in values]


def grey(content: bytes) -> list[list[int]]:
    """The shades of an image, which is grey."""
    image = decode("x", content)
    assert image.mode == "RGB"
    red, green, blue = np.moveaxis(np.asarray(image), 2, 0)
    assert (red == green).all()
    assert (red == blue).all()
    values: list[list[int]] = red.tolist()
    return values


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = value
    return exif


def twelve_bits(values: np.ndarray) -> bytes:
    """A TIFF of two numbers in three bytes."""
    rows = [
        (int(a) << 12 | int(b)).to_bytes(3, "big") for row in values for a, b in row.reshape(-1, 2)
    ]
    tags = {256: 4, 257: 6, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 6, 279: 36}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return (
        b"II*\0"
        + struct.pack("<I", 44)
        + b"".join(rows)
        + struct.pack("<H", len(tags))
        + directory
        + bytes(4)
    )


WIDE = Image.fromarray(SHADES)
DECIMAL = np.arange(256, dtype=np.float32).reshape(16, 16)
STEPS = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
GREYS: dict[str, tuple[bytes, list[list[int]]]] = {
    **{
        f"16 bits in {kind}": (saved(WIDE, kind), eight_bits(SHADES))
        for kind in ("PNG", "TIFF", "PPM")
    },
    "12 bits": (twelve_bits(SHADES[:, :4] >> 4), eight_bits(SHADES[:, :4] >> 4, white=4095)),
    "zero is white": (saved(WIDE, "TIFF", tiffinfo={262: 0}), eight_bits(65535 - SHADES)),
    "decimals from 0 to 1": (
        saved(Image.fromarray(DECIMAL / 255), "TIFF"),
        DECIMAL.astype(int).tolist(),
    ),
    "16 bits, upside down": (
        saved(WIDE, "PNG", exif=orientation(3)),
        np.rot90(np.asarray(eight_bits(SHADES)), 2).tolist(),
    ),
    # the first row of the file is the right side of the picture
    "turned by the camera": (saved(STEPS, "PNG", exif=orientation(6)), [[3, 0], [4, 1], [5, 2]]),
}


@pytest.mark.parametrize("name", GREYS)
def test_grey_images_of_any_depth_become_eight_bits(name: str) -> None:
    content, expected = GREYS[name]
    assert grey(content) == expected


def test_every_mode_becomes_rgb() -> None:
    for mode in ("1", "LA", "P", "RGBA", "CMYK"):
        image = decode("x", saved(Image.new(mode, (4, 4)), "TIFF" if mode == "CMYK" else "PNG"))
        assert (image.mode, image.size) == ("RGB", (4, 4))
    image = Image.new("P", (2, 1))  # what a palette hides is shown in its own colour
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    found = decode("x", saved(image, "PNG", transparency=1))
    assert (found.mode, found.getpixel((0, 0)), found.getpixel((1, 0))) == (
        "RGB",
        (255, 0, 0),
        (0, 0, 255),
    )


UNKNOWN = {
    "32 bits": np.array([[0, 255], [70_000, 9]], np.int32),
    "decimal beyond 1": np.array([[0.0, 1.5]], np.float32),
    "negative": np.array([[-0.5, 0.5]], np.float32),
    "not a number": np.array([[np.nan, 0.5]], np.float32),
}


def test_numbers_of_unknown_range_are_errors_of_one_line_that_names_the_row(tmp_path: Path) -> None:
    contents = [
        saved(WIDE, "PNG"),
        *(saved(Image.fromarray(values), "TIFF") for values in UNKNOWN.values()),
    ]
    table = {"image": contents, "label": ["a", *"bbbb"]}
    found = load_images(str(save_plain_parquet(tmp_path / "x.parquet", table)))
    assert np.asarray(found.image(0))[..., 0].tolist() == eight_bits(SHADES)
    for row in range(1, 5):
        told = rf"x\.parquet, row {row}: holds 32-bit .* range is not known; save it as 8 or 16 bit"
        with pytest.raises(DataError, match=told):
            found.image(row)


def test_only_files_in_formats_that_run_no_program_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n%%EOF\n"
    (tmp_path / "x.png").write_bytes(content)
    Image.open(tmp_path / "x.png").close()  # Pillow would, whatever the file is called
    monkeypatch.setattr(
        subprocess, "Popen", lambda *_args, **_options: pytest.fail("a program was started")
    )
    with pytest.raises(
        DataError, match=r"x.png\): cannot be read as an image \(cannot identify image file\)"
    ):
        decode("image 3", str(tmp_path / "x.png"))
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(
        DataError, match=r"pipe.png\): cannot be read as an image \(.*not a regular file"
    ):
        decode("image 3", str(tmp_path / "pipe.png"))


MANY = metadata(2000, 10_000)
BUSY: dict[str, tuple[Callable[[], bytes], str]] = {
    "scans": (lambda: drawn_over(200, 64), "more than 50 scans over its pixels"),
    "tags": (lambda: MANY, "its tags together are larger than the file"),
    "tags of a PNG": (
        lambda: with_chunk(NOISE, chunk(b"eXIf", MANY)),
        "its tags together are larger",
    ),
}


@pytest.mark.parametrize("name", BUSY)
def test_an_image_made_to_fill_time_or_memory_is_refused(name: str) -> None:
    content, told = (
        BUSY[name][0](),
        rf"x: cannot be read as an image \(.*{BUSY[name][1]}.*\); repair or remove it, or leave",
    )
    for read in (decode, image_sides) if name in ("scans", "tags") else (decode,):
        with pytest.raises(DataError, match=told):
            read("x", content)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"progressive": True, "quality": 95, "comment": b"x" * 60_000}),
        ("JPEG", {"exif": b"Exif\0\0" + metadata(20, 3)}),
        ("PNG", {"exif": metadata(20, 3)}),
        ("WEBP", {"exif": metadata(20, 3)}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"big_tiff": True}),
    ],
)
def test_images_as_people_save_them_are_decoded(kind: str, options: dict[str, object]) -> None:
    content = saved(NOISE, kind, **options)
    image = decode("x", content)
    assert (image.size, image.mode) == ((300, 300), "RGB")
    assert image_sides("x", content) == (300, 300)
    if kind == "PNG" or options.get("compression") == "tiff_lzw":
        assert image.tobytes() == NOISE.tobytes()
