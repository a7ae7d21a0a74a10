"""Sets of images: encoded images by position, and the label of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from clipmerge.errors import DataError
from clipmerge.files.limits import MAX_IMAGES
from clipmerge.images.decoding import Encoded, decode
from clipmerge.images.sampling import balanced_sample, candidate_positions
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
        return ImageList(
            tuple(self.read(positions)), tuple(self.name(position) for position in positions), paths
        )


@dataclass(frozen=True)
class OpenedSource:
    """A source, opened: no image has been read."""

    store: Store
    labels: Shape
    # name of each class in the source; numbers as text if ``named`` is false
    classes: Names
    named: bool = True  # whether classes have names, or are bare numbers
    revision: str | None = None
    notes: Names = ()
    templates: Names = ()  # the source's own prompt templates, with ``{}`` for the class
    # whether the names are written as they go into prompts, underscores and all
    verbatim: bool = False
    # captions of each image, which then has no label; empty if images have classes
    captions: tuple[Names, ...] = ()

    @classmethod
    def with_captions(
        cls,
        store: Store,
        captions: tuple[Names, ...],
        *,
        notes: Names = (),
    ) -> OpenedSource:
        """A source of images with captions."""
        return cls(store, (), (), captions=captions, notes=notes)


@dataclass(frozen=True)
class ImageSet:
    """Images of one source with a label each; decoded one by one, on demand."""

    # whether an image that shares its label with no other shows what no other image shows
    labels_are_classes: ClassVar[bool] = True

    source: str
    store: Store
    # class index of each image; for captions, the number of its first caption among all different
    # ones
    labels: Shape
    # commit of a dataset on the Hub, else ``None``
    revision: str | None = field(default=None, kw_only=True)
    notes: Names = field(default=(), kw_only=True)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image:
        """Decode one image, as RGB."""
        return self.store.image(index)

    def sample(self, count: int, seed: int) -> Self:
        """Sample images with labels as balanced as possible, shuffled, and read as few blocks as
        possible.
        """
        candidates = candidate_positions(self.labels, self.store.blocks, count, seed)
        chosen = balanced_sample(tuple(self.labels[at] for at in candidates), count, seed)
        return self.subset([candidates[at] for at in chosen])

    def subset(self, positions: list[int]) -> Self:
        """Pick images, in the order of the positions; they are in memory if they are not files."""
        return replace(
            self,
            store=self.store.take(positions),
            labels=tuple(self.labels[at] for at in positions),
        )


@dataclass(frozen=True)
class ImageList(Store):
    """Images one by one, with their names at their source: in memory, or in files if all have
    ``paths``.
    """

    images: tuple[Encoded, ...]
    names: Names
    paths: Names = ()

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
class Pixels(Store):
    """Images that are already preprocessed: they are not decoded, and the model's own preprocessing
    is skipped.
    """

    get: Callable[
        [int], Any
    ]  # function that returns the pixels of an item, shape (3, height, width)
    items: Shape  # item of each image
    source: str

    def read(self, positions: Sequence[int]) -> list[Encoded]:
        """Refuse: there are no encoded images."""
        raise DataError(
            f"{self.name(positions[0])}: holds preprocessed pixels, and images are needed here;"
            " give the data set without its transform"
        )

    def name(self, position: int) -> str:
        """Source and item."""
        return f"{self.source}, image {self.items[position]}"

    def take(self, positions: Sequence[int]) -> Pixels:
        """Some of the images; their pixels are read when they are needed."""
        return replace(self, items=tuple(self.items[position] for position in positions))

    def batch(self, positions: Sequence[int]) -> Tensor:
        """Stack pixels: (images, 3, height, width), float32."""
        import torch

        stacked: list[Tensor] = []
        for position in positions:
            pixels = torch.as_tensor(self.get(self.items[position])).float()
            if (
                pixels.ndim != 3
                or pixels.shape[0] != 3
                or (stacked and pixels.shape != stacked[0].shape)
            ):
                raise DataError(
                    f"{self.name(position)}: its pixels have the shape {tuple(pixels.shape)};"
                    " expected (3, height, width), the same for every image"
                )
            stacked.append(pixels)
        return torch.stack(stacked)


def check_count(source: str, count: int) -> None:
    """Refuse more images than any source has."""
    if count > MAX_IMAGES:
        raise DataError(f"{source}: has more than {MAX_IMAGES} images; give some of them")
