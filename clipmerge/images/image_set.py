"""Images of one source with their classes or captions, and samples of them.

The reader of each format returns an `OpenedSource`, with labels or captions as they are in the
source. `clipmerge.images.dataset` turns it into `LabelledImages` or `CaptionedImages`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np

from clipmerge.errors import DataError, counted, shorten
from clipmerge.images.decoding import open_picture, to_rgb
from clipmerge.types import Names, Shape

if TYPE_CHECKING:
    from PIL.Image import Image

#: Common names of fields with labels and with captions, the preferred ones first.
LABEL_NAMES = ("label", "labels", "class", "cls", "target", "class_name", "category")
CAPTION_NAMES = (
    *("caption", "captions", "text", "texts", "title", "sentence", "sentences"),
    *("description", "alt_text", "prompt"),
)
TEXT_NAMES = (*LABEL_NAMES, *CAPTION_NAMES)


@dataclass(frozen=True)
class Columns:
    """The columns to read. ``None`` lets the reader find the column."""

    image: str | None = None  # column of a table, or file ending in a tar
    label: str | None = None  # the same; ``json.KEY`` for a key of a tar's JSON files
    caption: str | None = None  # the same; if given, captions are read instead of classes

    @property
    def captioned(self) -> bool | None:
        """``True`` if the user asked for captions, ``False`` for labels, ``None`` for neither."""
        if self.caption:
            return True
        return False if self.label else None


def lines_of(text: str) -> list[str]:
    """Split a text into lines without blanks around them; empty lines are dropped."""
    return list(filter(None, map(str.strip, text.splitlines())))


def require_all(title: str, thing: str, lacking: Sequence[str], count: int, remedy: str) -> None:
    """Raise an error if some images have no label, caption or file (``thing``).

    Args:
        title: Title of the source.
        thing: A noun for the message.
        lacking: Names of the images without it.
        count: Number of all images.
        remedy: The next step for the user.
    """
    if lacking:
        have = counted(len(lacking), "image has", "images have")
        raise DataError(f"{title}: {have} no {thing} (of {count}): {shorten(lacking, 3)}; {remedy}")


@dataclass(frozen=True)
class Pictures:
    """Pictures of a source; each is read when it is needed."""

    get: Callable[[int], Any]  # returns an item's picture, path or content
    name: Callable[[int], str]  # returns an item's name for messages
    items: Sequence[int]  # the item at each position

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> Any:
        return self.get(self.items[position])

    def name_of(self, position: int) -> str:
        """Return the name of a picture for messages."""
        return self.name(self.items[position])

    def take(self, positions: Sequence[int]) -> Pictures:
        """Select pictures, in the order of the positions."""
        items = tuple(self.items[at] for at in positions)
        return replace(self, items=items)


def pictures_in_files(paths: Sequence[str]) -> Pictures:
    """Make the pictures of image files."""
    path_of = paths.__getitem__
    return Pictures(path_of, path_of, range(len(paths)))


@dataclass(frozen=True)
class OpenedSource:
    """A source with its labels or captions as they are in its files; no picture is read yet."""

    title: str
    pictures: Pictures
    # each picture's class (a number or a name) or captions (a text or several)
    values: Sequence[Any]
    # whether the values are captions; ``None`` if the values themselves must show it
    captioned: bool | None = None
    class_names: Names | None = None  # names of labels that are numbers
    # whether class names go into prompts unchanged, underscores included
    verbatim: bool = False
    templates: Names = ()  # the source's own prompt templates, with ``{}`` for the class
    revision: str | None = None  # commit of a dataset on the Hub
    notes: Names = ()


@dataclass(frozen=True)
class ImageSource:
    """Images of one source with a label each; each image is decoded when it is needed."""

    source: str
    pictures: Pictures
    # each image's class index; for captions, the number of its first caption among the different
    # captions
    labels: Shape
    # commit of a dataset on the Hub, else ``None``
    revision: str | None = field(default=None, kw_only=True)
    notes: Names = field(default=(), kw_only=True)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image:
        """Decode one image, as RGB."""
        name = self.pictures.name_of(index)
        picture = open_picture(name, self.pictures[index])
        return to_rgb(picture)

    def sample(self, count: int, seed: int) -> Self:
        """Draw images at random, as many of each label as possible."""
        positions = balanced_sample(self.labels, count, seed)
        return self.subset(positions)

    def subset(self, positions: list[int]) -> Self:
        """Select images, in the order of the positions."""
        labels = tuple(self.labels[at] for at in positions)
        return replace(self, pictures=self.pictures.take(positions), labels=labels)


@dataclass(frozen=True)
class LabelledImages(ImageSource):
    """Images with their classes."""

    class_names: Names  # name of each class, as it goes into the prompts
    templates: Names = ()  # the source's own prompt templates; empty if it has none
    # each class's rows in a head for ImageNet's 1000 classes; empty if they are not known
    imagenet_rows: tuple[Shape, ...] = ()

    def require_classes(self) -> None:
        """Raise an error if all images have one class: every model would recognise them."""
        if len(self.class_names) < 2:
            raise DataError(f"{self.source}: has one class; measuring needs at least two")


@dataclass(frozen=True)
class CaptionedImages(ImageSource):
    """Images with their captions."""

    captions: tuple[Names, ...]  # captions of each image, at least one

    @property
    def caption_count(self) -> int:
        """Number of captions of all images."""
        return sum(map(len, self.captions))

    def require_classes(self) -> None:
        """Raise an error if all images share one caption: every model would find it."""
        if len(set(self.captions)) < 2:
            raise DataError(
                f"{self.source}: all images have the same captions, so every model finds them;"
                " give images with different captions"
            )

    def with_one_caption(self, seed: int, known: Names = ()) -> LabelledImages:
        """Draw one caption per image. Each different caption is a class, numbered after the known
        ones, and its prompt is the caption itself.
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
        """Draw images at random, with all their captions."""
        drawn = np.random.default_rng(seed).permutation(len(self))
        return self.subset(drawn[:count].tolist())

    def subset(self, positions: list[int]) -> Self:
        """Select images with all their captions, in the order of the positions."""
        captions = tuple(self.captions[at] for at in positions)
        return replace(super().subset(positions), captions=captions)


