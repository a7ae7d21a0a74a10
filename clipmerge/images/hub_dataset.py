"""Datasets on the Hub: ``hf://datasets/ORG/NAME[@REVISION][:SPLIT]``, their splits and files.

A repository's card may list the files of each split of each configuration; otherwise splits are derived from file
names, as the Hub's own viewer does. Parquet is read in ranges: a sample of a large split downloads the labels and a
few row groups. A tar file has no index and is downloaded whole, but only the files that a sample needs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

import yaml

from clipmerge.errors import DataError, did_you_mean, shorten
from clipmerge.files.limits import LARGEST_FRONT_MATTER, LARGEST_TEXT
from clipmerge.files.reading import Unreadable, read_bytes, told_size
from clipmerge.hub.download import Resolved, connect, download, resolve
from clipmerge.hub.ids import HubId
from clipmerge.images.columns import Columns
from clipmerge.images.dataset_id import PREFIX, DatasetId, parse_dataset
from clipmerge.images.hub_shards import HubShards, find_shards
from clipmerge.images.parquet import load_parquet
from clipmerge.images.places import Local, Remote
from clipmerge.images.store import Labelled

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CARD = "README.md"
# Words in file and folder names that name a split, as the Hub reads them.
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SHARDED = re.compile(r"(?:.*/)?(?P<split>\w+(?:\.\w+)*)-\d+-of-\d+\.\w+")


@dataclass(frozen=True)
class Split:
    """One split of a data set on the Hub, at the commit to which its revision points now.

    Attributes:
        source: The source as the user wrote it.
        resolved: The commit, and the files of the repository.
        pinned: The data set at that commit.
        name: Name of the split.
        files: The split's Parquet or tar files.
        notes: Notes for the user.
    """

    source: str
    resolved: Resolved
    pinned: HubId
    name: str
    files: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def is_tar(self) -> bool:
        """Whether the files are tar files."""
        return self.files[0].endswith(".tar")

    @property
    def cached(self) -> bool:
        """Whether to use only files in the cache."""
        return self.resolved.note is not None

    def shards(self) -> HubShards:
        """The tar files, and the texts beside them.

        Raises:
            DataError: If a text cannot be used, or a shard is missing.
            HubError: If the Hub refuses or cannot be reached.
        """
        return find_shards(self.source, self.pinned, self.resolved.files, self.files, cached=self.cached)


def open_split(source: str) -> Split:
    """Find the files of one split.

    Args:
        source: ``hf://datasets/ORG/NAME[@REVISION][:SPLIT]``.

    Raises:
        DataError: If there is no such split.
        HubError: If the Hub refuses or cannot be reached.
    """
    dataset = parse_dataset(source)
    resolved = resolve(dataset.hub_id)
    pinned = dataset.hub_id.at(resolved.sha)
    name, files = _files_of_split(source, dataset, pinned, resolved)
    notes: tuple[str, ...] = (resolved.note,) if resolved.note else ()
    if dataset.split is None:
        notes += (f"{source}: reading its only split, {name}",)
    return Split(source, resolved, pinned, name, tuple(files), notes)


def load_hub_dataset(source: str, asked: Columns, *, whole: bool, most: int | None = None, seed: int = 0) -> Labelled:
    """Open one split of a dataset on the Hub, at the commit to which its revision points now.

    Args:
        source: The source as the user wrote it.
        asked: The columns that the user named.
        whole: Whether all images will be read: the files are then downloaded into the Hub cache.
        most: Maximum size of the sample, ``None`` for all images: only the tar files that it needs are downloaded.
        seed: Seed of the sample.

    Returns:
        The source.

    Raises:
        DataError: If there is no such split, or it cannot be used.
        HubError: If the Hub refuses or cannot be reached.
    """
    split = open_split(source)
    if split.is_tar:
        shards = split.shards()
        labelled = shards.load(asked) if whole or most is None else shards.load_some(asked, most, seed)
    elif whole or split.cached:
        folder = download(split.pinned, split.files, cached=split.cached)
        labelled = load_parquet(source, Local(), [str(folder / file) for file in split.files], asked)
    else:
        labelled = load_parquet(source, _remote(split.pinned), split.files, asked)
    return replace(labelled, revision=split.resolved.sha, notes=(*split.notes, *labelled.notes))


def front_matter_of(split: Split) -> dict[str, Any]:
    """Read the metadata of the card of a split's data set.

    Args:
        split: The split.

    Raises:
        DataError: If it cannot be read.
        HubError: If the Hub refuses or cannot be reached.
    """
    return _card(split.pinned, split.resolved)


def _remote(pinned: HubId) -> Remote:
    from huggingface_hub import HfFileSystem

    api = connect()
    # a revision may hold slashes, which the file system expects quoted; a commit does not
    system = HfFileSystem(endpoint=api.endpoint, skip_instance_cache=True)
    return Remote(system, f"datasets/{pinned.repo_id}@{pinned.revision}")


#: Names of folders and files that the Hub assigns to another split.
_ALSO = {"val": "validation", "valid": "validation", "dev": "validation"}


def _files_of_split(source: str, dataset: DatasetId, pinned: HubId, resolved: Resolved) -> tuple[str, list[str]]:
    """Choose the split asked for, and list its files."""
    usable = [file for file in resolved.files if file.endswith((".parquet", ".tar"))]
    if not usable:
        raise DataError(_not_readable(source, dataset, resolved))
    splits = _splits(source, dataset, _card(pinned, resolved), usable)
    names = list(splits)
    if resolved.note:
        _check_complete(source, splits.get(dataset.split or "", []))
    if dataset.split is None and len(names) == 1:
        return names[0], splits[names[0]]
    wanted = _ALSO.get(dataset.split or "", dataset.split) if dataset.split not in splits else dataset.split
    if wanted not in splits:
        hint = did_you_mean(dataset.split or "", names)
        what = f"no split '{dataset.split}'" if dataset.split else "which split?"
        raise DataError(f"{source}: {what} (splits: {shorten(names, 12)}); write it after a colon.{hint}")
    return wanted, splits[wanted]


def _not_readable(source: str, dataset: DatasetId, resolved: Resolved) -> str:
    if resolved.note:
        return f"{source}: its images are not in the cache; go online and run again"
    kinds = sorted({PurePosixPath(file).suffix or file for file in resolved.files} - {".gitattributes", ".md"})
    return (
        f"{source}: holds no Parquet or tar files (it holds {shorten(kinds) or 'nothing'}); the Hub's own Parquet copy "
        f"of a dataset is at {PREFIX}{dataset.hub_id.repo_id}@refs/convert/parquet"
    )


def _check_complete(source: str, files: list[str]) -> None:
    """Refuse a split that is only partly in the cache: the names of its files say how many there are."""
    counts = {int(match[1]) for file in files if (match := re.search(r"-of-(\d{1,9})\.", file))}
    if counts and max(counts) > len(files):
        raise DataError(f"{source}: {len(files)} of its {max(counts)} files are in the cache; go online and run again")


def _card(pinned: HubId, resolved: Resolved) -> dict[str, Any]:
    """Read the metadata of the dataset's card."""
    if _CARD not in resolved.files:
        return {}
    file = download(pinned, [_CARD], cached=resolved.note is not None) / _CARD
    try:
        text = read_bytes(file, LARGEST_TEXT).decode("utf-8", errors="replace")
    except Unreadable as error:
        raise DataError(f"reading the card of {pinned}: it cannot be read ({error})") from None
    return front_matter(str(pinned), text)


