"""The content of images: which are copies of one another, and a hash of them all."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from clipmerge.files.hashes import sha256_of
from clipmerge.images.decoding import unreadable
from clipmerge.images.store import Pixels, Store

if TYPE_CHECKING:
    from clipmerge.images.dataset import LabelledImages

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


def content_digest(images: LabelledImages) -> str:
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
