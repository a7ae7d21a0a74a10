"""What every kind of source gives: encoded images by position, and what each is labelled with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict


class Encoded(TypedDict):
    """An image as its file holds it: the bytes, or where they are."""

    bytes: bytes | None
    path: str | None


class Store(Protocol):
    """Encoded images, read when asked for."""

    @property
    def blocks(self) -> tuple[int, ...]:
        """The block that each image lies in, of which one is read at once; empty where images are read singly."""

    def read(self, positions: Sequence[int]) -> list[Encoded]:
        """Read images, each block at most once, in the order asked for."""

    def name(self, position: int) -> str:
        """What to call an image in a message."""


@dataclass(frozen=True)
class Labelled:
    """A source, opened: no image has been read.

    Attributes:
        store: The images.
        labels: Class index of each image.
        classes: What each class is called there; numbers as text where ``named`` is false.
        named: Whether classes have names, or are bare numbers.
        revision: Commit of a source on the Hub.
        notes: What the user should know.
    """

    store: Store
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    named: bool = True
    revision: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Files:
    """Images that are files."""

    paths: tuple[str, ...]
    blocks: tuple[int, ...] = ()

    def read(self, positions: Sequence[int]) -> list[Encoded]:
        """Say where the files are: they are read when they are decoded."""
        return [{"bytes": None, "path": self.paths[position]} for position in positions]

    def name(self, position: int) -> str:
        """The file."""
        return self.paths[position]


@dataclass(frozen=True)
class Held:
    """Images in memory."""

    images: tuple[Encoded, ...]
    names: tuple[str, ...]
    blocks: tuple[int, ...] = ()

    def read(self, positions: Sequence[int]) -> list[Encoded]:
        """Hand them out."""
        return [self.images[position] for position in positions]

    def name(self, position: int) -> str:
        """What it was called where it came from."""
        return self.names[position]
