"""Damaged footers and pages of Parquet, byte by byte, and a file of which some ranges are in memory."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipmerge.errors import DataError
from clipmerge.images import pages
from clipmerge.images.dataset import load_images
from clipmerge.images.pages import Chunk, Window, read_chunk, read_footer
from clipmerge.images.thrift import I32, Compact, Damaged, number
from tests.support.image_files import png, save_plain_parquet

# Thrift's compact form: a field's head is (difference of its id << 4) | type; 5 = i32, 9 = list, 12 = structure
STOP = b"\x00"


def varint(number: int) -> bytes:
    zigzag = number << 1 if number >= 0 else (-number << 1) - 1
    out = b""
    while zigzag > 127:
        out, zigzag = out + bytes([zigzag & 127 | 128]), zigzag >> 7
    return out + bytes([zigzag])


def parquet(footer: bytes) -> io.BytesIO:
    return io.BytesIO(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")


def page(compressed: int, uncompressed: int) -> bytes:
    """A page's header: its kind, size as it was, and size as stored (fields 1, 2 and 3)."""
    return b"".join(b"\x15" + varint(number) for number in (0, uncompressed, compressed)) + STOP


@pytest.mark.parametrize(
    ("footer", "told"),
    [
        # field 4: a list of one structure without fields, so without its number of rows
        (b"\x49\x1c" + STOP + STOP, "a number is missing"),
        # field 4: a list of one number, not of row groups
        (b"\x49\x15\x02" + STOP, "a list in its footer does not hold what it should"),
        # a row group (field 1: list of one structure), whose column has no metadata
        (b"\x49\x1c" + b"\x19\x1c" + STOP + b"\x26\x00" + STOP + STOP, "a column is not described"),
        (b"\x15" + b"\xff" * 11, "more than 64 bits"),
        (b"\x18\x7f", "ends in the middle"),  # a text of 127 bytes, of which there are none
    ],
)
def test_a_damaged_footer_is_refused_with_its_fault(footer: bytes, told: str) -> None:
    with pytest.raises(Damaged, match=told):
        read_footer(parquet(footer))


def test_a_footer_that_is_too_large_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "LARGEST_FOOTER", 1024)
    with pytest.raises(Damaged, match="its footer is larger than 1 KiB"):
        read_footer(parquet(STOP * 1025))
    assert read_footer(parquet(STOP * 1024)).groups == ()


@pytest.mark.parametrize("chunk", [Chunk(-1, 2), Chunk(0, 101), Chunk(99, 2), Chunk(5, -1)])
def test_a_column_outside_the_file_is_refused(chunk: Chunk) -> None:
    with pytest.raises(Damaged, match="a column lies outside it"):
        read_chunk(io.BytesIO(bytes(100)), chunk)


def test_a_file_that_became_shorter_while_it_is_read_is_refused() -> None:
    class Shrinking(io.BytesIO):
        def read(self, count: int | None = -1, /) -> bytes:
            return super().read(count)[:-1]

    with pytest.raises(Damaged, match="it ends in the middle of a column"):
        read_chunk(Shrinking(bytes(100)), Chunk(0, 50))


@pytest.mark.parametrize("sizes", [(-1, 4), (4, -1)])
def test_a_page_of_negative_size_is_refused(sizes: tuple[int, int]) -> None:
    data = page(*sizes)
    with pytest.raises(Damaged, match="a page has no size"):
        read_chunk(io.BytesIO(data), Chunk(0, len(data)))


def test_a_whole_page_is_read_as_it_is() -> None:
    data = page(3, 3) + b"abc"
    assert read_chunk(io.BytesIO(b"xx" + data), Chunk(2, len(data))) == (2, data)


def test_a_map_without_pairs_has_no_kinds() -> None:
    values = Compact(b"\x1b\x00" + b"\x15" + varint(7) + STOP).struct()
    assert number(values, 2, I32) == 7


def test_a_window_reads_held_ranges_from_memory_and_the_rest_from_the_file() -> None:
    file = io.BytesIO(b"0123456789")
    window = Window(file, {2: b"CDE", 7: b"HI"})
    assert window.seekable()
    assert window.read(2) == b"01"
    assert (window.read(3), window.tell()) == (b"CDE", 5)
    assert window.seek(-3, io.SEEK_END) == 7
    assert window.read(2) == b"HI"
    window.seek(1)
    assert window.read(3) == b"123"  # held only in part
    window.seek(8)
    assert window.read() == b"89"


def test_row_groups_with_different_columns_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pyarrow reads them, and would take another column for the images."""
    file = save_plain_parquet(tmp_path / "x.parquet", {"image": [png(0), png(1)], "label": ["a", "b"]})

    def damaged(content: Any) -> Any:
        footer = read_footer(content)
        groups = tuple(replace(group, columns=group.columns[:-1]) for group in footer.groups)
        return replace(footer, groups=groups)

    assert len(load_images(str(file))) == 2
    monkeypatch.setattr("clipmerge.images.parquet.read_footer", damaged)
    with pytest.raises(DataError, match=r"x\.parquet: .*its row groups differ in their number of columns"):
        load_images(str(file))
