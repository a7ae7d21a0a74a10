"""Datasets on the Hub: ``hf://datasets/ORG/NAME[@REVISION][:SPLIT]``, their splits and files.

A repository's card may list the files of each split of each configuration; otherwise splits are
derived from file names, as the Hub's own viewer does. Parquet is read in ranges: a sample of a
large split downloads the labels and a few row groups. A tar file has no index and is downloaded
whole, but only the files that a sample needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property, partial
from pathlib import Path, PurePosixPath

import numpy as np

from clipmerge.errors import DataError, did_you_mean, shorten
from clipmerge.files.limits import MAX_FRONT_MATTER_BYTES, MAX_TEXT_BYTES
from clipmerge.files.reading import Unreadable, format_size, parse_yaml, read_bytes, refusing
from clipmerge.hub.download import Snapshot, connect, resolve
from clipmerge.hub.ids import PREFIX, DatasetId, parse_dataset
from clipmerge.images.columns import Columns, look_like_captions
from clipmerge.images.file_store import (
    CLASS_NAMES,
    KIND,
    SHARDS,
    TEMPLATES,
    Description,
    open_local,
    open_on_hub,
    read_description,
)
from clipmerge.images.parquet import load_parquet
from clipmerge.images.sampling import holds_a_balanced_sample
from clipmerge.images.store import OpenedSource
from clipmerge.images.webdataset import (
    Sample,
    columns_of,
    joined,
    labels_of,
    load_tars,
    read_samples,
)
from clipmerge.types import Json, Names

_CARD = "README.md"
# Number of shards after which a note says that classes are still missing, because they seem to come
# in order.
_PATIENCE = 4
# Words in file and folder names that name a split, as the Hub reads them, by the split.
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLITS = {word: split for split, words in _WORDS.items() for word in words}
_SHARDED = re.compile(r"(?:.*/)?(?P<split>\w+(?:\.\w+)*)-\d+-of-(?P<count>\d{1,9})\.\w+")


@dataclass(frozen=True)
class Split:
    """One split of a data set on the Hub, at the commit to which its revision points now."""

    source: str
    snapshot: Snapshot
    name: str
    files: Names  # the split's Parquet or tar files
    notes: Names

    @property
    def is_tar(self) -> bool:
        """Whether the files are tar files."""
        return self.files[0].endswith(".tar")

    @cached_property
    def described(self) -> Description:
        """The texts beside the tar files, downloaded."""
        folder = PurePosixPath(self.files[0]).parent
        texts = {name: name for name in (CLASS_NAMES, TEMPLATES, KIND)} | {
            SHARDS: str(folder / SHARDS)
        }
        there = {name: path for name, path in texts.items() if path in self.snapshot.files}
        root = self.snapshot.download(there.values()) if there else Path()
        return read_description(lambda name: root / there[name] if name in there else None)

    @cached_property
    def shards(self) -> Names:
        """The tar files, in order; none that is counted beside them may be missing."""
        if self.described.shards is None:
            return self.files
        folder = PurePosixPath(self.files[0]).parent
        # of a sample, not all are in the cache
        there = None if self.snapshot.note else {Path(file).name for file in self.files}
        return tuple(
            str(folder / name) for name in self.described.shard_names(self.source, folder, there)
        )

    def read_samples(
        self, columns: Columns, seed: int | None, enough: Callable[[list[Sample]], bool]
    ) -> list[Sample]:
        """Download shards until they hold enough, in a seeded order or from the first to the last;
        samples in order.
        """
        count, taken = len(self.shards), dict[int, list[Sample]]()
        order = (
            range(count)
            if seed is None
            else np.random.default_rng([seed, count]).permutation(count).tolist()
        )
        for number in order:
            folder = self.snapshot.download([self.shards[number]])
            taken[number] = read_samples(str(folder / self.shards[number]), columns)
            if enough([sample for shard in taken.values() for sample in shard]):
                break
        return [sample for number in sorted(taken) for sample in taken[number]]


def open_split(source: str) -> Split:
    """Find the files of one split of ``hf://datasets/ORG/NAME[@REVISION][:SPLIT]``."""
    dataset = parse_dataset(source)
    snapshot = resolve(dataset.hub_id)
    usable = [file for file in snapshot.files if file.endswith((".parquet", ".tar"))]
    if snapshot.note and not usable:
        raise DataError(f"{source}: its images are not in the cache; go online and run again")
    if not usable:
        kinds = sorted(
            {PurePosixPath(file).suffix or file for file in snapshot.files}
            - {".gitattributes", ".md"}
        )
        raise DataError(
            f"{source}: holds no Parquet or tar files (it holds {shorten(kinds) or 'nothing'}); the"
            " Hub's own Parquet copy of a dataset is at"
            f" {PREFIX}{dataset.hub_id.repo_id}@refs/convert/parquet"
        )
    splits = _splits(source, dataset, card_of(snapshot), usable)
    if snapshot.note:  # the names of a split's files say how many there are
        files = splits.get(dataset.split or "", [])
        count = max(
            (int(match["count"]) for file in files if (match := _SHARDED.fullmatch(file))),
            default=0,
        )
        if count > len(files):
            raise DataError(
                f"{source}: {len(files)} of its {count} files are in the cache; go online and run"
                " again"
            )
    notes: Names = (snapshot.note,) if snapshot.note else ()
    name = dataset.split
    if name is None and len(splits) == 1:
        (name,) = splits
        notes += (f"{source}: reading its only split, {name}",)
    if name not in splits:
        name = _SPLITS.get(name or "", name)
    if name is None or name not in splits:
        hint = did_you_mean(name or "", splits)
        what = f"no split '{dataset.split}'" if dataset.split else "which split?"
        raise DataError(
            f"{source}: {what} (splits: {shorten(splits, 12)}); write it after a colon.{hint}"
        )
    return Split(source, snapshot, name, tuple(splits[name]), notes)


