"""Detect images that two sources share: the same file, a link to it, or another file with the same content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from clipmerge.errors import UsageError
from clipmerge.files.hashes import sha256_of
from clipmerge.images.dataset import LabelledImages
from clipmerge.images.decoding import unreadable

T = TypeVar("T")


@dataclass(frozen=True)
class Overlap:
    """Images that two sources share.

    Attributes:
        count: Images of the first source that are also in the second.
        first: One of them, and the image it equals.
    """

    count: int
    first: str


class Fingerprints:
    """Fingerprints of the images of one source, read on demand."""

    def __init__(self, images: LabelledImages) -> None:
        """Store the images."""
        self.images = images
        self._hashes: dict[int, dict[str, str]] = {}
        self._pixels: dict[tuple[int, int], dict[str, str]] = {}

    @cached_property
    def files(self) -> dict[tuple[int, int], str]:
        """Files by device and inode, so hard and symbolic links lead to the same file."""
        paths = {}
        for path in self.images.store.paths:
            status = _read(path, Path.stat)
            paths[status.st_dev, status.st_ino] = path
        return paths

    @cached_property
    def by_size(self) -> dict[int, list[str]]:
        """Files by size in bytes: only files of the same size can have equal content."""
        paths: dict[int, list[str]] = {}
        for path in self.images.store.paths:
            paths.setdefault(_read(path, Path.stat).st_size, []).append(path)
        return paths

    def with_content(self, size: int, digest: str) -> str | None:
        """The file of that size and hash, if there is one."""
        if size not in self._hashes:
            self._hashes[size] = {_read(path, sha256_of): path for path in self.by_size.get(size, [])}
        return self._hashes[size].get(digest)

    @cached_property
    def by_extent(self) -> dict[tuple[int, int], list[int]]:
        """Images by shorter and longer side: only images of equal extent can have the same pixels, rotated or not."""
        places: dict[tuple[int, int], list[int]] = {}
        for place in range(len(self.images)):
            places.setdefault(self.images.extent(place), []).append(place)
        return places

    def pixels(self, extent: tuple[int, int]) -> dict[str, str]:
        """Names of the images of one extent, by the hash of their size and RGB pixels."""
        if extent not in self._pixels:
            names = {}
            for place in self.by_extent.get(extent, []):
                image = self.images.image(place)
                digest = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
                names[digest] = self.images.store.name(place)
            self._pixels[extent] = names
        return self._pixels[extent]


def find_overlap(ours: Fingerprints, theirs: Fingerprints) -> Overlap | None:
    """Look for images that two sources share.

    Files are compared by inode and by content. If a source has no files, decoded images are compared.
    """
    if not (ours.images.store.paths and theirs.images.store.paths):
        pairs = []
        for extent in [each for each in ours.by_extent if each in theirs.by_extent]:
            other = theirs.pixels(extent)
            same = [digest for digest in ours.pixels(extent) if digest in other]
            pairs += [f"{ours.pixels(extent)[digest]} has the pixels of {other[digest]}" for digest in same]
    else:
        pairs = [match for path in ours.images.store.paths if (match := _same_file(path, ours, theirs))]
    return Overlap(len(pairs), pairs[0]) if pairs else None


def _same_file(path: str, ours: Fingerprints, theirs: Fingerprints) -> str | None:
    status = _read(path, Path.stat)
    same = theirs.files.get((status.st_dev, status.st_ino))
    if same is not None:
        return f"{path} is {'in both' if same == path else same}"
    if status.st_size not in theirs.by_size:
        return None
    other = theirs.with_content(status.st_size, _read(path, sha256_of))
    return other and f"{path} has the content of {other}"


def _read(path: str, read: Callable[[Path], T]) -> T:
    """Read a file; one that cannot be read, such as a dead link (listed like any file), is named in the error."""
    try:
        return read(Path(path))
    except OSError as error:
        raise unreadable(path, error) from None


def check_overlap(
    calibration: LabelledImages | None,
    ids: dict[str, LabelledImages],
    oods: dict[str, LabelledImages],
    unlabelled: LabelledImages | None = None,
) -> list[str]:
    """Refuse OOD images that recipes are calibrated on; note any other image that is used twice.

    Images that are also among the unlabelled ones are refused in any case.
    """
    id_prints = {name: Fingerprints(images) for name, images in ids.items()}
    ood_prints = {name: Fingerprints(images) for name, images in oods.items()}
    if unlabelled is not None:
        judged = {f"--id {name}": prints for name, prints in id_prints.items()}
        judged |= {f"--ood {name}": prints for name, prints in ood_prints.items()}
        refuse_shared(unlabelled, judged)
    notes = []
    if calibration is not None:
        theirs = Fingerprints(calibration)
        for name, prints in ood_prints.items():
            _refuse(name, calibration.source, find_overlap(prints, theirs))
        flatters = ", which flatters recipes that measure"
        notes += _notes(id_prints, {"the calibration source": theirs}, flatters)
    return notes + _notes(ood_prints, {f"--id {name}": prints for name, prints in id_prints.items()})


def refuse_shared(unlabelled: LabelledImages, others: dict[str, Fingerprints]) -> None:
    """Refuse unlabelled images that are also used otherwise."""
    ours = Fingerprints(unlabelled)
    for name, theirs in others.items():
        overlap = find_overlap(ours, theirs)
        if overlap:
            flag = name.partition(" ")[0]
            raise UsageError(
                f"--unlabelled {unlabelled.source}: {_how_many(overlap)} also in {name} ({overlap.first}); a model is "
                f"not judged on images that it learned from, so give other images to --unlabelled or {flag}"
            )


def _refuse(name: str, calibration: str, overlap: Overlap | None) -> None:
    if overlap:
        raise UsageError(
            f"--ood {name}: {_how_many(overlap)} also in the calibration source {calibration} ({overlap.first}); "
            "images used for calibration are not out of distribution; give other images to --data or --ood"
        )


def _notes(ours: dict[str, Fingerprints], others: dict[str, Fingerprints], therefore: str = "") -> list[str]:
    overlaps = [(name, other, find_overlap(ours[name], others[other])) for name in ours for other in others]
    return [
        f"source {name}: {_how_many(overlap)} also in {other} ({overlap.first}){therefore}"
        for name, other, overlap in overlaps
        if overlap
    ]


def _how_many(overlap: Overlap) -> str:
    return "1 image is" if overlap.count == 1 else f"{overlap.count} images are"
