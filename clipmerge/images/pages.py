"""Check Parquet's footers and page headers before pyarrow reads them: how large would their content become?

A few kilobytes of Parquet can describe gigabytes: a footer of empty structures, a page of zeros. The footer states
sizes too, but pyarrow relies on those in the page headers, so these are checked. The positions of row groups and
columns are read here as well: pyarrow ends the process when it reads a column whose description contradicts itself.

Source:
    parquet.thrift of the Parquet format.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO

from clipmerge.files.limits import LARGEST_FOOTER, LARGEST_PAGE, MOST_FOOTER_PARTS, MOST_INFLATION
from clipmerge.files.reading import told_size
from clipmerge.images.thrift import BINARY, I32, I64, STRUCT, Compact, Damaged, Fields, Shape, number, structs

_MAGIC = b"PAR1"
# Bytes first read from the end; pyarrow reads as many.
_USUAL_TAIL = 64 << 10
# Field numbers: of a page header, of the whole file, of a row group, of a column and of its metadata.
_UNCOMPRESSED, _COMPRESSED = 2, 3
_ROW_GROUPS = 4
_COLUMNS, _ROWS = 1, 3
_METADATA = 3
_LENGTH, _DATA_PAGE, _DICTIONARY_PAGE = 7, 9, 11
# Lists in a footer: in a column's metadata, a column, a row group and the whole.
_IN_METADATA: Shape = {
    2: (I32, {}),
    3: (BINARY, {}),
    8: (STRUCT, {}),
    13: (STRUCT, {}),
    16: (STRUCT, {2: (I64, {}), 3: (I64, {})}),
    17: (STRUCT, {2: (I32, {})}),
}
_IN_COLUMN: Shape = {_METADATA: (STRUCT, _IN_METADATA), 8: (STRUCT, {2: (STRUCT, {1: (BINARY, {})})})}
_IN_GROUP: Shape = {_COLUMNS: (STRUCT, _IN_COLUMN), 4: (STRUCT, {})}
_IN_FOOTER: Shape = {2: (STRUCT, {}), _ROW_GROUPS: (STRUCT, _IN_GROUP), 5: (STRUCT, {}), 7: (STRUCT, {})}


@dataclass(frozen=True)
class Chunk:
    """One column of a row group: position of its first byte, and number of bytes."""

    begin: int
    length: int


@dataclass(frozen=True)
class RowGroup:
    """A row group: its number of rows, and its columns in order."""

    rows: int
    columns: tuple[Chunk, ...]


@dataclass(frozen=True)
class Footer:
    """A file's footer: position of its first byte, its bytes up to the end of the file, and its row groups."""

    begin: int
    tail: bytes
    groups: tuple[RowGroup, ...]


def read_footer(file: IO[bytes], *, most_parts: int = MOST_FOOTER_PARTS) -> Footer:
    """Read a file's footer, and refuse one that would take far more memory than its size.

    Args:
        file: The Parquet file, open.
        most_parts: Maximum number of structures, numbers and texts in the footer.

    Returns:
        The footer.

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
    described = Compact(tail, len(tail) - 8 - length, most=most_parts).struct(_IN_FOOTER)
    return Footer(begin, tail, tuple(map(_row_group, structs(described, _ROW_GROUPS))))


def _row_group(described: Fields) -> RowGroup:
    columns = tuple(_chunk(column.get((_METADATA, STRUCT))) for column in structs(described, _COLUMNS))
    return RowGroup(number(described, _ROWS, I64), columns)


def _chunk(described: Fields | None) -> Chunk:
    if described is None:
        raise Damaged("a column is not described in it")
    begin = number(described, _DATA_PAGE, I64)
    before = described.get((_DICTIONARY_PAGE, I64), 0)
    return Chunk(before if 0 < before < begin else begin, number(described, _LENGTH, I64))


def _tail(file: IO[bytes], size: int, count: int) -> tuple[int, bytes]:
    begin = max(0, size - count)
    file.seek(begin)
    return begin, file.read(count)


def read_chunk(file: IO[bytes], chunk: Chunk) -> tuple[int, bytes]:
    """Read a column of a row group as stored, and check its pages.

    Args:
        file: The Parquet file, open.
        chunk: Its place in the file.

    Returns:
        Position of its first byte, and its bytes.

    Raises:
        Damaged: If a page would become much larger than it is, or the column is shorter than the footer says.
    """
    begin, length = chunk.begin, chunk.length
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
    walk = Compact(data)
    while walk.position < len(data):
        header = walk.struct()
        before, after = number(header, _COMPRESSED, I32), number(header, _UNCOMPRESSED, I32)
        if not 0 <= before <= len(data) - walk.position or after < 0:
            raise Damaged("a page has no size, or ends outside its column")
        if after > max(LARGEST_PAGE, MOST_INFLATION * before):
            raise Damaged(f"a page of {before} bytes would become {after}")
        walk.position += before


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
