"""Copies of images by their pixels, inside one source and between sources: the same picture again,
saved anew, scaled, or with a little noise, as in frames of a video or exports of one photograph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmerge.distributed import cores_per_process
from clipmerge.errors import counted
from clipmerge.images.batches import prefetch
from clipmerge.images.decoding import Encoded, change_notes, open_picture, to_rgb
from clipmerge.images.image_set import ImageSource
from clipmerge.types import Names

#: Pictures are compared at this height and width.
SIDE = 16
# No pixel of two copies differs by more levels of 256, nor by more than this share of the spread of
# the levels. Copies saved as JPEG of quality 50 or at three quarters of the size differ by up to 4;
# the most alike of 1,797 digits by 34, of 4,000 photographs by 39, of 2,480 letters and symbols
# (but for the same sign in two alphabets) by 10.
_LEVELS = 8.0
_SHARE_OF_SPREAD = 0.3
# Pictures compared with all others at once.
_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class Prints:
    """The images of one source, small enough to be compared with one another.

    Attributes:
        images: The images.
        small: Their pixels at `SIDE`, (images, SIDE * SIDE, 3), 0 to 255.
        hashes: Hashes of all their pixels, (images,), which tell copies of blank pictures.
        notes: How pictures are shown to models otherwise than their processors would read them.
    """

    images: ImageSource
    small: NDArray[np.float32]
    hashes: NDArray[np.int64]
    notes: Names

    @classmethod
    def of(cls, images: ImageSource) -> Prints:
        """Decode each image once, JPEG at an eighth of its size."""
        pictures = images.pictures
        changes = set[str]()

        def look(position: int, encoded: Encoded) -> tuple[Any, int]:
            name = pictures.name_of(position)
            return _small_and_hash(open_picture(name, encoded, notes=changes, small=True))

        positions = range(len(pictures))
        if pictures.preprocessed:
            found = [_small_and_hash(_shown(pictures[at])) for at in positions]
        else:
            with ThreadPoolExecutor(cores_per_process()) as pool:
                jobs = (partial(look, at, pictures[at]) for at in positions)
                found = list(prefetch(pool, _AT_ONCE, jobs))
        small = [small for small, _ in found]
        hashes = np.array([number for _, number in found], dtype=np.int64)
        shape = (len(found), SIDE * SIDE, 3)
        pixels = np.array(small, dtype=np.float32).reshape(shape)
        return cls(images, pixels, hashes, change_notes(images.source, changes))

    def copies_in(self, others: Prints) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Positions of images with copies among others, and the positions of these, ascending."""
        grey = self.small.mean(axis=2) - 128
        their_grey = others.small.mean(axis=2) - 128
        lengths = np.square(their_grey).sum(axis=1)
        limits = np.minimum(_LEVELS, _SHARE_OF_SPREAD * grey.std(axis=1))
        for start in range(0, len(grey), _AT_ONCE):
            part = grey[start : start + _AT_ONCE]
            squares = np.square(part).sum(axis=1)[:, None] + lengths - 2 * part @ their_grey.T
            near = squares <= SIDE**2 * np.square(limits[start : start + _AT_ONCE, None]) + 1
            for at, row in enumerate(near, start):
                equal = others.hashes == self.hashes[at]
                found = np.flatnonzero(row | equal)
                differences = np.abs(others.small[found] - self.small[at]).mean(axis=2).max(axis=1)
                found = found[(differences < limits[at]) | equal[found]]
                if len(found):
                    yield at, found


def first_copies(prints: Prints) -> list[int]:
    """Positions of the images that are not copies of an earlier one, ascending."""
    first = list(range(len(prints.images)))
    for at, found in prints.copies_in(prints):
        first[at] = min(at, first[found[0]])
    return [at for at, earliest in enumerate(first) if at == earliest]


def shared_images(ours: Prints, theirs: Prints) -> list[str]:
    """Pairs of images that two sources share, in words."""
    if ours.images.pictures.preprocessed != theirs.images.pictures.preprocessed:
        return []
    name, other = ours.images.pictures.name_of, theirs.images.pictures.name_of
    pairs = ours.copies_in(theirs)
    return [f"{name(at)} shows what {other(int(found[0]))} shows" for at, found in pairs]


def shared_notes(ours: Mapping[str, Prints], others: Mapping[str, Prints]) -> Names:
    """Note the images that sources share, by their names on the command line."""
    return tuple(
        f"{name}: {counted(len(shared), 'image is', 'images are')} also in {other} ({shared[0]}),"
        " so its accuracy is not that on unseen images"
        for name, mine in ours.items()
        for other, theirs in others.items()
        if (shared := shared_images(mine, theirs))
    )


def overlap_notes(
    measured: ImageSource | None, ids: Mapping[str, ImageSource], oods: Mapping[str, ImageSource]
) -> Names:
    """Note images of a sweep that are in two sources, or twice in one, where each counts."""
    target = {f"`id` {name}": Prints.of(images) for name, images in ids.items()}
    shifts = {f"`ood` {name}": Prints.of(images) for name, images in oods.items()}
    data = {f"`data` {measured.source}": Prints.of(measured)} if measured else {}
    evaluated = target | shifts
    twice = tuple(
        f"{name}: {counted(copies, 'image is a copy', 'images are copies')} of an earlier one, and"
        " count in its accuracy"
        for name, prints in evaluated.items()
        if (copies := len(prints.images) - len(first_copies(prints)))
    )
    changes = tuple(note for prints in evaluated.values() for note in prints.notes)
    return changes + twice + shared_notes(evaluated, data) + shared_notes(shifts, target)


def _small_and_hash(image: Image.Image) -> tuple[NDArray[np.uint8], int]:
    small = to_rgb(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(small), hash((image.mode, image.size, image.tobytes()))


def _shown(tensor: Any) -> Image.Image:
    """A preprocessed picture, whose numbers lie around zero, as one of 256 levels."""
    levels = np.clip(128 + 48 * np.asarray(tensor, dtype=np.float32), 0, 255)
    return Image.fromarray(levels.transpose(1, 2, 0).astype(np.uint8))
