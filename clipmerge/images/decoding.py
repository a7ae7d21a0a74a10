"""Open a picture upright, with at most eight bits per channel.

The model's own processor does everything else, including the conversion to RGB: transformers puts
transparent pictures on white, and open_clip drops their transparency. This module corrects two
faults of processors: they ignore the camera's orientation, and they clip grey pictures of 16 bits
or of floats to white.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from clipmerge.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

#: A picture before it is decoded: the content of its file, the file's path, or a PIL image.
Encoded: TypeAlias = "bytes | str | Image"
# Largest ratio of the sides. A processor scales the shorter side to its input size, so a longer
# picture would fill memory.
_MAX_STRETCHED = 1000
_ORIENTATION = 0x112  # tag of Exif
# Bytes 4 to 12 of a HEIC file, by its brand.
_HEIC = (b"ftypheic", b"ftypheix", b"ftypheim", b"ftypmif1", b"ftyphevc")


def open_picture(name: str, encoded: Encoded, *, small: bool = False) -> Image:
    """Open a picture for the model's processor.

    Args:
        name: Name of the picture in messages.
        encoded: The picture, its file's path, or the file's content.
        small: Decode JPEG at down to an eighth of its size, if both sides keep 64 pixels.

    Raises:
        DataError: If the picture cannot be read.
    """
    from PIL import ImageOps

    path = f" ({encoded})" if isinstance(encoded, str) and encoded not in name else ""
    try:
        image = _open_encoded(encoded)
        if 0 in image.size:
            raise ValueError("no pixels")
        if max(image.size) > _MAX_STRETCHED * min(image.size):
            raise ValueError(f"{image.width} x {image.height} pixels, too long and thin")
        written_as = image.format
        if small:
            image.draft(None, (64, 64))
        image.load()
        if image.getexif().get(_ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            image = _scale_to_eight_bits(image, written_as)
    except DataError as error:
        raise DataError(f"{name}{path}: {error}") from None
    except Exception as error:  # a damaged file can make a decoder raise anything
        reason = str(error).split(" <")[0] or type(error).__name__
        raise DataError(
            f"{name}{path}: cannot be read as an image ({reason}); repair or remove it"
        ) from None
    return image


def to_rgb(image: Image) -> Image:
    """Convert to RGB as transformers does: transparent pixels become white."""
    from PIL import Image as Pillow

    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Pillow.new("RGBA", image.size, "white")
        image = Pillow.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _open_encoded(encoded: Encoded) -> Image:
    """Open a picture. Its content, not its name, decides the format."""
    from PIL import Image

    if isinstance(encoded, Image.Image):
        return encoded.copy()
    content = Path(encoded).read_bytes() if isinstance(encoded, str) else encoded
    if not content:
        raise ValueError("no bytes")
    if content[4:12] in _HEIC:  # the format of iPhones
        try:
            from pillow_heif import register_heif_opener  # type: ignore[import-not-found]
        except ImportError:
            raise DataError(
                "is a HEIC picture, which needs pillow-heif: pip install pillow-heif"
            ) from None
        register_heif_opener()
    return Image.open(BytesIO(content))


def _scale_to_eight_bits(image: Image, written_as: str | None) -> Image:
    """Scale a grey picture of more than eight bits to eight bits."""
    from PIL import Image as Pillow

    # Pillow widens the 16 bits of these formats to 32; the white of others is not known
    is_known = image.mode != "I" or written_as in ("PNG", "PPM")
    white = 1.0 if image.mode == "F" else 65535.0
    shares = np.asarray(image).astype(np.float32) / white
    in_range = shares.min() >= 0 and shares.max() <= 1  # false for NaN too
    if not (is_known and in_range):
        raise DataError(
            "holds 32-bit or signed numbers, whose range is not known; save it as 8 or 16 bit"
        )
    return Pillow.fromarray(np.rint(255 * shares).astype(np.uint8))
