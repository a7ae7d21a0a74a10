"""Datasets on the Hub: ``hf://datasets/ORG/NAME[@REVISION][:SPLIT]``.

Parquet is read in ranges: a sample of a large split downloads the labels and a few row groups. A
tar file has no index and is downloaded whole, but only the files that a sample needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from clipmerge.errors import DataError, NoLabelsError, did_you_mean, shorten
from clipmerge.finding import Finding
from clipmerge.hub.download import Snapshot, connect, resolve
from clipmerge.hub.errors import explained
from clipmerge.hub.ids import PREFIX, parse_dataset
from clipmerge.images.captions import has_captions
from clipmerge.images.classes import as_numbers
from clipmerge.images.hub_splits import SHARDED, SPLITS, card_of, find_splits
from clipmerge.images.local_files import damaged_error, open_local
from clipmerge.images.parquet import load_parquet
from clipmerge.images.sampling import holds_a_balanced_sample
from clipmerge.images.shard_texts import (
    CLASS_NAMES,
    KIND,
    SHARDS,
    TEMPLATES,
    Description,
    read_description,
)
from clipmerge.images.source import Columns, Source
from clipmerge.images.webdataset import (
    Sample,
    columns_of,
    join_samples,
    load_tars,
    read_samples,
    require_folders,
)
from clipmerge.types import Names

if TYPE_CHECKING:
    from huggingface_hub import HfFileSystem

# Number of shards after which a note says that classes are still missing, because they seem to come
# in order.
_PATIENCE = 4


@dataclass(frozen=True)
class Split:
    """One split of a data set on the Hub, at the commit to which its revision points now."""

    source: str
    snapshot: Snapshot
    name: str
    files: Names  # the split's Parquet or tar files
    notes: tuple[Finding, ...]

    @property
    def is_tar(self) -> bool:
        """Whether the files are tar files."""
        return self.files[0].endswith(".tar")

    @cached_property
    def description(self) -> Description:
        """The texts beside the tar files, downloaded."""
        texts = {name: name for name in (CLASS_NAMES, TEMPLATES, KIND)}
        texts[SHARDS] = str(PurePosixPath(self.files[0]).parent / SHARDS)
        there = {name: path for name, path in texts.items() if path in self.snapshot.files}
        root = self.snapshot.download(there.values()) if there else Path()
        return read_description({name: root / path for name, path in there.items()})

    @cached_property
    def shards(self) -> Names:
        """The tar files, in order; none that is counted beside them may be missing."""
        if self.description.shards is None:
            return self.files
        folder = PurePosixPath(self.files[0]).parent
        # of a sample, not all are in the cache
        there = None if self.snapshot.note else {Path(file).name for file in self.files}
        names = self.description.shard_names(self.source, folder, there)
        return tuple(str(folder / name) for name in names)

    def download(self, files: Names) -> list[str]:
        """Download files of the split; their paths."""
        folder = self.snapshot.download(files)
        return [str(folder / file) for file in files]


def open_split(source: str) -> Split:
    """Find the files of one split of ``hf://datasets/ORG/NAME[@REVISION][:SPLIT]``."""
    dataset = parse_dataset(source)
    snapshot = resolve(dataset.hub_id)
    usable = [file for file in snapshot.files if file.endswith((".parquet", ".tar"))]
    if snapshot.note and not usable:
        raise DataError(f"{source}: its images are not in the cache; go online and run again")
    if not usable:
        kinds = sorted({PurePosixPath(file).suffix or file for file in snapshot.files})
        others = [kind for kind in kinds if kind not in (".gitattributes", ".md")]
        raise DataError(
            f"{source}: holds no Parquet or tar files (it holds {shorten(others) or 'nothing'});"
            " the Hub's own Parquet copy of a dataset is at"
            f" {PREFIX}{dataset.hub_id.repo_id}@refs/convert/parquet"
        )
    splits = find_splits(source, dataset, card_of(snapshot), usable)
    notes: tuple[Any, ...] = (snapshot.note,) if snapshot.note else ()
    name = dataset.split or ""
    if not name and len(splits) == 1:
        (name,) = splits
        notes += (Finding.of("only-split", source=source, split=name),)
    if name not in splits:
        name = SPLITS.get(name, name)
    if name not in splits:
        what = f"no split '{dataset.split}'" if dataset.split else "which split?"
        raise DataError(
            f"{source}: {what} (splits: {shorten(splits, 12)}); write it after a"
            f" colon.{did_you_mean(name, splits)}"
        )
    if snapshot.note:  # the names of a split's files say how many there are
        files = splits[name]
        sharded = filter(None, map(SHARDED.fullmatch, files))
        count = max((int(match["count"]) for match in sharded), default=0)
        if count > len(files):
            raise DataError(
                f"{source}: {len(files)} of its {count} files are in the cache; go online and run"
                " again"
            )
    return Split(source, snapshot, name, splits[name], notes)


