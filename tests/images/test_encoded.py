"""Images made to keep a decoder busy are refused; the same formats as people save them are not."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipmerge.errors import DataError
from clipmerge.images.decoding import decode, extent


def saved(kind: str, side: int = 8, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (side, side), 128).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def drawn_over(times: int, side: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = saved("JPEG", side, progressive=True)
    return data[:-2] + data[data.rfind(b"\xff\xda") : -2] * times + b"\xff\xd9"


def behind_start(kind: str, piece: bytes, times: int, at: int) -> bytes:
    data = saved(kind)
    return data[:at] + piece * times + data[at:]


def metadata(tags: int, size: int) -> bytes:
    """As many tags, all of the same bytes."""
    place = 8 + 2 + 12 * tags + 4
    entries = b"".join(struct.pack("<HHII", 1000 + tag, 7, size, place) for tag in range(tags))
    return struct.pack("<2sHIH", b"II", 42, 8, tags) + entries + bytes(4 + size)


def profile(tags: bytes) -> bytes:
    """Metadata in a comment of a PNG, as ImageMagick writes them."""
    text = f"\nexif\n{len(tags):8}\n{tags.hex()}\n"
    return chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text.encode()))


BUSY: dict[str, tuple[Callable[[], bytes], str]] = {
    "scans": (lambda: drawn_over(200, 64), "more than 50 scans over its pixels"),
    "tags": (lambda: metadata(2000, 10_000), "its tags together are larger than the file"),
    "tags of a PNG": (
        lambda: behind_start("PNG", chunk(b"eXIf", metadata(2000, 10_000)), 1, 33),
        "its tags together are larger",
    ),
    "tags in a comment of a PNG": (
        lambda: behind_start("PNG", profile(metadata(2000, 10_000)), 1, 33),
        "its tags together are larger",
    ),
}


@pytest.mark.uncounted
@pytest.mark.parametrize("name", BUSY)
def test_an_image_made_to_fill_time_or_memory_is_refused(name: str, tmp_path: Path) -> None:
    make, told = BUSY[name]
    with pytest.raises(DataError, match=rf"x: cannot be read as an image \(.*{told}"):
        decode("x", {"bytes": make(), "path": None})
    (tmp_path / "x").write_bytes(make())
    with pytest.raises(DataError, match=told):
        decode("x", {"bytes": None, "path": str(tmp_path / "x")})


@pytest.mark.parametrize("name", [name for name in BUSY if "of a PNG" not in name])
def test_its_size_is_not_looked_for_either(name: str) -> None:
    with pytest.raises(DataError, match=BUSY[name][1]):
        extent("x", {"bytes": BUSY[name][0](), "path": None})


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype(np.uint8))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"progressive": True, "quality": 95, "comment": b"x" * 60_000}),
        ("JPEG", {"exif": b"Exif\0\0" + metadata(20, 3)}),
        ("PNG", {"exif": metadata(20, 3)}),
        ("GIF", {"comment": b"x" * 100_000}),
        ("BMP", {}),
        ("WEBP", {"exif": metadata(20, 3)}),
        ("TIFF", {"compression": "jpeg"}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"big_tiff": True}),
    ],
)
def test_images_as_people_save_them_are_decoded(kind: str, options: dict[str, object]) -> None:
    buffer = io.BytesIO()
    NOISE.save(buffer, kind, **options)
    image = decode("x", {"bytes": buffer.getvalue(), "path": None})
    assert (image.size, image.mode) == ((300, 300), "RGB")
    assert extent("x", {"bytes": buffer.getvalue(), "path": None}) == (300, 300)
    if kind in ("BMP", "PNG") or options.get("compression") == "tiff_lzw":
        assert image.tobytes() == NOISE.tobytes()


@pytest.mark.parametrize("start", [b"", b"Exif\0\0"])
def test_a_png_is_turned_as_a_comment_says(start: bytes) -> None:
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down
    tags = start + turned.tobytes().removeprefix(b"Exif\0\0")
    buffer = io.BytesIO()
    NOISE.save(buffer, "PNG")
    content = buffer.getvalue()
    found = decode("x", {"bytes": content[:33] + profile(tags) + content[33:], "path": None})
    assert found.tobytes() == NOISE.rotate(180).tobytes()
