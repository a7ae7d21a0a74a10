"""Find images without labels, from the same sources as labelled ones, and identify them by their content."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipmerge.errors import DataError
from clipmerge.files.hashes import sha256_of
from clipmerge.images import Columns
from clipmerge.images.dataset import LabelledImages, find_source, open_source
from clipmerge.images.decoding import unreadable
from clipmerge.images.in_memory import open_in_memory
from clipmerge.images.known import Named
from clipmerge.images.store import Pixels

# The single class that all images get.
_CLASS = "unlabelled"


def load_unlabelled(source: Any, columns: Columns | None = None, *, most: int, seed: int = 0) -> LabelledImages:
    """Find images whose labels are neither needed nor read.

    Args:
        source: A folder with images at any depth, or any other source of `clipmerge.images.dataset.load_images`. In
            memory also a list of `PIL.Image`, or a torch ``Dataset`` or ``DataLoader`` of images alone.
        columns: The columns that the user named; the image column is used if there is one of that name.
        most: Images that a sample will take.
        seed: Seed of the sample.

    Returns:
        The images, not decoded yet, all of one class.

    Raises:
        DataError: If there are no images, or they cannot be used.
        HubError: If the Hub refuses or cannot be reached.
    """
    unlabelled = replace(columns or Columns(), label=None, labelled=False)
    if isinstance(source, str):
        source = find_source(source)
    called = source.address if isinstance(source, Named) else source
    if isinstance(called, str):
        opened = open_source(called, unlabelled, most=most, seed=seed)
    else:
        called, opened = open_in_memory(source, unlabelled, most)
    if not opened.labels:
        raise DataError(f"{called}: holds no images; give --unlabelled images from where the model will be used")
    return LabelledImages(called, opened.store, (0,) * len(opened.labels), (_CLASS,), opened.revision, opened.notes)


def content_digest(images: LabelledImages) -> str:
    """Identify images by their content and order, independently of their place.

    Args:
        images: The images; those that are not files are in memory, as in every sample.

    Returns:
        The sha256 over the sha256 of each image: of its encoded bytes, or of its pixels if it is preprocessed.

    Raises:
        DataError: If a file cannot be read.
    """
    whole = hashlib.sha256()
    for place in range(len(images)):
        whole.update(_digest(images, place).encode())
    return whole.hexdigest()


def _digest(images: LabelledImages, place: int) -> str:
    if isinstance(images.store, Pixels):
        return hashlib.sha256(images.store.batch([place]).numpy().tobytes()).hexdigest()
    (image,) = images.store.read([place])
    if image["bytes"] is not None:
        return hashlib.sha256(image["bytes"]).hexdigest()
    path = str(image["path"])
    try:
        return sha256_of(Path(path))
    except OSError as error:
        raise unreadable(path, error) from None
