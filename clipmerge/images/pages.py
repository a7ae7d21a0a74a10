"""Check Parquet's footers and page headers before pyarrow reads them: how large would their content become?

A few kilobytes of Parquet can describe gigabytes: a footer of empty structures, a page of zeros. The footer states
sizes too, but pyarrow relies on those in the page headers, so these are checked.

Source:
    Apache Thrift's compact protocol, and parquet.thrift of the Parquet format.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import IO, Any

from clipmerge.files.limits import LARGEST_FOOTER, LARGEST_PAGE, MOST_FOOTER_PARTS, MOST_INFLATION
from clipmerge.files.reading import told_size

_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
_NUMBERS = (4, 5, 6)  # i16, i32, i64
_MAGIC = b"PAR1"
_DEEPEST = 64
# Bytes first read from the end; pyarrow asks for as many.
_USUAL_TAIL = 64 << 10
# Numbers of the second and third field of a page header.
_UNCOMPRESSED, _COMPRESSED = 2, 3


class Damaged(ValueError):
    """Why a file is not valid Parquet; the message follows the file's name."""


class _Compact:
    """Walks data written by Thrift and counts its parts; only numbers are kept."""

    def __init__(self, data: bytes | memoryview, position: int = 0, *, most: int = MOST_FOOTER_PARTS) -> None:
        self._data = data
        self.position = position
        self._left = most

    def struct(self, depth: int = 0) -> dict[int, int]:
        """Walk a structure and return its integers by field."""
        self._count()
        if depth > _DEEPEST:
            raise Damaged("it is nested too deeply")
        field, numbers = 0, dict[int, int]()
        while True:
            head = self._byte()
            if head == 0:
                return numbers
            kind, step = head & 15, head >> 4
            field = field + step if step else self._number()
            if kind in _NUMBERS:
                numbers[field] = self._number()
            elif kind not in (_TRUE, _FALSE):
                self._skip(kind, depth)

    def _skip(self, kind: int, depth: int) -> None:
        if kind in _NUMBERS:
            self._varint()
        elif kind == _STRUCT:
            self.struct(depth + 1)
        elif kind in (_LIST, _SET):
            self._items(depth)
        elif kind == _MAP:
            self._pairs(depth)
        elif kind == _BINARY:
            self._count()
            length = self._varint()
            self.position += length
        elif kind in (_TRUE, _FALSE, _BYTE, _DOUBLE):
            self.position += 8 if kind == _DOUBLE else 1
        else:
            raise Damaged("it holds a value of an unknown type")

    def _items(self, depth: int) -> None:
        head = self._byte()
        count = head >> 4 if head >> 4 < 15 else self._varint()
        for _ in range(count):
            self._count()
            self._skip(head & 15, depth)

    def _pairs(self, depth: int) -> None:
        count = self._varint()
        kinds = self._byte() if count else 0
        for _ in range(count):
            self._skip(kinds >> 4, depth)
            self._skip(kinds & 15, depth)

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Damaged(f"its footer has more than {MOST_FOOTER_PARTS} parts")

    def _byte(self) -> int:
        if not 0 <= self.position < len(self._data):
            raise Damaged("it ends in the middle of its footer or a page header")
        self.position += 1
        return self._data[self.position - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise Damaged("it holds a number of more than 64 bits")

    def _number(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)


def read_footer(file: IO[bytes], *, most_parts: int = MOST_FOOTER_PARTS) -> dict[int, bytes]:
    """Read a file's footer, and refuse one that would take far more memory than its size.

    Args:
        file: The Parquet file, open.
        most_parts: Most structures, numbers and texts in the footer.

    Returns:
        Position of its first byte, and its bytes up to the end of the file, for `Window`.

    Raises:
        Damaged: With the reason.
    """
    size = file.seek(0, io.SEEK_END)
    if size < 12:
        raise Damaged("it is too short")
    begin, tail = _tail(file, size, _USUAL_TAIL)
    length = int.from_bytes(tail[-8:-4], "little")
    if tail[-4:] != _MAGIC or length > size - 12:
        raise Damaged("it does not end as Parquet does")
    if length > LARGEST_FOOTER:
        raise Damaged(f"its footer is larger than {told_size(LARGEST_FOOTER)}")
    if length + 8 > len(tail):
        begin, tail = _tail(file, size, length + 8)
    _Compact(tail, len(tail) - 8 - length, most=most_parts).struct()
    return {begin: tail}


def _tail(file: IO[bytes], size: int, count: int) -> tuple[int, bytes]:
    begin = max(0, size - count)
    file.seek(begin)
    return begin, file.read(count)


def read_chunk(file: IO[bytes], chunk: Any) -> tuple[int, bytes]:
    """Read a column of a row group as stored, and check its pages.

    Args:
        file: The Parquet file, open.
        chunk: pyarrow's description of the column chunk.

    Returns:
        Position of its first byte, and its bytes.

    Raises:
        Damaged: If a page would become much larger than it is, or there is less than the footer says.
    """
    begin, length = chunk.data_page_offset, chunk.total_compressed_size
    if chunk.dictionary_page_offset is not None and 0 < chunk.dictionary_page_offset < begin:
        begin = chunk.dictionary_page_offset
    size = file.seek(0, io.SEEK_END)
    if not 0 <= begin <= begin + length <= size:
        raise Damaged("a column lies outside it")
    file.seek(begin)
    data = file.read(length)
    if len(data) < length:
        raise Damaged("it ends in the middle of a column")
    _check_pages(data)
    return begin, data


def _check_pages(data: bytes) -> None:
    position = 0
    while position < len(data):
        walk = _Compact(data, position)
        header = walk.struct()
        before, after = header.get(_COMPRESSED, -1), header.get(_UNCOMPRESSED, -1)
        if before < 0 or after < 0:
            raise Damaged("a page has no size")
        if after > max(LARGEST_PAGE, MOST_INFLATION * before):
            raise Damaged(f"a page of {before} bytes would become {after}")
        position = walk.position + before


class Window(io.RawIOBase):
    """A file of which some ranges are in memory; the rest is read from it."""

    def __init__(self, file: IO[bytes], ranges: Mapping[int, bytes]) -> None:
        """Serve ``ranges`` (bytes by the position of the first) without reading them again."""
        self._file, self._ranges = file, ranges
        self._size = file.seek(0, io.SEEK_END)
        self._position = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def read(self, count: int = -1, /) -> bytes:
        """Read from the position on."""
        count = self._size - self._position if count < 0 else count
        for begin, held in self._ranges.items():
            if begin <= self._position and self._position + count <= begin + len(held):
                start = self._position - begin
                self._position += count
                return held[start : start + count]
        self._file.seek(self._position)
        content = self._file.read(count)
        self._position += len(content)
        return content