#: Images with classes, or with captions.
Images: TypeAlias = LabelledImages | CaptionedImages


def number_texts(texts: Iterable[str], known: Iterable[str] = ()) -> tuple[Shape, Names]:
    """Number the different texts in order of appearance, after the known texts. Return the number
    of each text, and the different texts.

    Example:
        >>> number_texts(["a", "b", "a"], known=["c"])
        ((1, 2, 1), ('c', 'a', 'b'))
    """
    numbers = {text: number for number, text in enumerate(known)}
    labels: list[int] = []
    for text in texts:
        label = numbers.setdefault(text, len(numbers))
        labels.append(label)
    return tuple(labels), tuple(numbers)


def positions_by_class(labels: Sequence[int], order: Iterable[int]) -> list[list[int]]:
    """Group positions by class, and keep the given order within each class."""
    groups: dict[int, list[int]] = {label: [] for label in sorted(set(labels))}
    for position in order:
        label = labels[position]
        groups[label].append(position)
    return list(groups.values())


def balanced_sample(labels: Shape, count: int, seed: int) -> list[int]:
    """Draw the same number of images from each class, shuffled, and return their positions.

    If the count does not divide evenly, the seed decides which classes give one image more.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels)).tolist()
    waiting = positions_by_class(labels, reversed(shuffled))  # images are popped from the end
    picked: list[int] = []
    while waiting and len(picked) < count:
        turn = [positions.pop() for positions in waiting]
        missing = count - len(picked)
        if missing < len(turn):
            # a generator of its own: the draw does not depend on the draws before
            drawn = np.random.default_rng([seed, count]).permutation(len(turn))
            turn = [turn[at] for at in sorted(drawn[:missing])]
        picked += turn
        waiting = list(filter(None, waiting))
    return [picked[at] for at in rng.permutation(len(picked))]
