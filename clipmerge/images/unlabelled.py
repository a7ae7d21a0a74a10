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
    """Find images whose labels are neither needed nor read."""
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
    """Identify images by their content and order, independently of their place."""
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
