"""Thrift's compact protocol, as far as Parquet describes itself in it: numbers, structures and lists of structures.

pyarrow reads the same bytes, but a contradiction in a column's description makes it end the whole process.

Source:
    Apache Thrift's compact protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipmerge.files.limits import MOST_FOOTER_PARTS

_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
_NUMBERS = (4, 5, 6)  # i16, i32, i64
_DEEPEST = 64


class Damaged(ValueError):
    """Why a file is not valid Parquet; the message follows the file's name."""


class Compact:
    """Walks data written by Thrift and counts its parts; texts are not kept."""

    def __init__(self, data: bytes | memoryview, position: int = 0, *, most: int = MOST_FOOTER_PARTS) -> None:
        self._data = data
        self.position = position
        self._left = most

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Walk a structure and return its integers, structures and lists, by field."""
        self._count()
        if depth > _DEEPEST:
            raise Damaged("it is nested too deeply")
        field, values = 0, dict[int, Any]()
        while True:
            head = self._byte()
            if head == 0:
                return values
            kind, step = head & 15, head >> 4
            field = field + step if step else self._number()
            if kind not in (_TRUE, _FALSE):
                values[field] = self._value(kind, depth)

    def _value(self, kind: int, depth: int) -> Any:
        if kind in _NUMBERS:
            return self._number()
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_LIST, _SET):
            return self._items(depth)
        self._skip(kind, depth)
        return None

    def _skip(self, kind: int, depth: int) -> None:
        if kind == _MAP:
            self._pairs(depth)
        elif kind == _BINARY:
            self._count()
            length = self._varint()
            self.position += length
        elif kind in (_TRUE, _FALSE, _BYTE, _DOUBLE):
            self.position += 8 if kind == _DOUBLE else 1
        else:
            raise Damaged("it holds a value of an unknown type")

    def _items(self, depth: int) -> list[Any]:
        head = self._byte()
        count = head >> 4 if head >> 4 < 15 else self._varint()
        values = []
        for _ in range(count):
            self._count()
            values.append(self._value(head & 15, depth))
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


def number(values: Mapping[int, Any], field: int) -> int:
    """Return an integer that a structure must have.

    Raises:
        Damaged: If it has none.
    """
    value = values.get(field)
    if not isinstance(value, int):
        raise Damaged("a number is missing from its footer")
    return value


def structs(values: Mapping[int, Any], field: int) -> list[dict[int, Any]]:
    """Return a list of structures; an absent one is empty.

    Raises:
        Damaged: If it is something else.
    """
    found = values.get(field, [])
    if not isinstance(found, list) or not all(isinstance(value, dict) for value in found):
        raise Damaged("a list is missing from its footer")
    return found
