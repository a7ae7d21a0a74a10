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
        slow: Takes a second or more to write and read: `python -m tests.bombs` has it, the tests have not.
    """

    reader: str
    name: str
    make: Callable[[Path], object]
    slow: bool


#: By the name of the function, with spaces.
BOMBS: dict[str, Bomb] = {}


def bomb(
    reader: str, name: str, *, slow: bool = False
) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    def registered(make: Callable[[Path], object]) -> Callable[[Path], object]:
        BOMBS[make.__name__.replace("_", " ")] = Bomb(reader, name, make, slow)
        return make

    return registered
