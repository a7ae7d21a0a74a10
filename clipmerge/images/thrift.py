"""Thrift's compact protocol, as far as Parquet describes itself in it: numbers, structures and lists of structures.

pyarrow reads the same bytes, but a contradiction in a column's description makes it end the whole process. Values are
taken as the code that Thrift generates takes them: fields are numbers of 16 bits, a field of another type than expected
is skipped, and the elements of a list are of the type expected, whatever the list says. Otherwise a file could show one
thing here and another to pyarrow.

Source:
    Apache Thrift's compact protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipmerge.files.limits import MOST_FOOTER_PARTS

_TRUE, _FALSE, _BYTE, _DOUBLE, BINARY, _LIST, _SET, _MAP, STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
I32, I64 = 5, 6
_NUMBERS = (4, I32, I64)
_DEEPEST = 64
# Values by field and type.
Fields = dict[tuple[int, int], Any]
# Type of the elements of a list, and what structures in it hold, by field.
Shape = Mapping[int, tuple[int, "Shape"]]


class Damaged(ValueError):
    """Why a file is not valid Parquet; the message follows the file's name."""


class Compact:
    """Walks data written by Thrift and counts its parts; texts are not kept."""

    def __init__(self, data: bytes | memoryview, position: int = 0, *, most: int = MOST_FOOTER_PARTS) -> None:
        self._data = data
        self.position = position
        self._left = most

    def struct(self, shape: Shape | None = None, depth: int = 0) -> Fields:
        """Walk a structure.

        Args:
            shape: The lists that it is expected to hold; others may be of anything.
            depth: Structures and lists around it.

        Returns:
            Its integers, structures and lists, by field and type.

        Raises:
            Damaged: If it is not valid, or a list holds something else.
        """
        self._count()
        if depth > _DEEPEST:
            raise Damaged("it is nested too deeply")
        field, values = 0, Fields()
        while True:
            head = self._byte()
            if head == 0:
                return values
            kind, step = head & 15, head >> 4
            field = field + step if step else self._number()
            field = (field + (1 << 15)) % (1 << 16) - (1 << 15)
            if kind not in (_TRUE, _FALSE):
                values[field, kind] = self._value(kind, depth, (shape or {}).get(field))

    def _value(self, kind: int, depth: int, expected: tuple[int, Shape] | None = None) -> Any:
        if kind in _NUMBERS:
            return self._number()
        if kind == STRUCT:
            return self.struct(expected and expected[1], depth + 1)
        if kind in (_LIST, _SET):
            return self._items(depth, expected if kind == _LIST else None)
        self._skip(kind, depth)
        return None

    def _skip(self, kind: int, depth: int) -> None:
        if kind == _MAP:
            self._pairs(depth)
        elif kind == BINARY:
            self._count()
            length = self._varint()
            self.position += length
        elif kind in (_TRUE, _FALSE, _BYTE, _DOUBLE):
            self.position += 8 if kind == _DOUBLE else 1
        else:
            raise Damaged("it holds a value of an unknown type")

    def _items(self, depth: int, expected: tuple[int, Shape] | None) -> list[Any]:
        head = self._byte()
        count = head >> 4 if head >> 4 < 15 else self._varint()
        if count and expected and head & 15 != expected[0]:
            raise Damaged("a list in its footer holds something else than it should")
        values = []
        for _ in range(count):
            self._count()
            values.append(self._value(head & 15, depth, expected))
        return values

    def _pairs(self, depth: int) -> None:
        count = self._varint()
        kinds = self._byte() if count else 0
        for _ in range(count):
            self._count()
            self._value(kinds >> 4, depth)
            self._value(kinds & 15, depth)

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Damaged(f"it describes itself in more than {MOST_FOOTER_PARTS} parts")

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


def number(values: Fields, field: int, kind: int) -> int:
    """Return an integer that a structure must have.

    Args:
        values: The structure.
        field: The field.
        kind: `I32` or `I64`.

    Raises:
        Damaged: If it has none, or it is too large.
    """
    value = values.get((field, kind))
    if not isinstance(value, int):
        raise Damaged("a number is missing from its footer")
    if not -(1 << 31) <= value < 1 << (31 if kind == I32 else 63):
        raise Damaged("it holds a number that is too large")
    return value


def structs(values: Fields, field: int) -> list[Fields]:
    """Return a list of structures; an absent one is empty.

    Raises:
        Damaged: If it is something else.
    """
    found = values.get((field, _LIST), [])
    if not all(isinstance(value, dict) for value in found):
        raise Damaged("a list is missing from its footer")
    return list(found)
