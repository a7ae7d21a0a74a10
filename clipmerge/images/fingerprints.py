"""Copies of images by their content: inside one source, and between sources."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from clipmerge.errors import UsageError, counted
from clipmerge.files.hashes import sha256_of
from clipmerge.images.decoding import extent, unreadable
from clipmerge.images.store import ImageSet, Pixels, Store

T = TypeVar("T")


def read_file(path: str, read: Callable[[Path], T]) -> T:
    """Read a file; one that cannot be read, such as a dead link (listed like any file), is named in
    the error.
    """
    try:
        return read(Path(path))
    except OSError as error:
        raise unreadable(path, error) from None


def digest_of(store: Store, position: int) -> str:
    """The sha256 of an image's encoded bytes, or of its pixels if it is preprocessed."""
    if isinstance(store, Pixels):
        return hashlib.sha256(store.batch([position]).numpy().tobytes()).hexdigest()
    (image,) = store.read([position])
    return (
        hashlib.sha256(image).hexdigest()
        if isinstance(image, bytes)
        else read_file(image, sha256_of)
    )


def content_digest(images: ImageSet) -> str:
    """Identify images by their content and order, independently of where they lie: a sha256 over
    their sha256.
    """
    digests = (digest_of(images.store, position) for position in range(len(images)))
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def first_copies(store: Store, count: int) -> list[int]:
    """Positions of the images that are not copies of an earlier one, ascending; files are read if
    sizes are equal.
    """
    sizes: Sequence[int] = [0] * count
    if store.paths:
        sizes = [read_file(path, Path.stat).st_size for path in store.paths]
    alike = Counter(sizes)
    seen: set[tuple[int, str]] = set()
    first = []
    for position, size in enumerate(sizes):
        if alike[size] > 1:
            content = (size, digest_of(store, position))
            if content in seen:
                continue
            seen.add(content)
        first.append(position)
    return first


#: What is noted of a source that holds preprocessed images, which can be compared with nothing.
NOT_COMPARED = (
    ": its images are preprocessed, so they were not compared with those of other sources"
)


class Fingerprints:
    """Fingerprints of the images of one source, read on demand."""

    def __init__(self, images: ImageSet) -> None:
        self.store, self.count = images.store, len(images)
        self._hashes: dict[int, dict[str, str]] = {}
        self._pixels: dict[tuple[int, int], dict[str, str]] = {}

    @cached_property
    def by_size(self) -> dict[int, list[str]]:
        """Files by size in bytes: only files of the same size can have equal content."""
        paths: dict[int, list[str]] = {}
        for path in self.store.paths:
            paths.setdefault(read_file(path, Path.stat).st_size, []).append(path)
        return paths

    def with_content(self, size: int, digest: str) -> str | None:
        """The file of that size, which has files, and of that hash, if there is one."""
        if size not in self._hashes:
            self._hashes[size] = {read_file(path, sha256_of): path for path in self.by_size[size]}
        return self._hashes[size].get(digest)

    @cached_property
    def by_extent(self) -> dict[tuple[int, int], list[int]]:
        """Images by shorter and longer side: only images of equal extent can have the same pixels,
        rotated or not.
        """
        positions: dict[tuple[int, int], list[int]] = {}
        for position in range(self.count):
            (encoded,) = self.store.read([position])
            positions.setdefault(extent(self.store.name(position), encoded), []).append(position)
        return positions

    def pixels(self, size: tuple[int, int]) -> dict[str, str]:
        """Names of the images of one extent, by the hash of their size and RGB pixels."""
        if size not in self._pixels:
            names = {}
            for position in self.by_extent[size]:
                image = self.store.image(position)
                digest = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
                names[digest] = self.store.name(position)
            self._pixels[size] = names
        return self._pixels[size]


