"""Check Parquet's footers and page headers before pyarrow reads them: how large would their content become?

A few kilobytes of Parquet can describe gigabytes: a footer of empty structures, a page of zeros. The footer states
sizes too, but pyarrow relies on those in the page headers, so these are checked. The places of row groups and columns
are read here as well: pyarrow ends the process when it is asked for a column whose description contradicts itself.

Source:
    parquet.thrift of the Parquet format.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

from clipmerge.files.limits import LARGEST_FOOTER, LARGEST_PAGE, MOST_FOOTER_PARTS, MOST_INFLATION
from clipmerge.files.reading import told_size
from clipmerge.images.thrift import Compact, Damaged, number, structs

_MAGIC = b"PAR1"
# Bytes first read from the end; pyarrow asks for as many.
_USUAL_TAIL = 64 << 10
# Field numbers: of a page header, of the whole file, of a row group, of a column and of its metadata.
_UNCOMPRESSED, _COMPRESSED = 2, 3
_ROW_GROUPS = 4
_COLUMNS, _ROWS = 1, 3
_METADATA = 3
_LENGTH, _DATA_PAGE, _DICTIONARY_PAGE = 7, 9, 11


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
        most_parts: Most structures, numbers and texts in the footer.

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
    described = Compact(tail, len(tail) - 8 - length, most=most_parts).struct()
    return Footer(begin, tail, tuple(map(_row_group, structs(described, _ROW_GROUPS))))


def _row_group(described: Mapping[int, Any]) -> RowGroup:
    columns = tuple(_chunk(column.get(_METADATA)) for column in structs(described, _COLUMNS))
    return RowGroup(number(described, _ROWS), columns)


def _chunk(described: Any) -> Chunk:
    if not isinstance(described, dict):
        raise Damaged("a column is not described in it")
    begin = number(described, _DATA_PAGE)
    before = described.get(_DICTIONARY_PAGE)
    if isinstance(before, int) and 0 < before < begin:
        begin = before
    return Chunk(begin, number(described, _LENGTH))


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
        Damaged: If a page would become much larger than it is, or there is less than the footer says.
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
        before, after = number(header, _COMPRESSED), number(header, _UNCOMPRESSED)
        if before < 0 or after < 0:
            raise Damaged("a page has no size")
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
