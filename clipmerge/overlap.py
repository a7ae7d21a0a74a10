"""Whether two sources share images: the same file, a link to it, or another file of the same content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from clipmerge.checkpoint.source import sha256_of
from clipmerge.data import LabelledImages


@dataclass(frozen=True)
class Overlap:
    """What two sources share.

    Attributes:
        count: Images of the first source that are also in the second.
        first: One of them, and what it equals.
    """

    count: int
    first: str


class Fingerprints:
    """What the images of one source can be recognised by; nothing is read before it is asked for."""

    def __init__(self, images: LabelledImages) -> None:
        """Take the images.

        Args:
            images: Any source; those without files are told by their pixels.
        """
        self.images = images
        self._hashes: dict[int, dict[str, str]] = {}

    @cached_property
    def files(self) -> dict[tuple[int, int], str]:
        """Device and inode to file; links, hard or symbolic, lead to the same."""
        found = {}
        for path in self.images.paths:
            status = Path(path).stat()
            found[status.st_dev, status.st_ino] = path
        return found

    @cached_property
    def by_size(self) -> dict[int, list[str]]:
        """Bytes to files: only files of one size can have one content."""
        found: dict[int, list[str]] = {}
        for path in self.images.paths:
            found.setdefault(Path(path).stat().st_size, []).append(path)
        return found

    def with_content(self, size: int, digest: str) -> str | None:
        """The file of that size and hash, if there is one."""
        if size not in self._hashes:
            self._hashes[size] = {sha256_of(Path(path)): path for path in self.by_size.get(size, [])}
        return self._hashes[size].get(digest)

    @cached_property
    def pixels(self) -> dict[str, str]:
        """Hash of an image's size and RGB pixels to what it is called."""
        found = {}
        for place in range(len(self.images)):
            image = self.images.image(place)
            digest = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
            found[digest] = self.images.paths[place] if self.images.paths else f"image {place}"
        return found


def find_overlap(ours: Fingerprints, theirs: Fingerprints) -> Overlap | None:
    """Look for images that two sources share.

    Files are compared by where they lead and by their bytes; where a source has no files, decoded images are.

    Args:
        ours: One source.
        theirs: The other.

    Returns:
        What is shared, or ``None``.

    Raises:
        DataError: If an image has to be decoded and cannot be.
    """
    if not (ours.images.paths and theirs.images.paths):
        same = {digest: name for digest, name in ours.pixels.items() if digest in theirs.pixels}
        pairs = [f"{name} has the pixels of {theirs.pixels[digest]}" for digest, name in same.items()]
    else:
        pairs = [told for path in ours.images.paths if (told := _same_file(path, ours, theirs))]
    return Overlap(len(pairs), pairs[0]) if pairs else None


def _same_file(path: str, ours: Fingerprints, theirs: Fingerprints) -> str | None:
    status = Path(path).stat()
    same = theirs.files.get((status.st_dev, status.st_ino))
    if same is not None:
        return f"{path} is {'in both' if same == path else same}"
    if status.st_size not in theirs.by_size:
        return None
    other = theirs.with_content(status.st_size, sha256_of(Path(path)))
    return other and f"{path} has the content of {other}"