def load_hub_dataset(
    source: str, columns: Columns, *, whole: bool, max_images: int | None, seed: int
) -> Source:
    """Open one split of a dataset on the Hub; see `clipmerge.images.dataset.open_images` for the
    arguments.
    """
    split = open_split(source)
    if split.is_tar and max_images is not None and not whole:
        opened = _load_some_tars(split, columns, max_images, seed)
    elif split.is_tar:
        opened = load_tars(source, split.download(split.shards), columns, split.description)
    elif whole or split.snapshot.note:
        opened = load_parquet(source, open_local, split.download(split.files), columns)
    else:
        from huggingface_hub import HfFileSystem

        # a revision may hold slashes, which the file system expects quoted; a commit does not
        system = HfFileSystem(endpoint=connect().endpoint, skip_instance_cache=True)
        addresses = [f"{split.snapshot.hub_id}/{file}" for file in split.files]
        opened = load_parquet(source, partial(_open_on_hub, system), addresses, columns)
    return replace(opened, revision=split.snapshot.revision, notes=(*split.notes, *opened.notes))


def _load_some_tars(split: Split, columns: Columns, max_images: int, seed: int) -> Source:
    """Open as many tar files as a class-balanced sample needs, in a seeded order: few of a shuffled
    set.
    """
    columns = columns_of(split.source, columns, split.description)
    classes = len(split.description.class_names or ()) if columns.labelled else 0
    notes: tuple[Finding, ...] = ()
    taken: dict[int, list[Sample]] = {}
    unlabelled: list[Sample] = []
    error: NoLabelsError | None = None
    count = len(split.shards)
    for number in np.random.default_rng([seed, count]).permutation(count).tolist():
        (archive,) = split.download((split.shards[number],))
        taken[number], missing = read_samples(archive, columns)
        unlabelled += taken[number] if missing else []
        error = error or missing
        samples = [sample for shard in sorted(taken) for sample in taken[shard]]
        opened = join_samples(split.source, samples, columns, split.description)
        labels: list[Any] = [label for _, label in samples]
        if has_captions(opened):
            is_enough = len(labels) >= max_images
        else:
            is_enough = holds_a_balanced_sample(as_numbers(labels) or labels, max_images, classes)
            if len(taken) == _PATIENCE < count and not is_enough:
                note = Finding.of(
                    "few-classes-so-far",
                    source=split.source,
                    read=len(taken),
                    shards=count,
                    classes=len(set(labels)),
                )
                notes = (note,)
        if is_enough:
            break
    require_folders(unlabelled, error)
    return replace(opened, notes=(*notes, *opened.notes))


@contextmanager
def _open_on_hub(system: HfFileSystem, address: str) -> Iterator[IO[bytes]]:
    """Open a file of a dataset on the Hub, of which only the ranges that are read are
    downloaded.
    """
    import pyarrow

    with explained(f"reading {address}"):
        try:
            # without read-ahead: the reader knows which ranges it needs
            with system.open(address, "rb", cache_type="none") as file:
                yield file
        except (pyarrow.ArrowException, EOFError) as error:
            raise damaged_error(address, error) from None