def front_matter(where: str, card: str) -> dict[str, Any]:
    r"""Read the metadata in front of a card's text.

    Args:
        where: The repository, for messages.
        card: The text.

    Returns:
        The metadata; empty if the card has none.

    Raises:
        DataError: If it is longer than such metadata are, or cannot be read.

    Example:
        >>> front_matter("acme/cars", "---\nlicense: mit\n---\n# Cars")
        {'license': 'mit'}
    """
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)^---[ \t]*$", card, re.DOTALL | re.MULTILINE)
    text = match[1] if match else ""
    if len(text) > LARGEST_FRONT_MATTER:
        raise DataError(f"reading the card of {where}: its metadata are larger than {told_size(LARGEST_FRONT_MATTER)}")
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=_Loader)):
            raise DataError(f"reading the card of {where}: its metadata hold an alias (*name), which is not followed")
        data = yaml.load(text, Loader=_Loader)
    except DataError:
        raise
    except Exception as error:  # a tag that does not fit its text makes PyYAML raise anything
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(f"reading the card of {where}: its metadata cannot be read ({reason})") from None
    return data if isinstance(data, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _splits(source: str, dataset: DatasetId, card: dict[str, Any], usable: list[str]) -> dict[str, list[str]]:
    """Files by split, for the configuration asked for."""
    configs = {
        str(each.get("config_name", "default")): each
        for each in _list(card.get("configs"))
        if isinstance(each, dict) and each.get("data_files")
    }
    if not configs:
        return _by_folder(source, dataset, usable)
    chosen = dataset.config or _default(configs)
    if chosen not in configs:
        what = f"no configuration '{chosen}'" if chosen else "which configuration?"
        raise DataError(f"{source}: {what} (there are {shorten(configs, 12)}); write :CONFIG/SPLIT after the name")
    patterns = _patterns(configs[chosen]["data_files"])
    splits = {split: [file for file in usable if _matches(file, globs)] for split, globs in patterns.items()}
    return _filled(source, splits)


def _default(configs: dict[str, Any]) -> str | None:
    marked = [name for name, each in configs.items() if each.get("default")]
    named = [*marked, *(name for name in configs if name == "default"), *(configs if len(configs) == 1 else ())]
    return named[0] if named else None


def _patterns(data_files: Any) -> dict[str, list[str]]:
    """Read a card's ``data_files``: one pattern, several, or a list of {split, path}."""
    if isinstance(data_files, list) and all(isinstance(each, dict) for each in data_files):
        return {str(each.get("split", "train")): _listed(each.get("path")) for each in data_files}
    return {"train": _listed(data_files)}


def _listed(value: Any) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else [str(value)]


def _matches(file: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(file, glob.replace("**/", "*").removeprefix("./")) for glob in globs)


def _by_folder(source: str, dataset: DatasetId, usable: list[str]) -> dict[str, list[str]]:
    """Derive splits from file names; if each configuration has a folder, only from the one asked for."""
    if dataset.config is not None:
        inside = [file for file in usable if file.startswith(f"{dataset.config}/")]
        if not inside:
            folders = sorted({file.split("/")[0] for file in usable if "/" in file})
            raise DataError(f"{source}: no configuration '{dataset.config}' (folders: {shorten(folders) or 'none'})")
        usable = inside
    splits: dict[str, list[str]] = {}
    for file in usable:
        splits.setdefault(_split_in(file), []).append(file)
    return _filled(source, splits)


def _split_in(file: str) -> str:
    """The split named by a path: ``data/NAME-00000-of-00002.parquet``, or a word such as ``test`` in it."""
    sharded = _SHARDED.fullmatch(file)
    parts = [sharded["split"]] if sharded else reversed(PurePosixPath(file).parts)
    words = [word for part in parts for word in ([part] if sharded else re.split(r"[^a-z]+", part.lower()))]
    known = {spelling: split for split, spellings in _WORDS.items() for spelling in spellings}
    spelled = [known[word] for word in words if word in known]
    return spelled[0] if spelled else sharded["split"] if sharded else "train"


def _filled(source: str, splits: dict[str, list[str]]) -> dict[str, list[str]]:
    """Sort each split's files, and drop splits without any."""
    filled = {split: sorted(files, key=_by_number) for split, files in splits.items() if files}
    mixed = [split for split, files in filled.items() if len({file.endswith(".tar") for file in files}) > 1]
    if mixed:
        raise DataError(f"{source}: split '{mixed[0]}' holds Parquet and tar files; give the files of one kind")
    if not filled:
        raise DataError(f"{source}: the files that its card names are not Parquet or tar files")
    return filled


def _by_number(file: str) -> list[str | int]:
    """Sort key that puts ``2.tar`` before ``10.tar``."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d{1,18})", file)]
