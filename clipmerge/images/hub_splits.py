"""Which files of a dataset on the Hub are which split.

A repository's card may list the files of each split of each configuration; otherwise splits are
derived from file names, as the Hub's own viewer does.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

from clipmerge.errors import DataError, shorten
from clipmerge.files.limits import MAX_FRONT_MATTER_BYTES, MAX_TEXT_BYTES
from clipmerge.files.reading import Unreadable, format_size, parse_yaml, read_bytes, refusing
from clipmerge.hub.download import Snapshot
from clipmerge.hub.ids import DatasetId
from clipmerge.types import Json, Names

_CARD = "README.md"
# Words in file and folder names that name a split, as the Hub reads them, by the split.
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
#: Splits by the words that stand for them.
SPLITS = {word: split for split, words in _WORDS.items() for word in words}
#: The name of one of several files of a split.
SHARDED = re.compile(r"(?:.*/)?(?P<split>\w+(?:\.\w+)*)-\d+-of-(?P<count>\d{1,9})\.\w+")


def card_of(snapshot: Snapshot) -> Json:
    """Read the metadata of the dataset's card."""
    if _CARD not in snapshot.files:
        return {}
    file = snapshot.download([_CARD]) / _CARD
    with refusing(DataError, f"reading the card of {snapshot.hub_id}: it cannot be read"):
        return front_matter(read_bytes(file, MAX_TEXT_BYTES).decode("utf-8", errors="replace"))


def front_matter(card: str) -> Json:
    """Read the metadata in front of a card's text; empty if there are none."""
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", card, re.DOTALL | re.MULTILINE)
    text = match[1] if match else ""
    if len(text) > MAX_FRONT_MATTER_BYTES:
        raise Unreadable(f"its metadata are larger than {format_size(MAX_FRONT_MATTER_BYTES)}")
    data = parse_yaml(text)
    return data if isinstance(data, dict) else {}


def find_splits(source: str, dataset: DatasetId, card: Json, usable: list[str]) -> dict[str, Names]:
    """Files by split, for the configuration that the user or the card names; otherwise from the
    files' names.
    """
    configs = {
        str(config.get("config_name", "default")): config
        for config in _as_list(card.get("configs"))
        if isinstance(config, dict) and config.get("data_files")
    }
    splits: dict[str, list[str]] = {}
    if configs:
        # one pattern, several, or {split, path}
        entries = _as_list(_config(source, dataset.config, configs)["data_files"])
        if not all(isinstance(entry, dict) for entry in entries):
            entries = [{"path": entries}]
        for entry in entries:
            patterns = map(str, _as_list(entry.get("path")))
            globs = [text.replace("**/", "*").removeprefix("./") for text in patterns]
            splits[str(entry.get("split", "train"))] = [
                file for file in usable if any(fnmatchcase(file, glob) for glob in globs)
            ]
    else:
        folder = f"{dataset.config}/" if dataset.config else ""
        for file in usable:
            if file.startswith(folder):
                splits.setdefault(_split_in(file), []).append(file)
        if not splits:
            folders = sorted({file.split("/")[0] for file in usable if "/" in file})
            raise DataError(
                f"{source}: no configuration '{dataset.config}' (folders:"
                f" {shorten(folders) or 'none'})"
            )
    for split, files in splits.items():
        if len({file.endswith(".tar") for file in files}) > 1:
            raise DataError(
                f"{source}: split '{split}' holds Parquet and tar files; give the files of one kind"
            )
    files_by_split = {
        split: tuple(sorted(files, key=_natural_sort_key))
        for split, files in splits.items()
        if files
    }
    if not files_by_split:
        raise DataError(f"{source}: the files that its card names are not Parquet or tar files")
    return files_by_split


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _config(source: str, name: str | None, configs: dict[str, Json]) -> Json:
    """The configuration of that name; without one the default, or the only one."""
    marked = [config for config, described in configs.items() if described.get("default")]
    only = list(configs) if len(configs) == 1 else []
    chosen = name or next(iter([*marked, *({"default"} & configs.keys()), *only]), None)
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
    if sharded := SHARDED.fullmatch(file):
        return SPLITS.get(sharded["split"], sharded["split"])
    words = [
        word
        for part in reversed(PurePosixPath(file).parts)
        for word in re.split(r"[^a-z]+", part.lower())
    ]
    return next((SPLITS[word] for word in words if word in SPLITS), "train")


def _natural_sort_key(file: str) -> list[str | int]:
    """Sort key that puts ``2.tar`` before ``10.tar``."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d{1,18})", file)]
