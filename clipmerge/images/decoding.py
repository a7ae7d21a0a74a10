"""Decode one image to RGB with eight bits per channel; wider numbers are scaled, never clipped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from clipmerge.errors import DataError
from clipmerge.files.limits import MAX_IMAGE_BYTES, MAX_PIXELS, MAX_SCANS, MAX_STRETCHED
from clipmerge.files.reading import read_bytes
from clipmerge.types import Names

if TYPE_CHECKING:
    from PIL.Image import Image

#: An encoded image: the content of its file, or the file's path.
Encoded: TypeAlias = bytes | str
# The formats that are decoded, whatever a file is called. Other Pillow plugins run programs (EPS)
# or are slow.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF
# Key of a comment that ImageMagick writes and Pillow reads as the camera's metadata.
_PROFILE = "Raw profile type exif"
# Bytes of a number in TIFF, by its type.
_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}


def decode(name: str, encoded: Encoded) -> Image:
    """Decode an image, upright and as RGB.

    Grey images of 12 or 16 bits are scaled to 8 bits by their depth, floating-point ones in [0, 1]
    by 255; Pillow's own `convert` would clip them.
    """
    from PIL import ImageOps  # `datasets` does the same, and takes long to import

    with _opened(name, encoded) as image:
        image.load()
        profile = "".join(image.info.get(_PROFILE, "").split("\n")[3:])
        _check_tags(image.info.get("exif", bytes.fromhex(profile)).removeprefix(b"Exif\0\0"))
        tags = getattr(image, "tag_v2", {})
        white = _white_value(image)
        inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            return _scale_to_eight_bits(name, image, white, inverted=inverted).convert("RGB")
        # palette images with transparency go through RGBA, as Pillow recommends
        if "transparency" in image.info:
            return image.convert("RGBA").convert("RGB")
        return image if image.mode == "RGB" else image.convert("RGB")


def image_sides(name: str, encoded: Encoded) -> tuple[int, int]:
    """The shorter and the longer side of an image, in pixels, from its header."""
    with _opened(name, encoded) as image:
        return min(image.size), max(image.size)


def unreadable_error(name: str, error: Exception) -> DataError:
    """The error that says why an image cannot be read."""
    reason = str(error).split(" <")[0] or type(error).__name__
    return DataError(
        f"{name}: cannot be read as an image ({reason}); repair or remove it, or leave out all such"
        " images with `skip_unreadable=True`"
    )


@contextmanager
def _opened(name: str, encoded: Encoded) -> Iterator[Image]:
    """Open an image, and refuse one that would take too much memory, or hours; any error while it
    is used becomes one line.
    """
    from PIL import Image

    if isinstance(encoded, str) and encoded not in name:
        name = f"{name} ({encoded})"  # a data set names its images by their numbers
    try:
        content = encoded
        if isinstance(content, str):
            content = read_bytes(Path(content), MAX_IMAGE_BYTES)
        if not content:
            raise ValueError("no bytes; a path beside it is not followed")
        if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > MAX_SCANS:
            raise ValueError(f"more than {MAX_SCANS} scans over its pixels; save it again")
        if content.startswith((b"II", b"MM")):
            _check_tags(content)
        with Image.open(BytesIO(content), formats=_formats()) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width} x {height} pixels, more than {MAX_PIXELS}")
            if max(image.size) > MAX_STRETCHED * min(image.size):
                raise ValueError(
                    f"{width} x {height} pixels, one side more than {MAX_STRETCHED} times the other"
                )
            yield image
    except DataError:
        raise
    except Exception as error:  # a damaged file can make a decoder raise anything
        raise unreadable_error(name, error) from None


@cache
def _formats() -> Names:
    """Those that this Pillow was built with: AVIF and JPEG 2000 may be missing."""
    from PIL import Image

    Image.init()
    return tuple(kind for kind in _FORMATS if kind in Image.OPEN)


def _check_tags(data: bytes) -> None:
    """Refuse a TIFF or Exif block whose tags together are larger than it: Pillow copies each, and
    they may overlap.
    """
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    is_big = data[2:4] in (b"+\x00", b"\x00+")
    entry, pointer = (20, 8) if is_big else (12, 4)

    def number(start: int, length: int) -> int:
        return int.from_bytes(data[start : start + length], order)

    begin = number(8, 8) if is_big else number(4, 4)
    first = begin + (8 if is_big else 2)
    count = min(number(begin, first - begin), len(data) // entry)
    sizes = [
        _SIZES.get(number(at + 2, 2), 0) * number(at + 4, pointer)
        for at in range(first, first + count * entry, entry)
    ]
    if sum(size for size in sizes if size > pointer) > len(data):
        raise ValueError("its tags together are larger than the file; save it again")


def _scale_to_eight_bits(name: str, image: Image, white: float | None, *, inverted: bool) -> Image:
    """Scale a grey image of more than eight bits to eight, by its value for white."""
    from PIL import Image as Pillow

    unknown = DataError(
        f"{name}: holds 32-bit or signed numbers, whose range is not known; save it as 8 or 16 bit"
    )
    if white is None:
        raise unknown
    shares = np.asarray(image).astype(np.float32)
    # in place, like all that follows: copies of an image of many pixels would fill memory
    shares /= white
    if not (shares.min() >= 0 and shares.max() <= 1):  # false for NaN too
        raise unknown
    if inverted:  # Pillow inverts only 8-bit images
        np.subtract(1, shares, out=shares)
    shares *= 255
    return Pillow.fromarray(np.rint(shares, out=shares).astype(np.uint8))


def _white_value(image: Image) -> float | None:
    """Value that stands for white in a grey image of many bits; ``None`` if the file does not
    say.
    """
    if image.mode == "F":
        return 1.0
    if image.mode == "I":
        return 65535.0 if image.format in ("PNG", "PPM") else None  # Pillow widens 16 bits
    return 4095.0 if getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE) == (12,) else 65535.0
