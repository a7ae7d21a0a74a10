"""Find copies of images by their pixels, in one source and between sources.

A copy may have been saved again, scaled, or changed by a little noise: for example, frames of a
video, or exports of one photograph.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from clipmerge.errors import DataError, counted
from clipmerge.images.batches import prefetch
from clipmerge.images.decoding import open_picture, to_rgb
from clipmerge.images.image_set import Images
from clipmerge.parallel import cores_per_process
from clipmerge.types import Names

#: Height and width at which pictures are compared.
SIDE = 16
# No pixel of two copies differs by more levels (of 256), or by more than this share of the standard
# deviation. Copies saved as JPEG of quality 50, or at three quarters of the size, differ
# by up to 4. The two most similar of 1,797 digits differ by 34, of 4,000 photographs by 39, and of
# 2,480 letters and symbols by 10 (except signs that two alphabets share).
_LEVELS = 8.0
_SHARE_OF_SPREAD = 0.3
# Number of pictures compared with all others at once; for 10,000 others this takes 20 MB.
_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """The images of one source, reduced to a small size for comparisons.

    Attributes:
        images: The images.
        pixels: Pixels at `SIDE`, (images, SIDE * SIDE, 3), 0 to 255.
    """

    images: Images
    pixels: NDArray[np.float32]

    @classmethod
    def read(cls, images: Images) -> Thumbnails:
        """Decode each image once; JPEG is decoded at an eighth of its size."""
        pictures = images.pictures

        def reduce(position: int, encoded: Any) -> NDArray[np.float32]:
            image = open_picture(pictures.name_of(position), encoded, small=True)
            small = to_rgb(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            return np.asarray(small, dtype=np.float32).reshape(-1, 3)

        jobs = (partial(reduce, at, pictures[at]) for at in range(len(images)))
        with ThreadPoolExecutor(cores_per_process()) as pool:
            return cls(images, np.stack(list(prefetch(pool, _AT_ONCE, jobs))))

    def take(self, positions: list[int]) -> Thumbnails:
        """Select images, in the order of the positions."""
        return Thumbnails(self.images.subset(positions), self.pixels[positions])

    def copies_among(self, others: Thumbnails) -> dict[int, int]:
        """For each image that has copies in another source, map its position to that of the first
        copy there. A picture of one colour never counts as a copy.
        """
        # centred, because torch computes distances from products, which would lose digits
        grey = self.pixels.mean(axis=2) - 128
        their_grey = torch.from_numpy(others.pixels.mean(axis=2) - 128)
        limits = np.minimum(_LEVELS, _SHARE_OF_SPREAD * grey.std(axis=1))
        first: dict[int, int] = {}
        for start in range(0, len(grey), _AT_ONCE):
            block = torch.from_numpy(grey[start : start + _AT_ONCE])
            for at, distances in enumerate(torch.cdist(block, their_grey).numpy(), start):
                # copies are no farther apart than SIDE times the limit of a pixel
                near = np.flatnonzero(distances <= SIDE * limits[at] + 2)
                differences = np.abs(others.pixels[near] - self.pixels[at]).mean(axis=2)
                copies = near[differences.max(axis=1) < limits[at]]
                if len(copies):
                    first[at] = int(copies[0])
        return first

    def without_copies(self) -> Thumbnails:
        """Keep the first of several copies."""
        first = self.copies_among(self)
        return self.take([at for at in range(len(self.pixels)) if first.get(at, at) == at])

    def without_shared(self, others: Thumbnails, name: str, other: str) -> tuple[Thumbnails, Names]:
        """Drop the images that are also in another source, and return a note about them.

        Raises:
            DataError: If none are left.
        """
        shared = self.copies_among(others)
        if not shared:
            return self, ()
        left = [at for at in range(len(self.pixels)) if at not in shared]
        if not left:
            raise DataError(f"{name}: all images are also in {other}; give others")
        return self.take(left), (f"{self.describe_shared(shared, others, name, other)}, left out",)

    def describe_shared(
        self, shared: dict[int, int], others: Thumbnails, name: str, other: str
    ) -> str:
        """Say how many images are also in another source, and name the first."""
        at, copy = next(iter(shared.items()))
        mine, theirs = self.images.pictures.name_of(at), others.images.pictures.name_of(copy)
        are = counted(len(shared), "image is", "images are")
        return f"{name}: {are} also in {other} ({mine} is a copy of {theirs})"


def overlap_notes(learned: Images, judging: Mapping[str, Images]) -> Names:
    """Return a note for each source of a sweep that shares images with the source from which a
    recipe learned. ``judging`` has the sources by name.
    """
    data = Thumbnails.read(learned)
    notes: list[str] = []
    for name, images in judging.items():
        thumbnails = Thumbnails.read(images)
        if shared := thumbnails.copies_among(data):
            described = thumbnails.describe_shared(shared, data, name, f"`data` {learned.source}")
            notes.append(f"{described}, so its accuracy is not that on unseen images")
    return tuple(notes)