def load_hub_dataset(
    source: str, columns: Columns, *, whole: bool, most: int | None, seed: int
) -> OpenedSource:
    """Open one split of a dataset on the Hub; see `clipmerge.images.dataset.load_images` for the
    arguments.
    """
    split = open_split(source)
    if split.is_tar:
        labelled = _load_tars(split, columns, None if whole else most, seed)
    elif whole or split.snapshot.note:
        folder = split.snapshot.download(split.files)
        labelled = load_parquet(
            source, open_local, [str(folder / file) for file in split.files], columns
        )
    else:
        from huggingface_hub import HfFileSystem

        # a revision may hold slashes, which the file system expects quoted; a commit does not
        system = HfFileSystem(endpoint=connect().endpoint, skip_instance_cache=True)
        addresses = [f"{split.snapshot.hub_id}/{file}" for file in split.files]
        labelled = load_parquet(source, partial(open_on_hub, system), addresses, columns)
    return replace(
        labelled, revision=split.snapshot.revision, notes=(*split.notes, *labelled.notes)
    )


def _load_tars(split: Split, columns: Columns, most: int | None, seed: int) -> OpenedSource:
    """Open the tar files as one source: all, or those that a class-balanced sample needs, fewer of
    a shuffled set.
    """
    columns = columns_of(split.source, columns, split.described)
    classes = len(split.described.class_names or ()) if columns.labelled else 0
    if most is None:
        folder = split.snapshot.download(split.shards)
        paths = [str(folder / name) for name in split.shards]
        return load_tars(split.source, paths, columns, split.described)
    notes: list[str] = []

    def enough(taken: list[Sample]) -> bool:
        labels = labels_of(taken)
        if columns.caption is not None or look_like_captions(labels):
            return len(labels) >= most
        if holds_a_balanced_sample(labels, most, classes):
            return True
        if len({member.archive for member, _ in taken}) == _PATIENCE < len(split.shards):
            notes.append(
                f"{split.source}: {_PATIENCE} of {len(split.shards)} shards hold {len(set(labels))}"
                " classes, too few for a balanced sample; reading further shards"
            )
        return False

    samples = split.read_samples(columns, seed, enough)
    opened = joined(split.source, samples, columns, split.described)
    return replace(opened, notes=(*notes, *opened.notes))


