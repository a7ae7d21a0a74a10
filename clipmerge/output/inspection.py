"""The JSON of `inspect`, as models. The other listings have a module of their own, since they take
10 ms to define.
"""

from __future__ import annotations

from clipmerge.checkpoint.ancestry import Ancestry
from clipmerge.planning.frozen import Frozen


class Origin(Frozen):
    """A checkpoint that is inspected, and the names of its weight files."""

    source: str
    revision: str | None
    files: tuple[str, ...]


class InspectedLayer(Frozen):
    """A layer: its number of tensors and of entries, its shapes, and how far fine-tuning moved
    it.
    """

    parameters: int
    size: int
    shapes: dict[str, tuple[int, ...]]
    change: float | None = None


class InspectedTotal(Frozen):
    """Tensors, entries, bytes and dtypes of the zero-shot checkpoint."""

    parameters: int
    size: int
    bytes: int
    dtypes: tuple[str, ...]


class Inspection(Frozen):
    """What `inspect` prints."""

    family: str
    zeroshot: Origin
    finetuned: Origin | None
    layers: dict[str, InspectedLayer]
    mismatches: tuple[str, ...]
    ancestry: Ancestry | None
    total: InspectedTotal
