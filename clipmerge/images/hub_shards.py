"""Tar shards of a data set on the Hub: the texts beside them, and only the shards that a sample needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from clipmerge.errors import DataError
from clipmerge.hub.download import download
from clipmerge.hub.ids import HubId
from clipmerge.images.columns import Columns
from clipmerge.images.description import CLASS_NAMES, KIND, SHARDS, TEMPLATES, Description, read_description
from clipmerge.images.file_store import LocalFiles
from clipmerge.images.sampling import holds_a_balanced_sample
from clipmerge.images.store import Labelled
from clipmerge.images.webdataset import Shard, joined, load_tars, numbers_of, read_shard

# Number of shards after which a note says that classes are still missing, because they seem to come in order.
_PATIENCE = 4


@dataclass(frozen=True)
class HubShards:
    """The shards of one split at one commit; nothing but the texts beside them is downloaded yet.

    Attributes:
        source: The source as the user wrote it, for messages.
        pinned: The data set at a commit.
        files: Names of the shards in the repository, in order.
        described: The texts beside them.
        cached: Whether to use only files in the cache.
    """

    source: str
    pinned: HubId
    files: tuple[str, ...]
    described: Description
    cached: bool

    def load(self, columns: Columns) -> Labelled:
        """Download all shards and open them as one source."""
        self._require_classes(columns)
        return load_tars(self.source, LocalFiles(), self.paths(self.files), columns, self.described)

    def load_some(self, columns: Columns, count: int, seed: int) -> Labelled:
        """Download shards until they hold a class-balanced sample of ``count`` images, and open these as one source.

        Shards are taken in a seeded order. A set with one class after another needs more shards than a shuffled one.
        """
        classes = self._require_classes(columns)
        notes: tuple[str, ...] = ()
        taken: dict[int, Shard] = {}
        for number in shard_order(len(self.files), seed):
            (path,) = self.paths([self.files[number]])
            taken[number] = read_shard(LocalFiles(), path, columns)
            labels = numbers_of(list(taken.values()))
            if holds_a_balanced_sample(labels, count, classes):
                break
            if len(taken) == _PATIENCE and len(self.files) > _PATIENCE:
                notes = (
                    f"{self.source}: {_PATIENCE} of {len(self.files)} shards hold {len(set(labels))} classes, too few "
                    "for a balanced sample; reading further shards",
                )
        opened = joined(self.source, LocalFiles(), [taken[number] for number in sorted(taken)], self.described)
        return replace(opened, notes=(*notes, *opened.notes))

    def _require_classes(self, columns: Columns) -> int:
        """Number of classes known by name; 0 if no labels are read."""
        if not columns.labelled:
            return 0
        self.described.require_classes(self.source)
        return len(self.described.class_names or ())

    def paths(self, files: Iterable[str]) -> list[str]:
        """Download shards into the Hub cache; their paths there."""
        wanted = list(files)
        folder = download(self.pinned, wanted, cached=self.cached)
        return [str(folder / file) for file in wanted]


def find_shards(source: str, pinned: HubId, listed: Sequence[str], files: Sequence[str], *, cached: bool) -> HubShards:
    """Read the texts beside the shards of a split, and check that no shard is missing.

    Args:
        source: The source as the user wrote it, for messages.
        pinned: The data set at a commit.
        listed: All files of the repository; with ``cached`` those in the cache.
        files: The split's shards among them, in order.
        cached: Whether to use only files in the cache.
    """
    folder = PurePosixPath(files[0]).parent
    texts = {name: name for name in (CLASS_NAMES, TEMPLATES, KIND)} | {SHARDS: str(folder / SHARDS)}
    there = {name: path for name, path in texts.items() if path in listed}
    described = Description()
    if there:
        root = download(pinned, there.values(), cached=cached)
        described = read_description(lambda name: root / there[name] if name in there else None)
    if described.shards is not None:
        counted = tuple(str(folder / f"{number}.tar") for number in range(described.shards))
        missing = [Path(name).name for name in counted if name not in files]
        if missing and not cached:
            raise DataError(
                f"{source}: {folder / SHARDS} counts {described.shards} shards, {len(missing)} of them are not there "
                f"(first {missing[0]}); upload them, or correct the number"
            )
        files = counted
    return HubShards(source, pinned, tuple(files), described, cached)


def shard_order(count: int, seed: int) -> list[int]:
    """Draw the order of the shards for a sample."""
    return [int(number) for number in np.random.default_rng([seed, count]).permutation(count)]
