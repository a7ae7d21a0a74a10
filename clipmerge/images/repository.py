"""Find the tables or tar files of a split, in a folder or in a data set on the Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path, PurePosixPath

from clipmerge.errors import DataError, did_you_mean, shorten
from clipmerge.files import replace_bytes, user_cache
from clipmerge.hub import as_hub_errors
from clipmerge.images.image_set import Columns, OpenedSource
from clipmerge.images.tables import (
    TABLES,
    build_table,
    import_datasets,
    load_files,
    report_read_errors,
)
from clipmerge.images.tar import TEXTS

_ON_HUB = re.compile(
    r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:\s]+))?"
    r"(?::(?:(?P<config>[^\s/]+)/)?(?P<split>[^:\s/]+))?"
)
# A word in a file's name or folder that names its split.
_SPLIT = re.compile(
    r"(?<![a-z])(train|training|val|valid|validation|dev|test|testing|eval)(?![a-z])"
)


def splits_of_folder(folder: Path) -> dict[str, list[str]]:
    """List the tar files of a folder by split, or else its tables. A table named ``metadata.*``
    comes before others. Class folders, which may be large, are not searched.
    """
    places = {folder, folder / "data"}
    if any((folder / name).is_file() for name in TEXTS):  # CLIP_benchmark's sets
        places.update(folder.iterdir())
    found = list(folder.glob("metadata.*"))
    found = found or [file for place in places for file in place.glob("[!.]*.*")]
    names = [str(file.relative_to(folder)) for file in found]
    splits = _files_by_split(names, (".tar",)) or _files_by_split(names, TABLES)
    return {name: [str(folder / file) for file in files] for name, files in splits.items()}


def load_from_hub(title: str, columns: Columns) -> OpenedSource:
    """Download the split ``hf://datasets/ORG/NAME[@REVISION][:[CONFIG/]SPLIT]`` into the cache of
    the Hub or of `datasets`, and open it. Offline, open the files of the last download.
    """
    from huggingface_hub import constants

    match = _ON_HUB.fullmatch(title)
    if match is None:
        raise DataError(
            f"{title}: is not a dataset on the Hub; write hf://datasets/ORG/NAME[@REVISION][:SPLIT]"
        )
    last = user_cache("datasets") / f"{sha256(title.encode()).hexdigest()}.json"
    if not constants.HF_HUB_OFFLINE:
        with as_hub_errors(f"opening {title}"):
            downloaded = _download_split(title, *match.groups())
        replace_bytes(last, json.dumps(downloaded).encode())
    elif not last.is_file():
        raise DataError(f"{title}: was not opened before; unset HF_HUB_OFFLINE to download it")
    commit, files = json.loads(last.read_text())
    return replace(load_files(title, files, columns), revision=commit)


def _download_split(
    title: str, repo: str, revision: str | None, config: str | None, split: str | None
) -> tuple[str | None, list[str]]:
    """Download a split at the current commit of a revision. Return the commit and the files: tar
    files, or the Arrow files into which `datasets` converts all others.
    """
    from huggingface_hub import HfApi, snapshot_download

    about = HfApi().dataset_info(repo, revision=revision)
    splits = _files_by_split((file.rfilename for file in about.siblings or ()), (".tar",))
    if splits:
        files = files_of_split(title, splits, split)
        folder = snapshot_download(
            repo, repo_type="dataset", revision=about.sha, allow_patterns=[*files, *TEXTS]
        )
        return about.sha, [str(Path(folder, file)) for file in files]

    builder = import_datasets().load_dataset_builder(repo, config, revision=about.sha)
    splits = {str(name): list(files) for name, files in (builder.config.data_files or {}).items()}
    files = files_of_split(title, splits, split)
    with report_read_errors(title):
        table = build_table(builder.name, files, builder.info.features)
    return about.sha, [file["filename"] for file in table.cache_files]


def _files_by_split(names: Iterable[str], suffixes: Sequence[str]) -> dict[str, list[str]]:
    """Group files with these suffixes by split, and sort them by the numbers in their names. The
    split is a word in the file's name, or else the name of its folder.
    """
    splits: dict[str, list[str]] = {}
    for name in sorted(names, key=_by_number):
        path = PurePosixPath(name)
        if path.suffix in suffixes:
            word = _SPLIT.search(name.lower())
            split = word[0] if word else path.parent.name
            splits.setdefault(split or "train", []).append(name)
    return splits


def _by_number(name: str) -> list[str | int]:
    """Make a sort key that puts ``part10`` after ``part9``."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def files_of_split(title: str, splits: Mapping[str, list[str]], wanted: str | None) -> list[str]:
    """Return the files of the split that the user named, or of the only split."""
    name = wanted or (next(iter(splits)) if len(splits) == 1 else "")
    if name in splits:
        return splits[name]
    raise DataError(
        f"{title}: write one of its splits after a colon"
        f" ({shorten(splits, 12)}).{did_you_mean(name, splits)}"
    )