def card_of(snapshot: Snapshot) -> Json:
    """Read the metadata of the dataset's card."""
    if _CARD not in snapshot.files:
        return {}
    file = snapshot.download([_CARD]) / _CARD
    with refusing(DataError, f"reading the card of {snapshot.hub_id}: it cannot be read"):
        return front_matter(read_bytes(file, MAX_TEXT_BYTES).decode("utf-8", errors="replace"))


def front_matter(card: str) -> Json:
    """Read the metadata in front of a card's text; empty if there are none."""
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)^---[ \t]*$", card, re.DOTALL | re.MULTILINE)
    text = match[1] if match else ""
    if len(text) > MAX_FRONT_MATTER_BYTES:
        raise Unreadable(f"its metadata are larger than {format_size(MAX_FRONT_MATTER_BYTES)}")
    data = parse_yaml(text)
    return data if isinstance(data, dict) else {}


def _splits(source: str, dataset: DatasetId, card: Json, usable: list[str]) -> dict[str, list[str]]:
    """Files by split, for the configuration that the user or the card names; otherwise from the
    files' names.
    """
    listed = card.get("configs")
    configs = {
        str(config.get("config_name", "default")): config
        for config in (listed if isinstance(listed, list) else [])
        if isinstance(config, dict) and config.get("data_files")
    }
    splits: dict[str, list[str]] = {}
    if configs:
        named = _config(source, dataset.config, configs)[
            "data_files"
        ]  # one pattern, several, or {split, path}
        if not (isinstance(named, list) and all(isinstance(entry, dict) for entry in named)):
            named = [{"path": named}]
        for entry in named:
            split, patterns = str(entry.get("split", "train")), entry.get("path")
            patterns = patterns if isinstance(patterns, list) else [patterns]
            globs = [str(pattern).replace("**/", "*").removeprefix("./") for pattern in patterns]
            splits[split] = [
                file for file in usable if any(fnmatchcase(file, glob) for glob in globs)
            ]
    else:
        folder = f"{dataset.config}/" if dataset.config else ""
        inside = [file for file in usable if file.startswith(folder)]
        if not inside:
            folders = sorted({file.split("/")[0] for file in usable if "/" in file})
            raise DataError(
                f"{source}: no configuration '{dataset.config}' (folders:"
                f" {shorten(folders) or 'none'})"
            )
        for file in inside:
            splits.setdefault(_split_in(file), []).append(file)
    splits = {split: sorted(files, key=_by_number) for split, files in splits.items() if files}
    for split, files in splits.items():
        if len({file.endswith(".tar") for file in files}) > 1:
            raise DataError(
                f"{source}: split '{split}' holds Parquet and tar files; give the files of one kind"
            )
    if not splits:
        raise DataError(f"{source}: the files that its card names are not Parquet or tar files")
    return splits


def _config(source: str, name: str | None, configs: dict[str, Json]) -> Json:
    """The configuration of that name; without one the default, or the only one."""
    marked = [config for config, described in configs.items() if described.get("default")]
    chosen = name or next(iter(marked), "default" if "default" in configs else None)
    if chosen is None and len(configs) == 1:
        (chosen,) = configs
    if chosen is None or chosen not in configs:
        what = f"no configuration '{chosen}'" if chosen else "which configuration?"
        raise DataError(
            f"{source}: {what} (there are {shorten(configs, 12)}); write :CONFIG/SPLIT after the"
            " name"
        )
    return configs[chosen]


def _split_in(file: str) -> str:
    """The split named by a path: ``data/NAME-00000-of-00002.parquet``, or a word such as ``test``
    in it.
    """
    if sharded := _SHARDED.fullmatch(file):
        return _SPLITS.get(sharded["split"], sharded["split"])
    words = [
        word
        for part in reversed(PurePosixPath(file).parts)
        for word in re.split(r"[^a-z]+", part.lower())
    ]
    return next((_SPLITS[word] for word in words if word in _SPLITS), "train")


def _by_number(file: str) -> list[str | int]:
    """Sort key that puts ``2.tar`` before ``10.tar``."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d{1,18})", file)]
