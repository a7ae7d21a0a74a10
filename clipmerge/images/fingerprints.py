"""Copies of images by their content: inside one source, and between sources."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from clipmerge.errors import UsageError, counted
from clipmerge.files.hashes import sha256_of
from clipmerge.finding import Finding
from clipmerge.images.decoding import image_sides, unreadable_error
from clipmerge.images.image_set import ImageSet
from clipmerge.images.store import Pixels, Store

T = TypeVar("T")
# Name of the images that recipes measure on, which flatter these recipes where they are judged.
_CALIBRATION = "the calibration source"


def read_file(path: str, read: Callable[[Path], T]) -> T:
    """Read a file; one that cannot be read is named in the error."""
    try:
        return read(Path(path))
    except OSError as error:
        raise unreadable_error(path, error) from None


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


def first_copies(store: Store) -> list[int]:
    """Positions of the images that are not copies of an earlier one, ascending; files are read if
    sizes are equal.
    """
    sizes = [read_file(path, Path.stat).st_size for path in store.paths] or [0] * len(store)
    alike = Counter(sizes)
    first: dict[tuple[int, str], int] = {}
    for position, size in enumerate(sizes):
        digest = digest_of(store, position) if alike[size] > 1 else ""
        first.setdefault((size, digest), position)
    return list(first.values())


class Fingerprints:
    """Fingerprints of the images of one source, read on demand."""

    def __init__(self, images: ImageSet) -> None:
        self.store = images.store
        self._digests: dict[Any, list[tuple[str, int]]] = {}

    @cached_property
    def by_size(self) -> dict[Any, list[int]]:
        """Files by size in bytes: only files of the same size can have equal content."""
        return _grouped(read_file(path, Path.stat).st_size for path in self.store.paths)

    @cached_property
    def by_sides(self) -> dict[Any, list[int]]:
        """Images by shorter and longer side: only images with equal sides can have the same pixels,
        rotated or not.
        """
        positions = range(len(self.store))
        return _grouped(
            image_sides(self.store.name(at), *self.store.read([at])) for at in positions
        )

    def digests(self, key: Any, positions: Iterable[int]) -> list[tuple[str, int]]:
        """Hashes of the images of one size or with the same sides, with their positions."""
        if key not in self._digests:
            hashed = self._hash_pixels if isinstance(key, tuple) else self._hash_file
            self._digests[key] = [(hashed(position), position) for position in positions]
        return self._digests[key]

    def _hash_file(self, position: int) -> str:
        return read_file(self.store.paths[position], sha256_of)

    def _hash_pixels(self, position: int) -> str:
        image = self.store.image(position)
        return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def _grouped(keys: Iterable[Any]) -> dict[Any, list[int]]:
    """Positions by the key there."""
    positions: dict[Any, list[int]] = {}
    for position, key in enumerate(keys):
        positions.setdefault(key, []).append(position)
    return positions


def find_overlap(ours: Fingerprints, theirs: Fingerprints) -> list[str]:
    """Pairs of images that two sources share: by content if both have files, otherwise by their
    pixels.
    """
    if isinstance(ours.store, Pixels) or isinstance(theirs.store, Pixels):
        return []  # preprocessed images can be compared with nothing
    if ours.store.paths and theirs.store.paths:
        mine = ours.by_size
        others = theirs.by_size
        what = "content"
    else:
        mine = ours.by_sides
        others = theirs.by_sides
        what = "pixels"
    pairs: dict[int, str] = {}
    for key in [key for key in mine if key in others]:
        names = {digest: theirs.store.name(at) for digest, at in theirs.digests(key, others[key])}
        for digest, position in ours.digests(key, mine[key]):
            if digest in names:
                name = ours.store.name(position)
                other = names[digest]
                pairs[position] = (
                    f"{name} is in both" if other == name else f"{name} has the {what} of {other}"
                )
    return [pairs[position] for position in sorted(pairs)]


def check_overlap(
    calibration: ImageSet | None,
    ids: Mapping[str, ImageSet],
    oods: Mapping[str, ImageSet],
    unlabelled: ImageSet | None = None,
    tasks: Mapping[str, ImageSet] | None = None,
) -> list[Finding]:
    """Refuse OOD images that recipes are calibrated on, and unlabelled ones used again; note others
    used twice.

    Copies inside one source are noted too, since each counts in its accuracy.
    """
    id_prints = {f"`id` {name}": Fingerprints(images) for name, images in ids.items()}
    ood_prints = {f"`ood` {name}": Fingerprints(images) for name, images in oods.items()}
    task_prints = {f"`ood` {name}": Fingerprints(images) for name, images in (tasks or {}).items()}
    evaluated = id_prints | ood_prints | task_prints
    if unlabelled is not None:
        refuse_shared(unlabelled, evaluated)
    stores = {name: prints.store for name, prints in evaluated.items()}
    stores |= {} if calibration is None else {_CALIBRATION: calibration.store}
    stores |= {} if unlabelled is None else {"`unlabelled`": unlabelled.store}
    notes = [
        Finding.of("not-compared", source=name)
        for name, store in stores.items()
        if isinstance(store, Pixels)
    ]
    for name in id_prints | ood_prints:
        notes += note_copies(name, stores[name])
    if calibration is not None:
        theirs = Fingerprints(calibration)
        for name, prints in ood_prints.items():
            if overlap := find_overlap(prints, theirs):
                raise UsageError(
                    f"{name}: {_how_many(overlap)} also in the calibration source"
                    f" {calibration.source} ({overlap[0]}); images used for calibration are not out"
                    " of distribution; give other images to `data` or `ood`"
                )
        notes += note_shared(id_prints | task_prints, {_CALIBRATION: theirs})
    notes += note_shared(ood_prints, id_prints)
    return notes + note_shared(task_prints, id_prints | ood_prints)


def note_copies(name: str, store: Store) -> list[Finding]:
    """Note the copies inside one source, by its name; preprocessed images are not looked at."""
    copies = 0 if isinstance(store, Pixels) else len(store) - len(first_copies(store))
    return [Finding.of("copies", source=name, images=copies)] if copies else []


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


def note_shared(ours: dict[str, Fingerprints], others: dict[str, Fingerprints]) -> list[Finding]:
    """Note the images that sources share, by their flag and name on the command line."""
    return [
        Finding.of(
            "shared-images",
            source=name,
            other=other,
            images=len(overlap),
            example=overlap[0],
            measured=other == _CALIBRATION,
        )
        for name, mine in ours.items()
        for other, theirs in others.items()
        if (overlap := find_overlap(mine, theirs))
    ]


def _how_many(overlap: Sequence[str]) -> str:
    return counted(len(overlap), "image is", "images are")
