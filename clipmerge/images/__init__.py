"""Labelled images: one file per kind of source; `dataset` loads them, `batches` preprocesses
them.
"""

from clipmerge.images.columns import Columns
from clipmerge.images.store import Encoded, Labelled, Store

__all__ = ["Columns", "Encoded", "Labelled", "Store"]