def find_overlap(ours: Fingerprints, theirs: Fingerprints) -> list[str]:
    """Pairs of images that two sources share: by content if both have files, otherwise by their
    pixels.
    """
    if isinstance(ours.store, Pixels) or isinstance(theirs.store, Pixels):
        return []  # preprocessed images can be compared with nothing
    if ours.store.paths and theirs.store.paths:
        matches = []
        for path in ours.store.paths:
            size = read_file(path, Path.stat).st_size
            other = (
                theirs.with_content(size, read_file(path, sha256_of))
                if size in theirs.by_size
                else None
            )
            if other is not None:
                matches.append(
                    f"{path} is in both" if other == path else f"{path} has the content of {other}"
                )
        return matches
    pairs = []
    for sides in [sides for sides in ours.by_extent if sides in theirs.by_extent]:
        mine, others = ours.pixels(sides), theirs.pixels(sides)
        pairs += [
            f"{mine[digest]} has the pixels of {others[digest]}"
            for digest in mine
            if digest in others
        ]
    return pairs


def check_overlap(
    calibration: ImageSet | None,
    ids: Mapping[str, ImageSet],
    oods: Mapping[str, ImageSet],
    unlabelled: ImageSet | None = None,
    tasks: Mapping[str, ImageSet] | None = None,
) -> list[str]:
    """Refuse OOD images that recipes are calibrated on, and unlabelled ones used again; note others
    used twice.

    Copies inside one source are noted too, since each counts in its accuracy.
    """
    id_prints = {f"`id` {name}": Fingerprints(images) for name, images in ids.items()}
    ood_prints = {f"`ood` {name}": Fingerprints(images) for name, images in oods.items()}
    task_prints = {f"`keep` {name}": Fingerprints(images) for name, images in (tasks or {}).items()}
    if unlabelled is not None:
        refuse_shared(unlabelled, id_prints | ood_prints | task_prints)
    stores = {name: prints.store for name, prints in (id_prints | ood_prints | task_prints).items()}
    own = (("the calibration source", calibration), ("`unlabelled`", unlabelled))
    stores |= {name: images.store for name, images in own if images is not None}
    notes = [f"{name}{NOT_COMPARED}" for name, store in stores.items() if isinstance(store, Pixels)]
    for name, prints in (id_prints | ood_prints).items():
        if not isinstance(prints.store, Pixels):
            copies = prints.count - len(first_copies(prints.store, prints.count))
            alike = counted(copies, "image is a copy", "images are copies")
            notes += (
                [f"{name}: {alike} of others in it; each counts in its accuracy"] if copies else []
            )
    if calibration is not None:
        theirs = Fingerprints(calibration)
        for name, prints in ood_prints.items():
            if overlap := find_overlap(prints, theirs):
                raise UsageError(
                    f"{name}: {_how_many(overlap)} also in the calibration source"
                    f" {calibration.source} ({overlap[0]}); images used for calibration are not out"
                    " of distribution; give other images to `data` or `ood`"
                )
        notes += note_shared(
            id_prints | task_prints,
            {"the calibration source": theirs},
            ", which flatters recipes that measure",
        )
    return (
        notes
        + note_shared(ood_prints, id_prints)
        + note_shared(task_prints, id_prints | ood_prints)
    )


def refuse_shared(unlabelled: ImageSet, others: dict[str, Fingerprints]) -> None:
    """Refuse unlabelled images that are also used otherwise."""
    ours = Fingerprints(unlabelled)
    for name, theirs in others.items():
        if overlap := find_overlap(ours, theirs):
            parameter = name.partition(" ")[0]
            raise UsageError(
                f"`unlabelled` {unlabelled.source}: {_how_many(overlap)} also in {name}"
                f" ({overlap[0]}); a model is not judged on images that it learned from, so give"
                f" other images to `unlabelled` or {parameter}"
            )


def note_shared(
    ours: dict[str, Fingerprints], others: dict[str, Fingerprints], therefore: str = ""
) -> list[str]:
    """Note the images that sources share, by their flag and name on the command line."""
    overlaps = [
        (name, other, find_overlap(ours[name], others[other])) for name in ours for other in others
    ]
    return [
        f"{name}: {_how_many(overlap)} also in {other} ({overlap[0]}){therefore}"
        for name, other, overlap in overlaps
        if overlap
    ]


def _how_many(overlap: Sequence[str]) -> str:
    return counted(len(overlap), "image is", "images are")
