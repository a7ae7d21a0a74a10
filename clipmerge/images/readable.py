"""Images that can be read: the others are left out of a source, and counted."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from clipmerge.distributed import cores_per_process
from clipmerge.errors import DataError, counted, shorten
from clipmerge.images.decoding import Encoded, decode
from clipmerge.images.store import OpenedSource, Pixels, Store
from clipmerge.types import Names, Shape

_AT_ONCE = 256


@dataclass(frozen=True)
class _Some(Store):
    """Some of a store's images, read on demand."""

    store: Store
    positions: Shape
    blocks: Shape = ()
    paths: Names = ()

    def read(self, positions: Sequence[int]) -> list[Encoded]:
        """Read images."""
        return self.store.read([self.positions[at] for at in positions])

    def name(self, position: int) -> str:
        """Its name at its source."""
        return self.store.name(self.positions[position])


def without_unreadable(source: str, opened: OpenedSource) -> OpenedSource:
    """Decode every image once, and leave out those that cannot be read."""
    store = opened.store
    count = len(opened.captions or opened.labels)
    if isinstance(store, Pixels):
        return opened
    good: list[int] = []
    with ThreadPoolExecutor(cores_per_process()) as pool:
        for start in range(0, count, _AT_ONCE):
            positions = range(start, min(start + _AT_ONCE, count))
            names = [store.name(position) for position in positions]
            readable = pool.map(_is_readable, names, store.read(positions))
            good += [at for at, is_good in zip(positions, readable, strict=True) if is_good]
    if len(good) == count:
        return opened
    bad = [store.name(at) for at in sorted(set(range(count)).difference(good))]
    if not good:
        raise DataError(f"{source}: none of its {count} images can be read: {shorten(bad, 3)}")
    images = counted(len(bad), "image", "images")
    note = f"{source}: left out {images} (of {count}) that cannot be read: {shorten(bad, 3)}"
    return replace(
        opened,
        store=_Some(
            store,
            tuple(good),
            tuple(store.blocks[at] for at in good) if store.blocks else (),
            tuple(store.paths[at] for at in good) if store.paths else (),
        ),
        labels=tuple(opened.labels[at] for at in good) if opened.labels else (),
        captions=tuple(opened.captions[at] for at in good) if opened.captions else (),
        notes=(*opened.notes, note),
    )


def _is_readable(name: str, encoded: Encoded) -> bool:
    try:
        decode(name, encoded)
    except DataError:
        return False
    return True
