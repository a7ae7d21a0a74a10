"""One encoded image to RGB, eight bits a channel; numbers wider than that are scaled, never clipped."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from clipmerge.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

    from clipmerge.images.store import Encoded

# Formats whose grey images of mode I have 16 bits: Pillow widens them.
_SIXTEEN_BITS = ("PNG", "PPM")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF


def decode(name: str, encoded: Encoded) -> Image:
    """Decode an image, upright and as RGB.

    Grey images of 12 or 16 bits are scaled to 8 by their depth, decimal ones from 0 to 1 by 255; `convert` would clip
    them.

    Args:
        name: What to call it in a message.
        encoded: What its file holds.

    Raises:
        DataError: If it cannot be decoded, or holds numbers whose range is not known.
    """
    from PIL import ImageOps  # what `datasets` decodes with, whose own import takes longer than many an image

    try:
        with _opened(encoded) as file:
            image = ImageOps.exif_transpose(file)
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            return _eight_bits(name, image, encoded).convert("RGB")
        # palette images with transparency go through RGBA, as pillow asks
        rgb: Image = (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")
        return rgb
    except DataError:
        raise
    except Exception as error:  # a damaged file can make a decoder raise anything
        raise unreadable(name, error) from None


def extent(name: str, encoded: Encoded) -> tuple[int, int]:
    """The shorter and the longer side of an image, in pixels, from its header.

    Args:
        name: What to call it in a message.
        encoded: What its file holds.

    Raises:
        DataError: If it is no image.
    """
    try:
        with _opened(encoded) as image:
            return min(image.size), max(image.size)
    except Exception as error:
        raise unreadable(name, error) from None


def unreadable(name: str, error: Exception) -> DataError:
    """Make the error that says why an image cannot be read.

    Args:
        name: What to call it.
        error: What was raised.
    """
    reason = str(error).split(" <")[0] or type(error).__name__
    return DataError(f"{name}: cannot be read as an image ({reason}); mend or remove it")


def _opened(encoded: Encoded) -> Any:
    """Open an image without decoding it; a context."""
    from PIL import Image

    return Image.open(BytesIO(encoded["bytes"]) if encoded["bytes"] is not None else str(encoded["path"]))


def _eight_bits(name: str, image: Image, encoded: Encoded) -> Image:
    """Scale a grey image of more than eight bits by what white is in it."""
    from PIL import Image as Pillow

    with _opened(encoded) as header:  # an image that was turned upright has lost its format
        white, tags = _white(header), getattr(header, "tag_v2", {})
    if white is None:
        raise _unknown_range(name)
    shares = np.asarray(image).astype(np.float32) / white
    if not ((shares >= 0) & (shares <= 1)).all():  # also where one is not a number
        raise _unknown_range(name)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # pillow turns only 8-bit ones round
        shares = 1 - shares
    return Pillow.fromarray(np.rint(255 * shares).astype(np.uint8))


def _white(header: Image) -> float | None:
    """The number that stands for white; ``None`` where nothing tells."""
    if header.mode == "F":
        return 1.0
    if header.mode == "I":
        return 65535.0 if header.format in _SIXTEEN_BITS else None
    return 4095.0 if getattr(header, "tag_v2", {}).get(_BITS_PER_SAMPLE) == (12,) else 65535.0


def _unknown_range(name: str) -> DataError:
    return DataError(f"{name}: holds 32-bit or signed numbers, whose range is not known; save it as 8 or 16 bit")
