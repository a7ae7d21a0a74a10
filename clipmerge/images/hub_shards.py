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
from clipmerge.images.places import Local
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

    def load(self, asked: Columns) -> Labelled:
        """Download all shards and open them as one source.

        Args:
            asked: Endings that the user named.

        Raises:
            DataError: If a shard cannot be used.
            HubError: If the Hub refuses or cannot be reached.
        """
        self._require_classes(asked)
        return load_tars(self.source, Local(), self.paths(self.files), asked, self.described)

    def load_some(self, asked: Columns, count: int, seed: int) -> Labelled:
        """Download shards until they hold a class-balanced sample, and open these as one source.

        Shards are taken in a seeded order. A set with one class after another needs more shards than a shuffled one.

        Args:
            asked: Endings that the user named.
            count: Images of the sample.
            seed: Seed of the order.

        Raises:
            DataError: If a shard cannot be used.
            HubError: If the Hub refuses or cannot be reached.
        """
        classes = self._require_classes(asked)
        notes: tuple[str, ...] = ()
        taken: dict[int, Shard] = {}
        for number in shard_order(len(self.files), seed):
            (path,) = self.paths([self.files[number]])
            taken[number] = read_shard(Local(), path, asked)
            labels = numbers_of(list(taken.values()))
            if holds_a_balanced_sample(labels, count, classes):
                break
            if len(taken) == _PATIENCE and len(self.files) > _PATIENCE:
                notes = (
                    f"{self.source}: {_PATIENCE} of {len(self.files)} shards hold {len(set(labels))} classes, too few "
                    "for a balanced sample; reading further shards",
                )
        opened = joined(self.source, Local(), [taken[number] for number in sorted(taken)], self.described)
        return replace(opened, notes=(*notes, *opened.notes))

    def _require_classes(self, asked: Columns) -> int:
        """Number of classes known by name; 0 if no labels are read."""
        if not asked.labelled:
            return 0
        self.described.require_classes(self.source)
        return len(self.described.class_names or ())

    def paths(self, files: Iterable[str]) -> list[str]:
        """Download shards into the Hub cache; their paths there.

        Args:
            files: Names in the repository.

        Raises:
            HubError: If the Hub refuses or cannot be reached.
        """
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

    Raises:
        DataError: If a text cannot be used, or a shard is missing.
        HubError: If the Hub refuses or cannot be reached.
    """
    folder = PurePosixPath(files[0]).parent
    places = {name: name for name in (CLASS_NAMES, TEMPLATES, KIND)} | {SHARDS: str(folder / SHARDS)}
    there = {name: place for name, place in places.items() if place in listed}
    described = Description()
    if there:
        root = download(pinned, there.values(), cached=cached)
        described = read_description(lambda name: root / there[name] if name in there else None)
    return HubShards(source, pinned, _counted(source, folder, files, described, cached=cached), described, cached)


def shard_order(count: int, seed: int) -> list[int]:
    """Draw the order of the shards for a sample.

    Args:
        count: Number of shards.
        seed: Seed.
    """
    return [int(number) for number in np.random.default_rng([seed, count]).permutation(count)]


def _counted(
    source: str, folder: PurePosixPath, files: Sequence[str], described: Description, *, cached: bool
) -> tuple[str, ...]:
    """The shards that ``nshards.txt`` counts: ``0.tar`` to ``N-1.tar``."""
    if described.shards is None:
        return tuple(files)
    counted = tuple(str(folder / f"{number}.tar") for number in range(described.shards))
    missing = [Path(name).name for name in counted if name not in files]
    if missing and not cached:
        raise DataError(
            f"{source}: {folder / SHARDS} counts {described.shards} shards, {len(missing)} of them are not there "
            f"(first {missing[0]}); upload them, or correct the number"
        )
    return counted
