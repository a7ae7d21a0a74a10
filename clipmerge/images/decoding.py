"""Decode one image to RGB with eight bits per channel; wider numbers are scaled, never clipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from clipmerge.errors import DataError
from clipmerge.files.limits import LARGEST_IMAGE, MOST_PIXELS, MOST_STRETCHED
from clipmerge.files.reading import open_regular, told_size
from clipmerge.images.encoded import check_encoded, check_tags

if TYPE_CHECKING:
    from PIL.Image import Image

    from clipmerge.images.store import Encoded

# The formats that are decoded, whatever a file is called. Other Pillow plugins run programs (EPS) or are slow.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
# Bytes that are inspected if only the header is read.
_HEAD = 4 << 20
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF
# Key of a comment that Pillow reads as the metadata of a camera.
_PROFILE = "Raw profile type exif"


def decode(name: str, encoded: Encoded) -> Image:
    """Decode an image, upright and as RGB.

    Grey images of 12 or 16 bits are scaled to 8 bits by their depth, floating-point ones in [0, 1] by 255; Pillow's
    own `convert` would clip them.

    Args:
        name: Its name in messages.
        encoded: The content of its file.

    Raises:
        DataError: If it cannot be decoded, or holds numbers whose range is not known.
    """
    from PIL import ImageOps  # as `datasets` does; importing that would take longer than decoding many images

    try:
        with _opened(encoded, whole=True) as image:
            image.load()
            _check_metadata(image)
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            return _eight_bits(name, image, encoded).convert("RGB")
        # palette images with transparency go through RGBA, as Pillow recommends
        if "transparency" in image.info:
            image = image.convert("RGBA")
        return image if image.mode == "RGB" else image.convert("RGB")
    except DataError:
        raise
    except Exception as error:  # a damaged file can make a decoder raise anything
        raise unreadable(name, error) from None


def extent(name: str, encoded: Encoded) -> tuple[int, int]:
    """The shorter and the longer side of an image, in pixels, from its header.

    Args:
        name: Its name in messages.
        encoded: The content of its file.

    Raises:
        DataError: If it is not an image.
    """
    try:
        with _opened(encoded) as image:
            return min(image.size), max(image.size)
    except Exception as error:
        raise unreadable(name, error) from None


def unreadable(name: str, error: Exception) -> DataError:
    """Make the error that says why an image cannot be read.

    Args:
        name: Its name in messages.
        error: The exception.
    """
    reason = str(error).split(" <")[0] or type(error).__name__
    return DataError(f"{name}: cannot be read as an image ({reason}); repair or remove it")


@contextmanager
def _opened(encoded: Encoded, *, whole: bool = False) -> Iterator[Image]:
    """Open an image, and refuse one that would take too much memory or time; ``whole`` if it will be decoded."""
    from PIL import Image

    with _file(encoded) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        check_encoded(file.read(size if whole else _HEAD), size)
        file.seek(0)
        with Image.open(file, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise ValueError(f"{width} x {height} pixels, more than {MOST_PIXELS}")
            if max(image.size) > MOST_STRETCHED * min(image.size):
                raise ValueError(f"{width} x {height} pixels, one side more than {MOST_STRETCHED} times the other")
            yield image


def _check_metadata(image: Image) -> None:
    """Refuse metadata that Pillow would read for long: the camera's, or those that ImageMagick writes into a PNG."""
    metadata = image.info.get("exif")
    if metadata is None and _PROFILE in image.info:
        metadata = bytes.fromhex("".join(image.info[_PROFILE].split("\n")[3:]))  # as Pillow does
    tags = (metadata or b"").removeprefix(b"Exif\0\0")
    check_tags(tags, len(tags))


def _file(encoded: Encoded) -> IO[bytes]:
    if encoded["bytes"] is not None:
        return BytesIO(encoded["bytes"])
    file = open_regular(Path(str(encoded["path"])))
    if os.fstat(file.fileno()).st_size > LARGEST_IMAGE:
        file.close()
        raise ValueError(f"larger than {told_size(LARGEST_IMAGE)}")
    return file


def _eight_bits(name: str, image: Image, encoded: Encoded) -> Image:
    """Scale a grey image of more than eight bits to eight, by its value for white."""
    from PIL import Image as Pillow

    with _opened(encoded) as header:  # an image that was rotated upright has lost its format
        white, tags = _white(header), getattr(header, "tag_v2", {})
    if white is None:
        raise _unknown_range(name)
    shares = np.asarray(image).astype(np.float32)
    shares /= white  # in place, like all that follows: copies of an image of many pixels would fill memory
    if not (shares.min() >= 0 and shares.max() <= 1):  # false for NaN too
        raise _unknown_range(name)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts only 8-bit images
        np.subtract(1, shares, out=shares)
    shares *= 255
    return Pillow.fromarray(np.rint(shares, out=shares).astype(np.uint8))


def _white(header: Image) -> float | None:
    """Value that stands for white; ``None`` if the file does not say."""
    if header.mode == "F":
        return 1.0
    if header.mode == "I":
        return 65535.0 if header.format == "PNG" else None  # Pillow widens 16 bits
    return 4095.0 if getattr(header, "tag_v2", {}).get(_BITS_PER_SAMPLE) == (12,) else 65535.0


def _unknown_range(name: str) -> DataError:
    return DataError(f"{name}: holds 32-bit or signed numbers, whose range is not known; save it as 8 or 16 bit")
