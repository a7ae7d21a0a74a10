"""Labelled images: one file per kind of source; `dataset` loads them, `batches` preprocesses
them.
"""

from clipmerge.images.columns import Columns
from clipmerge.images.decoding import Encoded
from clipmerge.images.store import ImageSet, OpenedSource, Store

__all__ = ["Columns", "Encoded", "ImageSet", "OpenedSource", "Store"]
