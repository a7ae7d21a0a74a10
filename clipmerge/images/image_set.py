"""Images of one source, each with its class or its captions, and samples of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from clipmerge.errors import DataError
from clipmerge.images.decoding import decode
from clipmerge.images.sampling import balanced_sample
from clipmerge.images.source import Pictures
from clipmerge.types import Names, Shape

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ImageSource:
    """Images of one source with a label each; decoded one by one, on demand."""

    # whether an image that shares its label with no other shows what no other image shows
    labels_are_classes: ClassVar[bool] = True

    source: str
    pictures: Pictures
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
        return decode(self.pictures.name_of(index), self.pictures[index])

    def sample(self, count: int, seed: int) -> Self:
        """Sample images with labels as balanced as possible, shuffled."""
        return self.subset(balanced_sample(self.labels, count, seed))

    def subset(self, positions: list[int]) -> Self:
        """Pick images, in the order of the positions."""
        labels = tuple(self.labels[at] for at in positions)
        return replace(self, pictures=self.pictures.take(positions), labels=labels)


@dataclass(frozen=True)
class LabelledImages(ImageSource):
    """Images with their classes."""

    class_names: Names  # name of each class, as it goes into the prompts
    templates: Names = ()  # the source's own prompt templates; empty if it has none
    # for each class its rows in a head of ImageNet's 1000 classes; empty if they are not known
    imagenet_rows: tuple[Shape, ...] = ()

    def require_classes(self) -> None:
        """Refuse images of a single class, which every model would recognise."""
        if len(self.class_names) < 2:
            raise DataError(f"{self.source}: has one class; measuring needs at least two")


@dataclass(frozen=True)
class CaptionedImages(ImageSource):
    """Images with their captions."""

    labels_are_classes: ClassVar[bool] = False

    captions: tuple[Names, ...]  # captions of each image, at least one

    @property
    def caption_count(self) -> int:
        """Number of captions of all images."""
        return sum(map(len, self.captions))

    def require_classes(self) -> None:
        """Refuse images with one caption, which every model would find."""
        if len(set(self.captions)) < 2:
            raise DataError(
                f"{self.source}: all images have the same captions, so every model finds them;"
                " give images that differ in them"
            )

    def with_one_caption(self, seed: int, known: Names = ()) -> LabelledImages:
        """Draw a caption of each image; images of one class have the same caption.

        The captions are the names of the classes, for prompts that add nothing to them, after those
        that are known.
        """
        rng = np.random.default_rng(seed)
        drawn = [texts[int(rng.integers(len(texts)))] for texts in self.captions]
        labels, names = number_texts(drawn, known)
        return LabelledImages(
            self.source,
            self.pictures,
            labels,
            names,
            templates=("{}",),
            revision=self.revision,
            notes=self.notes,
        )

    def sample(self, count: int, seed: int) -> Self:
        """Sample images, with all their captions, in a random order."""
        drawn = np.random.default_rng(seed).permutation(len(self))[:count]
        return self.subset([int(position) for position in drawn])

    def subset(self, positions: list[int]) -> Self:
        """Pick images with all their captions, in the order of the positions."""
        captions = tuple(self.captions[at] for at in positions)
        return replace(super().subset(positions), captions=captions)


def number_texts(texts: Iterable[str], known: Iterable[str] = ()) -> tuple[Shape, Names]:
    """Number texts by their first appearance, equal ones alike, after those that are known: the
    number of each, and all texts.

    Example:
        >>> number_texts(["a", "b", "a"], known=["c"])
        ((1, 2, 1), ('c', 'a', 'b'))
    """
    numbers = {text: number for number, text in enumerate(known)}
    labels = tuple(numbers.setdefault(text, len(numbers)) for text in texts)
    return labels, tuple(numbers)
