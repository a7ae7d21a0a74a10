"""Find copies of images by their pixels, in one source and between sources.

A copy may have been saved again, scaled, or changed by a little noise, as frames of a video and
exports of one photograph are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from clipmerge.errors import DataError, counted
from clipmerge.images.batches import prefetch
from clipmerge.images.decoding import change_notes, open_picture, to_rgb
from clipmerge.images.image_set import ImageSource
from clipmerge.parallel import cores_per_process
from clipmerge.types import Names

#: Height and width at which pictures are compared.
SIDE = 16
# Pixels of two copies differ by at most so many of 256 levels, and by at most this share of the
# standard deviation. Copies saved as JPEG of quality 50, or at three quarters of the size, differ
# by up to 4. The two most similar of 1,797 digits differ by 34, of 4,000 photographs by 39, and of
# 2,480 letters and symbols by 10 (except signs that two alphabets share).
_LEVELS = 8.0
_SHARE_OF_SPREAD = 0.3
# Pictures that are compared with all others at once: 20 MB of distances for 10,000 others.
_AT_ONCE = 512

Images = TypeVar("Images", bound=ImageSource)


@dataclass(frozen=True, eq=False)
class Prints:
    """The images of one source, reduced so that they can be compared.

    Attributes:
        images: The images.
        small: Pixels at `SIDE`, (images, SIDE * SIDE, 3), 0 to 255.
        hashes: Hash of all pixels of each image, (images,); it finds copies of blank pictures.
        notes: Differences from the way in which the model's processor would read the pictures.
    """

    images: ImageSource
    small: NDArray[np.float32]
    hashes: NDArray[np.int64]
    notes: Names

    @classmethod
    def read(cls, images: ImageSource) -> Prints:
        """Decode each image once; JPEG is decoded at an eighth of its size."""
        pictures = images.pictures
        changes = set[str]()

        def look(position: int, encoded: Any) -> tuple[NDArray[np.uint8], int]:
            if pictures.preprocessed:
                image = _as_picture(encoded)
            else:
                name = pictures.name_of(position)
                image = open_picture(name, encoded, notes=changes, small=True)
            shown = (image.mode, image.size, image.tobytes())
            small = to_rgb(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            return np.asarray(small), hash(shown)

        count = len(images)
        small = np.empty((count, SIDE * SIDE, 3), dtype=np.float32)
        hashes = np.empty(count, dtype=np.int64)
        jobs = (partial(look, at, pictures[at]) for at in range(count))
        with ThreadPoolExecutor(cores_per_process()) as pool:
            looked_at = prefetch(pool, _AT_ONCE, jobs)
            for at, (pixels, number) in enumerate(looked_at):
                small[at] = pixels.reshape(-1, 3)
                hashes[at] = number
        return cls(images, small, hashes, change_notes(images.source, changes))

    def copies_in(self, others: Prints) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield the position of each image that has copies among others, and their positions."""
        # centred, because torch computes distances from products, which would lose digits
        grey = self.small.mean(axis=2) - 128
        their_grey = torch.from_numpy(others.small.mean(axis=2) - 128)
        limits = np.minimum(_LEVELS, _SHARE_OF_SPREAD * grey.std(axis=1))
        for start in range(0, len(grey), _AT_ONCE):
            block = torch.from_numpy(grey[start : start + _AT_ONCE])
            for at, distances in enumerate(torch.cdist(block, their_grey).numpy(), start):
                # copies are no farther apart than SIDE times the limit of a pixel
                near = distances <= SIDE * limits[at] + 2
                equal = others.hashes == self.hashes[at]
                found = np.flatnonzero(near | equal)
                differences = np.abs(others.small[found] - self.small[at]).mean(axis=2)
                found = found[(differences.max(axis=1) < limits[at]) | equal[found]]
                if len(found):
                    yield at, found


def first_copies(prints: Prints) -> list[int]:
    """Return the positions of the images that are not copies of an earlier one."""
    # every image is among its own copies
    return [at for at, found in prints.copies_in(prints) if found[0] == at]


def without_copies(images: Images) -> tuple[Images, Names]:
    """Drop copies of earlier images, which would count twice or both learn and judge. Return the
    other images, and notes.
    """
    prints = Prints.read(images)
    first = first_copies(prints)
    copies = len(images) - len(first)
    if not copies:
        return images, prints.notes
    are = f"{copies} of the {len(images)} sampled images"
    note = f"{images.source}: {are} show what another one shows; of such copies one is used"
    return images.subset(first), (*prints.notes, note)


def without_shared(
    images: Images, others: Iterable[Prints], name: str, other: str
) -> tuple[Images, Names]:
    """Drop the images that another source has, too. Return those left, and a note."""
    mine = Prints.read(images)
    shared: dict[int, str] = {}
    for theirs in others:
        shared |= _shared(mine, theirs)
    if not shared:
        return images, ()
    if len(shared) == len(images):
        raise DataError(f"{name}: all images are also in {other}; give others")
    note = f"{_note_shared(name, shared, other)}, and left out"
    return images.subset([at for at in range(len(images)) if at not in shared]), (note,)


def _shared(mine: Prints, theirs: Prints) -> dict[int, str]:
    """The positions of images that two sources share, each with the names of both."""
    ours, others = mine.images.pictures, theirs.images.pictures
    if ours.preprocessed != others.preprocessed:
        return {}
    return {
        at: f"{ours.name_of(at)} shows what {others.name_of(int(found[0]))} shows"
        for at, found in mine.copies_in(theirs)
    }


def _note_shared(name: str, shared: Mapping[int, str], other: str) -> str:
    are = counted(len(shared), "image is", "images are")
    return f"{name}: {are} also in {other} ({next(iter(shared.values()))})"


def shared_notes(ours: Mapping[str, Prints], others: Mapping[str, Prints]) -> Names:
    """Note images that two sources share. Sources go by their names on the command line."""
    return tuple(
        f"{_note_shared(name, shared, other)}, so its accuracy is not that on unseen images"
        for (name, mine), (other, theirs) in itertools.product(ours.items(), others.items())
        if (shared := _shared(mine, theirs))
    )


def overlap_notes(
    measured: ImageSource | None, ids: Mapping[str, ImageSource], oods: Mapping[str, ImageSource]
) -> Names:
    """Note images of a sweep that are in two sources, or twice in one; all of them count."""
    target = {f"`id` {name}": Prints.read(images) for name, images in ids.items()}
    shifts = {f"`ood` {name}": Prints.read(images) for name, images in oods.items()}
    notes: list[str] = []
    for name, prints in (target | shifts).items():
        notes += prints.notes
        copies = len(prints.images) - len(first_copies(prints))
        if copies:
            are = counted(copies, "image is a copy", "images are copies")
            notes.append(f"{name}: {are} of an earlier one, and count in its accuracy")
    if measured is not None:
        notes += shared_notes(target | shifts, {f"`data` {measured.source}": Prints.read(measured)})
    notes += shared_notes(shifts, target)
    return tuple(notes)


def _as_picture(tensor: Any) -> Image.Image:
    """Turn preprocessed pixels, which are around zero, into a picture of 256 levels."""
    values = np.asarray(tensor, dtype=np.float32)
    levels = np.clip(128 + 48 * values, 0, 255).astype(np.uint8)
    return Image.fromarray(levels.transpose(1, 2, 0))
