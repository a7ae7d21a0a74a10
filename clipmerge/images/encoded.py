"""Inspect an encoded image before Pillow reads it: how many parts would a decoder have to go through?

An image of few pixels may consist of millions of empty segments, and one of some hundred kilobytes may be drawn over
thousands of times. Only what would take long is refused here; Pillow reports all other faults.
"""

from __future__ import annotations

import re

from clipmerge.files.limits import LARGEST_RUNS, MOST_PARTS, MOST_PIXELS, MOST_SCANS
from clipmerge.files.reading import told_size

_SCAN, _FILL = b"\xff\xda", re.compile(rb"\xff+")
# JPEG markers without a segment, and those that the image data follow.
_ALONE, _PICTURE = (0x00, 0x01, *range(0xD0, 0xD9)), (0xD9, 0xDA)
_RUN_LENGTHS = (1, 2)  # compression of BMP
# Tags of TIFF, compressions of TIFF that are JPEG, and bytes of a number by its type.
_WIDTH, _HEIGHT, _COMPRESSION, _STRIP, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 259, 278, 322, 323
_AS_JPEG = (6, 7)
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


class TooManyParts(ValueError):
    """Why an image would take long to decode; written after its name."""


def check_encoded(data: bytes, size: int) -> None:
    """Refuse an image that would keep its decoder busy for long.

    Args:
        data: The file, or its beginning if only the header will be read.
        size: Bytes of the whole file.

    Raises:
        TooManyParts: With the reason.
    """
    if data.startswith(b"\xff\xd8"):
        _check_scans(data.count(_SCAN), MOST_PIXELS)
        _check_segments(data)
    elif data.startswith(b"\x89PNG"):
        _check_chunks(data)
    elif data.startswith(b"GIF8"):
        _check_blocks(data)
    elif data.startswith(b"BM"):
        if int.from_bytes(data[30:34], "little") in _RUN_LENGTHS and size > LARGEST_RUNS:
            raise TooManyParts(f"run lengths of more than {told_size(LARGEST_RUNS)}; save it as PNG")
    elif data.startswith((b"II", b"MM")):
        tags = check_tags(data, size)
        if tags.get(_COMPRESSION) in _AS_JPEG:
            width, height = tags.get(_WIDTH, 0), tags.get(_HEIGHT, 0)
            part = tags.get(_TILE_WIDTH, width) * tags.get(_TILE_HEIGHT, min(height, tags.get(_STRIP, height)))
            _check_scans(data.count(_SCAN), part)


def _check_scans(scans: int, pixels: int) -> None:
    if scans * pixels > MOST_SCANS * MOST_PIXELS:
        raise TooManyParts(f"{scans} scans, each over all pixels, more than {MOST_SCANS}; save it again")


def _count(parts: int) -> int:
    if parts >= MOST_PARTS:
        raise TooManyParts(f"more than {MOST_PARTS} parts before its pixels; save it again")
    return parts + 1


def _check_segments(data: bytes) -> None:
    position, parts = 2, 0
    while found := _FILL.match(data, position):
        parts = _count(parts + len(found[0]) - 1)
        marker = data[found.end()] if found.end() < len(data) else _PICTURE[0]
        if marker in _PICTURE:
            return
        position = found.end() + 1
        if marker not in _ALONE:
            position += max(2, int.from_bytes(data[position : position + 2], "big"))


def _check_chunks(data: bytes) -> None:
    position, parts = 8, 0
    while position + 8 <= len(data):
        parts = _count(parts)
        position += 12 + int.from_bytes(data[position : position + 4], "big")


def _check_blocks(data: bytes) -> None:
    if len(data) < 13:
        return
    position, parts = 13 + (3 << (data[10] & 7) + 1 if data[10] & 128 else 0), 0
    while position < len(data) and data[position] not in b",;":
        parts = _count(parts)
        if data[position] != ord("!"):
            position += 1
            continue
        position += 2
        while position < len(data) and data[position]:
            parts = _count(parts)
            position += 1 + data[position]
        position += 1


def check_tags(data: bytes, size: int) -> dict[int, int]:
    """Refuse a TIFF, or Exif metadata, whose tags together are larger than the file: they may share the same bytes.

    Args:
        data: The file, its beginning, or metadata in the same format, which begin with the byte order.
        size: Bytes of the whole.

    Returns:
        Integers by tag, for tags with a single number in the first list of tags.

    Raises:
        TooManyParts: If they are larger.
    """
    order = "little" if data.startswith(b"II") else "big"
    is_big = data[2:4] in (b"+\x00", b"\x00+")
    entry, pointer = (20, 8) if is_big else (12, 4)

    def number(start: int, length: int) -> int:
        return int.from_bytes(data[start : start + length], order)  # type: ignore[arg-type]

    begin = number(8, 8) if is_big else number(4, 4)
    position = begin + (8 if is_big else 2)
    held, numbers = 0, dict[int, int]()
    for _ in range(min(number(begin, position - begin), len(data) // entry)):
        tag, kind, count = number(position, 2), number(position + 2, 2), number(position + 4, pointer)
        length = count * _SIZES.get(kind, 0)
        held += length if length > pointer else 0
        if held > size:
            raise TooManyParts("its tags together are larger than the file; save it again")
        if count == 1 and kind in (3, 4):
            numbers.setdefault(tag, number(position + 4 + pointer, _SIZES[kind]))
        position += entry
    return numbers
