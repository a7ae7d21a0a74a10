"""Sets of images, each with its class or its captions, and samples of them."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np

from clipmerge.distributed import cores_per_process
from clipmerge.errors import DataError, shorten
from clipmerge.files.limits import MAX_PROMPT_LENGTH
from clipmerge.finding import Finding
from clipmerge.images.decoding import Encoded, decode
from clipmerge.images.sampling import balanced_sample, candidate_positions
from clipmerge.images.store import Pixels, SomeImages, Store
from clipmerge.types import Names, Shape

if TYPE_CHECKING:
    from PIL.Image import Image

# Images that are decoded at once to see whether they can be.
_AT_ONCE = 256


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
    notes: tuple[Finding, ...] = field(default=(), kw_only=True)

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
        return self._with(self.store.take(positions), positions)

    def _with(self, store: Store, positions: list[int]) -> Self:
        """The labels at these positions, with a store of their images."""
        return replace(self, store=store, labels=tuple(self.labels[at] for at in positions))

    def without_unreadable(self) -> Self:
        """Decode every image once, and leave out those that cannot be read."""
        if isinstance(self.store, Pixels):
            return self
        names = list(map(self.store.name, range(len(self))))
        good: list[int] = []
        with ThreadPoolExecutor(cores_per_process()) as pool:
            for start in range(0, len(self), _AT_ONCE):
                positions = range(len(self))[start : start + _AT_ONCE]
                readable = pool.map(
                    _is_readable, names[start : start + _AT_ONCE], self.store.read(positions)
                )
                good += [at for at, is_good in zip(positions, readable, strict=True) if is_good]
        if len(good) == len(self):
            return self
        bad = shorten((names[at] for at in sorted(set(range(len(self))).difference(good))), 3)
        if not good:
            raise DataError(f"{self.source}: none of its {len(self)} images can be read: {bad}")
        note = Finding.of(
            "unreadable",
            source=self.source,
            images=len(self) - len(good),
            total=len(self),
            examples=bad,
        )
        readable_ones = self._with(SomeImages(self.store, tuple(good)), good)
        return replace(readable_ones, notes=(*self.notes, note))


def _is_readable(name: str, encoded: Encoded) -> bool:
    try:
        decode(name, encoded)
    except DataError:
        return False
    return True


@dataclass(frozen=True)
class LabelledImages(ImageSet):
    """Images with their classes."""

    class_names: Names  # name of each class, as it goes into the prompts
    templates: Names = ()  # the source's own prompt templates; empty if it has none
    # for each class its rows in a head of ImageNet's 1000 classes; empty if they are not known
    imagenet_rows: tuple[Shape, ...] = ()
    # whose labels they are: ``None`` while a source without labels waits for the fine-tuned model's
    labelled_by: Literal["source", "finetuned"] | None = "source"

    def require_classes(self) -> None:
        """Refuse images of a single class, which every model would recognise."""
        if len(self.class_names) < 2:
            raise DataError(f"{self.source}: has one class; measuring needs at least two")


@dataclass(frozen=True)
class CaptionedImages(ImageSet):
    """Images with their captions."""

    labels_are_classes: ClassVar[bool] = False

    captions: tuple[Names, ...]  # captions of each image, at least one

    @property
    def caption_count(self) -> int:
        """Number of captions of all images."""
        return sum(map(len, self.captions))

    def recall_note(self, name: str) -> Finding:
        """Say what an accuracy on these images stands for."""
        return Finding.of("recall", source=name, images=len(self), captions=self.caption_count)

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
        drawn = [
            texts[int(rng.integers(len(texts)))][:MAX_PROMPT_LENGTH] for texts in self.captions
        ]
        labels, names = number_texts(drawn, known)
        return LabelledImages(
            self.source,
            self.store,
            labels,
            names,
            templates=("{}",),
            revision=self.revision,
            notes=self.notes,
        )

    def sample(self, count: int, seed: int) -> Self:
        """Sample images, with all their captions, in a random order."""
        if self.store.blocks:
            return super().sample(count, seed)
        drawn = np.random.default_rng(seed).permutation(len(self))[:count]
        return self.subset([int(position) for position in drawn])

    def _with(self, store: Store, positions: list[int]) -> Self:
        captions = tuple(self.captions[at] for at in positions)
        return replace(super()._with(store, positions), captions=captions)


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
