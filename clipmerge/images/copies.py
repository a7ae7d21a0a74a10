"""Find copies of images by their pixels, in one source and between sources.

A copy may have been saved again, scaled, or changed by a little noise, as frames of a video and
exports of one photograph are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from clipmerge.errors import DataError, counted
from clipmerge.images.batches import prefetch
from clipmerge.images.decoding import open_picture, to_rgb
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
# Number of pictures compared with all others at once; for 10,000 others this takes 20 MB.
_AT_ONCE = 512

Images = TypeVar("Images", bound=ImageSource)


@dataclass(frozen=True, eq=False)
class Thumbnails(Generic[Images]):
    """The images of one source, reduced to a size at which they can be compared.

    Attributes:
        images: The images.
        pixels: Pixels at `SIDE`, (images, SIDE * SIDE, 3), 0 to 255.
        hashes: Hash of all pixels of each image, (images,); it finds copies of blank pictures.
    """

    images: Images
    pixels: NDArray[np.float32]
    hashes: NDArray[np.int64]

    @classmethod
    def read(cls, images: Images) -> Thumbnails[Images]:
        """Decode each image once; JPEG is decoded at an eighth of its size."""
        pictures = images.pictures

        def reduce(position: int, encoded: Any) -> tuple[NDArray[np.uint8], int]:
            image = open_picture(pictures.name_of(position), encoded, small=True)
            shown = (image.mode, image.size, image.tobytes())
            small = to_rgb(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            return np.asarray(small), hash(shown)

        count = len(images)
        pixels = np.empty((count, SIDE * SIDE, 3), dtype=np.float32)
        hashes = np.empty(count, dtype=np.int64)
        jobs = (partial(reduce, at, pictures[at]) for at in range(count))
        with ThreadPoolExecutor(cores_per_process()) as pool:
            for at, (small, number) in enumerate(prefetch(pool, _AT_ONCE, jobs)):
                pixels[at] = small.reshape(-1, 3)
                hashes[at] = number
        return cls(images, pixels, hashes)

    def copies_in(self, others: Thumbnails[Any]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """For each image with copies among others, yield its position and theirs."""
        # centred, because torch computes distances from products, which would lose digits
        grey = self.pixels.mean(axis=2) - 128
        their_grey = torch.from_numpy(others.pixels.mean(axis=2) - 128)
        limits = np.minimum(_LEVELS, _SHARE_OF_SPREAD * grey.std(axis=1))
        for start in range(0, len(grey), _AT_ONCE):
            block = torch.from_numpy(grey[start : start + _AT_ONCE])
            for at, distances in enumerate(torch.cdist(block, their_grey).numpy(), start):
                # copies are no farther apart than SIDE times the limit of a pixel
                near = distances <= SIDE * limits[at] + 2
                equal = others.hashes == self.hashes[at]
                found = np.flatnonzero(near | equal)
                differences = np.abs(others.pixels[found] - self.pixels[at]).mean(axis=2)
                found = found[(differences.max(axis=1) < limits[at]) | equal[found]]
                if len(found):
                    yield at, found

    def without_copies(self) -> Thumbnails[Images]:
        """Keep one of several copies, the first."""
        # every image is among its own copies
        first = [at for at, found in self.copies_in(self) if found[0] == at]
        return Thumbnails(self.images.subset(first), self.pixels[first], self.hashes[first])

    def shared_with(self, others: Thumbnails[Any]) -> dict[int, str]:
        """Find the images that others have, too: their positions, and what both copies are."""
        mine, theirs = self.images.pictures, others.images.pictures
        return {
            at: f"{mine.name_of(at)} shows what {theirs.name_of(int(found[0]))} shows"
            for at, found in self.copies_in(others)
        }

    def without_shared(
        self, others: Thumbnails[Any], name: str, other: str
    ) -> tuple[Thumbnails[Images], Names]:
        """Drop the images that another source has, too, and note them.

        Raises:
            DataError: If none are left.
        """
        shared = self.shared_with(others)
        if not shared:
            return self, ()
        left = [at for at in range(len(self.hashes)) if at not in shared]
        if not left:
            raise DataError(f"{name}: all images are also in {other}; give others")
        kept = Thumbnails(self.images.subset(left), self.pixels[left], self.hashes[left])
        return kept, (f"{_note_shared(name, shared, other)}, and left out",)


def _note_shared(name: str, shared: Mapping[int, str], other: str) -> str:
    are = counted(len(shared), "image is", "images are")
    return f"{name}: {are} also in {other} ({next(iter(shared.values()))})"


def shared_notes(
    ours: Mapping[str, Thumbnails[Any]], others: Mapping[str, Thumbnails[Any]]
) -> Names:
    """Note images that two sources share; keys are the sources' names on the command line."""
    return tuple(
        f"{_note_shared(name, shared, other)}, so its accuracy is not that on unseen images"
        for (name, mine), (other, theirs) in itertools.product(ours.items(), others.items())
        if (shared := mine.shared_with(theirs))
    )


def overlap_notes(
    measured: ImageSource | None, ids: Mapping[str, ImageSource], oods: Mapping[str, ImageSource]
) -> Names:
    """Note images of a sweep that occur twice, in one source or in two; all of them count."""
    target = {f"`id` {name}": Thumbnails.read(images) for name, images in ids.items()}
    shifts = {f"`ood` {name}": Thumbnails.read(images) for name, images in oods.items()}
    notes: list[str] = []
    for name, every in (target | shifts).items():
        if copies := len(every.images) - len(every.without_copies().images):
            are = counted(copies, "image is a copy", "images are copies")
            notes.append(f"{name}: {are} of an earlier one, and count in its accuracy")
    if measured is not None:
        learned = {f"`data` {measured.source}": Thumbnails.read(measured)}
        notes += shared_notes(target | shifts, learned)
    notes += shared_notes(shifts, target)
    return tuple(notes)
