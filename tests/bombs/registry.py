"""Bombs by name: files that are made to do harm, and the readers that they are meant for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True)
class Bomb:
    """A file that is made to do harm.

    Attributes:
        reader: Target of the fuzzing that reads it.
        name: What the file is called.
        make: Writes it to a path.
    """

    reader: str
    name: str
    make: Callable[[Path], object]


#: By the name of the function, with spaces.
BOMBS: dict[str, Bomb] = {}


def bomb(reader: str, name: str) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    def registered(make: Callable[[Path], object]) -> Callable[[Path], object]:
        BOMBS[make.__name__.replace("_", " ")] = Bomb(reader, name, make)
        return make

    return registered
