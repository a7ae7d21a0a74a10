"""Headers in Parquet are read as Thrift's own code reads them, which pyarrow uses: no second meaning is left to it."""

from __future__ import annotations

import io

import pytest

from clipmerge.images.pages import Chunk, read_chunk
from clipmerge.images.thrift import I32, I64, STRUCT, Compact, Damaged, number

SMALL, LARGE = 10, 1 << 30


def varint(value: int) -> bytes:
    coded = bytearray()
    while value > 127:
        coded.append(value & 127 | 128)
        value >>= 7
    return bytes([*coded, value])


def field(name: int, kind: int, value: int) -> bytes:
    """A number, with the field's own number written out."""
    return bytes([kind]) + varint(2 * name) + varint(2 * value)


def page(*fields: bytes) -> bytes:
    return b"".join(fields) + b"\0" + bytes(SMALL)


TYPE, COMPRESSED = field(1, I32, 0), field(3, I32, SMALL)


@pytest.mark.parametrize(
    "data",
    [
        page(TYPE, field(2, I32, LARGE), COMPRESSED),
        page(TYPE, field(2, I32, LARGE), COMPRESSED, field(2, I64, SMALL)),  # of another type: skipped
        page(TYPE, field(2, I32, SMALL), COMPRESSED, field(65538, I32, LARGE)),  # 2, in 16 bits
    ],
)
def test_the_size_that_pyarrow_takes_is_the_one_that_is_checked(data: bytes) -> None:
    with pytest.raises(Damaged, match=f"a page of {SMALL} bytes would become {LARGE}"):
        read_chunk(io.BytesIO(data), Chunk(0, len(data)))


@pytest.mark.parametrize("size", [SMALL + 1, (1 << 32) + SMALL, -1])
def test_a_page_does_not_end_outside_its_column(size: int) -> None:
    """In 32 bits, the second is as large as the page; what follows it would not be looked at."""
    coded = field(3, I32, size) if size >= 0 else bytes([I32]) + varint(6) + varint(1)
    data = page(TYPE, field(2, I32, SMALL), coded)
    with pytest.raises(Damaged, match=r"ends outside its column|a number that is too large"):
        read_chunk(io.BytesIO(data), Chunk(0, len(data)))


def test_the_elements_of_a_list_are_of_the_type_expected() -> None:
    """Thrift's code reads what it expects, whatever the list says, and both would go on in different places."""
    listed = bytes([0x19, 0x10 | I32]) + varint(2 * 3) + b"\0"
    assert Compact(listed).struct() == {(1, 9): [3]}
    with pytest.raises(Damaged, match="a list in its footer does not hold what it should"):
        Compact(listed).struct({1: (STRUCT, {})})


def test_a_number_of_another_type_is_missing() -> None:
    values = Compact(field(2, I64, 5) + b"\0").struct()
    assert number(values, 2, I64) == 5
    with pytest.raises(Damaged, match="a number is missing"):
        number(values, 2, I32)
