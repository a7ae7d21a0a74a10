"""Stores: encoded images by position, read on demand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from clipmerge.errors import DataError
from clipmerge.files.limits import MAX_IMAGES
from clipmerge.images.decoding import Encoded, decode
from clipmerge.types import Names, Shape

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class Store(ABC):
    """Encoded images, read on demand."""

    # block of each image; a block is read as a whole. Empty if images are read one by one
    blocks: Shape = ()
    paths: Names = ()  # file of each image; empty if images are not files

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def read(self, positions: Sequence[int]) -> list[Encoded]:
        """Read images, each block at most once, in the order of the positions."""

    @abstractmethod
    def name(self, position: int) -> str:
        """The name of an image in messages."""

    def image(self, position: int) -> Image:
        """Decode one image, as RGB; see `decode`."""
        (encoded,) = self.read([position])
        return decode(self.name(position), encoded)

    def take(self, positions: Sequence[int]) -> Store:
        """Some of the images, in the order of the positions; they are read into memory if they are
        not files.
        """
        paths = tuple(self.paths[position] for position in positions) if self.paths else ()
        return ImageList(tuple(self.read(positions)), tuple(map(self.name, positions)), paths)


@dataclass(frozen=True)
class ImageList(Store):
    """Images one by one, with their names at their source: in memory, or in files if all have
    ``paths``.
    """

    images: tuple[Encoded, ...]
    names: Names
    paths: Names = ()

    def __len__(self) -> int:
        return len(self.images)

    def read(self, positions: Sequence[int]) -> list[Encoded]:
        """Return images."""
        return [self.images[position] for position in positions]

    def name(self, position: int) -> str:
        """Its name at its source."""
        return self.names[position]


def image_files(paths: Iterable[str]) -> ImageList:
    """Images stored one per file, which is read when it is decoded."""
    files = tuple(paths)
    return ImageList(files, files, files)


@dataclass(frozen=True)
class SomeImages(Store):
    """Some of a store's images, still read on demand."""

    store: Store
    positions: Shape

    def __post_init__(self) -> None:
        for name in ("blocks", "paths"):
            values = getattr(self.store, name)
            object.__setattr__(self, name, tuple(values[at] for at in self.positions if values))

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, positions: Sequence[int]) -> list[Encoded]:
        """Read images."""
        return self.store.read([self.positions[at] for at in positions])

    def name(self, position: int) -> str:
        """Its name at its source."""
        return self.store.name(self.positions[position])


@dataclass(frozen=True)
class Items(Store):
    """Items of a data set in memory, made into encoded images when they are read."""

    get: Callable[[int], Any]  # function that returns an item
    items: Shape  # item of each image
    source: str

    def __len__(self) -> int:
        return len(self.items)

    def read(self, positions: Sequence[int]) -> list[Encoded]:
        """Read images."""
        return [self.get(self.items[position]) for position in positions]

    def name(self, position: int) -> str:
        """Source and item."""
        return f"{self.source}, image {self.items[position]}"


class Pixels(Items):
    """Images that are already preprocessed, with shape (3, height, width): they are not decoded,
    and the model's own preprocessing is skipped.
    """

    def read(self, positions: Sequence[int]) -> list[Encoded]:
        """Refuse: there are no encoded images."""
        raise DataError(
            f"{self.name(positions[0])}: holds preprocessed pixels, and images are needed here;"
            " give the data set without its transform"
        )

    def take(self, positions: Sequence[int]) -> Pixels:
        """Some of the images; their pixels are read when they are needed."""
        return replace(self, items=tuple(self.items[position] for position in positions))

    def batch(self, positions: Sequence[int]) -> Tensor:
        """Stack pixels: (images, 3, height, width), float32."""
        import torch

        stacked = [torch.as_tensor(self.get(self.items[at])).float() for at in positions]
        for position, pixels in zip(positions, stacked, strict=True):
            if pixels.ndim != 3 or pixels.shape[0] != 3 or pixels.shape != stacked[0].shape:
                raise DataError(
                    f"{self.name(position)}: its pixels have the shape {tuple(pixels.shape)};"
                    " expected (3, height, width), the same for every image"
                )
        return torch.stack(stacked)


def check_count(source: str, count: int) -> None:
    """Refuse more images than any source has."""
    if count > MAX_IMAGES:
        raise DataError(f"{source}: has more than {MAX_IMAGES} images; give some of them")
