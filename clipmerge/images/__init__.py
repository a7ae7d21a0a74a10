"""Where labelled images come from, one file a kind of source; `clipmerge.images.dataset` names and samples them."""

from clipmerge.images.columns import Columns
from clipmerge.images.store import Encoded, Labelled, Store

__all__ = ["Columns", "Encoded", "Labelled", "Store"]
