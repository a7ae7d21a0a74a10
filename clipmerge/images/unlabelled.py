"""Find images without labels, from the same sources as labelled ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from clipmerge.errors import DataError
from clipmerge.images import Columns
from clipmerge.images.dataset import LabelledImages, find_source, open_source
from clipmerge.images.in_memory import open_in_memory
from clipmerge.images.known import Named

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
