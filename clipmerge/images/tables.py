"""Tables of pictures, by `datasets`: Parquet, CSV, TSV and JSON Lines, folders and repositories of
them, and a `datasets.Dataset`.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from clipmerge.errors import (
    ClipmergeError,
    DataError,
    counted,
    did_you_mean,
    shorten,
)
from clipmerge.files.paths import local_path, replace_bytes, user_cache
from clipmerge.hub.errors import explained
from clipmerge.images.source import (
    CAPTION_NAMES,
    FILE_NAMES,
    LABEL_NAMES,
    TEXTS,
    Columns,
    Opened,
    Pictures,
    picture_files,
)
from clipmerge.images.tar import load_tars

#: Builders of `datasets` by the suffix of a file.
BUILDERS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".arrow": "arrow",
}
HUB = "hf://datasets/"
_ON_HUB = re.compile(
    r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:\s]+))?"
    r"(?::(?:(?P<config>[^\s/]+)/)?(?P<split>[^:\s/]+))?"
)


def load_files(title: str, files: Sequence[str], columns: Columns) -> Opened:
    """Open one table or tar file, or several of a kind as one."""
    suffixes = {Path(file).suffix.lower() for file in files}
    (suffix, *others) = sorted(suffixes)
    if others or suffix not in {".tar", *BUILDERS}:
        raise DataError(
            f"{title}: is {shorten(sorted(suffixes))}; give files of one kind:"
            f" {shorten(['.tar', *BUILDERS], 9)}"
        )
    if suffix == ".tar":
        return load_tars(title, files, columns)
    table = _read(title, BUILDERS[suffix], files, "train")
    return load_table(title, table, columns, Path(files[0]).parent)


def load_repository(title: str, folder: Path, columns: Columns, split: str | None) -> Opened:
    """Open a split of a folder of tables or tar files, laid out as a repository on the Hub is."""
    names = [str(file.relative_to(folder)) for file in sorted(folder.rglob("*.tar"))]
    if splits := _tar_splits(names):
        _, files = _choose_split(title, splits, split)
        return load_tars(title, [str(folder / file) for file in files], columns)
    with _one_line(title):
        builder = _datasets().load_dataset_builder(str(folder))
    name, files = _choose_split(title, builder.config.data_files, split)
    table = _read(title, builder.name, files, name, builder.info.features)
    return load_table(title, table, columns, folder)


def load_from_hub(title: str, columns: Columns) -> Opened:
    """Open ``hf://datasets/ORG/NAME[@REVISION][:[CONFIG/]SPLIT]``: the split is downloaded into the
    Hub's cache or that of `datasets`, and read from there; offline what was read last.
    """
    from huggingface_hub import constants

    match = _ON_HUB.fullmatch(title)
    if match is None:
        raise DataError(
            f"{title}: is not a dataset on the Hub; write {HUB}ORG/NAME[@REVISION][:SPLIT]"
        )
    last = user_cache("datasets") / f"{sha256(title.encode()).hexdigest()}.json"
    if not constants.HF_HUB_OFFLINE:
        with explained(f"opening {title}"):
            replace_bytes(last, json.dumps(_download(title, *match.groups())).encode())
    elif not last.is_file():
        raise DataError(f"{title}: was not opened before; unset HF_HUB_OFFLINE to download it")
    commit, files = json.loads(last.read_text())
    return replace(load_files(title, files, columns), revision=commit)


def _download(
    title: str, repo: str, revision: str | None, config: str | None, split: str | None
) -> tuple[str | None, list[str]]:
    """Download a split: the commit to which the revision points now, and the tar files, or the
    Arrow files that `datasets` makes of others.
    """
    from huggingface_hub import HfApi, snapshot_download

    about = HfApi().dataset_info(repo, revision=revision)
    if splits := _tar_splits(file.rfilename for file in about.siblings or ()):
        _, files = _choose_split(title, splits, split)
        patterns = [*files, *TEXTS]
        folder = snapshot_download(
            repo, repo_type="dataset", revision=about.sha, allow_patterns=patterns
        )
        return about.sha, [str(Path(folder, file)) for file in files]
    builder = _datasets().load_dataset_builder(repo, config, revision=about.sha)
    name, files = _choose_split(title, builder.config.data_files, split)
    table = _read(title, builder.name, files, name, builder.info.features)
    return about.sha, [file["filename"] for file in table.cache_files]


def load_table(title: str, table: Any, columns: Columns, folder: Path | None = None) -> Opened:
    """Read a `datasets.Dataset`, in memory or mapped from a disk: labels or captions now, pictures
    when they are needed. Names of files start from ``folder`` or from the working folder.
    """
    import datasets

    table = table.with_format(None)
    features = table.features
    chosen = _choose_columns(title, features, columns)
    values = list(table[chosen.text])
    if _kind(features[chosen.image]) == "texts":
        files = _find_files(title, list(table[chosen.image]), folder or Path())
        if chosen.captioned:
            files, values = _join_captions(files, values)
        pictures = picture_files(files)
    else:
        if isinstance(features[chosen.image], datasets.Image):
            table = table.cast_column(chosen.image, datasets.Image(decode=False))
        pictures = _pictures(title, table.select_columns([chosen.image]))
    notes: list[str] = []
    if chosen.unread:
        notes.append(
            f"{title}: has labels (column '{chosen.text}') and captions ('{chosen.unread}'); the"
            f" labels are taken; the captions are with `caption_column` {chosen.unread}"
        )
    if not chosen.captioned:
        values = [None if value == "" else value for value in values]  # an empty cell of a CSV
    names = getattr(features[chosen.text], "names", None)
    return Opened(
        title=title,
        pictures=pictures,
        values=values,
        captioned=chosen.captioned,
        class_names=tuple(names) if names else None,
        unread_captions=chosen.unread,
        notes=tuple(notes),
    )


def _pictures(title: str, table: Any) -> Pictures:
    """The pictures of a table of one column, by row."""
    (column,) = table.column_names

    def name(row: int) -> str:
        return f"{title}, row {row}"

    def get(row: int) -> bytes | str:
        value = table[row][column]
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        return value if isinstance(value, bytes) else str(value or "")

    return Pictures(get, name, range(len(table)))


def _join_captions(files: list[str], values: list[Any]) -> tuple[list[str], list[Any]]:
    """The captions of each picture, which may have a row for each of them."""
    captions: dict[str, list[Any]] = {}
    for file, value in zip(files, values, strict=True):
        listed = value if isinstance(value, list) else [value]
        captions.setdefault(file, []).extend(listed)
    return list(captions), list(captions.values())


class _Chosen(NamedTuple):
    """A table's columns."""

    image: str
    text: str  # of labels or captions
    captioned: bool
    unread: str | None  # captions that are there beside labels


def _choose_columns(title: str, features: Mapping[str, Any], wanted: Columns) -> _Chosen:
    """The columns that the user named; otherwise those of a type or with a usual name, and captions
    only without labels.
    """
    for kind, name in vars(wanted).items():
        if name is not None and name not in features:
            raise DataError(
                f"{title}: no column '{name}' for `{kind}_column` (columns:"
                f" {shorten(features, 12)}).{did_you_mean(name, features)}"
            )
    kinds = {name: _kind(feature) for name, feature in features.items()}
    images = [name for name in kinds if kinds[name] == "images"]
    files = [name for name in FILE_NAMES if kinds.get(name) == "texts"]
    classes = [name for name in features if hasattr(features[name], "names")]
    usual = [name for name in LABEL_NAMES if name in features]
    labels = classes or usual[:1]
    captions = [name for name in CAPTION_NAMES if kinds.get(name) in ("texts", "lists")]

    image = wanted.image or _only(title, "image", images or files[:1], features)
    captioned = wanted.captioned
    if captioned is None:
        captioned = bool(captions) and not labels
    text = wanted.caption or wanted.label
    unread = None
    if text is None:
        found = captions[:1] if captioned else labels
        text = _only(title, "label or caption", found, features)
        if captions and not captioned:
            unread = captions[0]

    text_kinds = ("texts", "lists") if captioned else ("texts", "numbers")
    for column, allowed in ((image, ("images", "texts")), (text, text_kinds)):
        if kinds[column] not in allowed:
            raise DataError(
                f"{title}: column '{column}' holds {features[column]}, not {' or '.join(allowed)}"
            )
    return _Chosen(image, text, captioned, unread)


def _only(title: str, kind: str, found: Sequence[str], columns: Mapping[str, Any]) -> str:
    """The one column that was found, or of several the one that has the usual name."""
    if kind in found:
        return kind
    if len(found) == 1:
        return found[0]
    flags = " or ".join(f"`{name}_column`" for name in kind.split(" or "))
    what = f"no {kind} column"
    if found:
        what = f"several {kind} columns ({shorten(found)})"
    raise DataError(f"{title}: {what} (columns: {shorten(columns, 12)}); name it with {flags}")


def _kind(feature: Any) -> str:
    """What a column may hold: ``images``, ``numbers``, ``texts``, ``lists`` of texts, or nothing
    that is read.
    """
    if isinstance(feature, Mapping):
        return "images" if "bytes" in feature else ""
    if hasattr(feature, "feature"):
        return "lists" if _kind(feature.feature) == "texts" else ""
    dtype = str(getattr(feature, "dtype", ""))
    if hasattr(feature, "decode") or "binary" in dtype:
        return "images"
    if "string" in dtype:
        return "texts"
    return "numbers" if re.match(r"u?int", dtype) else ""


def _find_files(title: str, names: Sequence[str | None], folder: Path) -> list[str]:
    """The files of all rows, beside the table or else from the working folder; missing ones are
    named.
    """
    files: list[str] = []
    missing: list[str] = []
    for row, name in enumerate(names, 1):
        path = folder / (name or "")
        if not path.is_file():
            path = local_path(name or "")
        if not path.is_file():
            missing.append(f"row {row}, {name}")
        files.append(str(path))
    if missing:
        are = counted(len(missing), "file is", "files are")
        raise DataError(
            f"{title}: {are} missing (of {len(files)}): {shorten(missing, 3)}; names start from"
            f" {folder} or the working folder. Add the files, or remove these rows"
        )
    return files


def _tar_splits(files: Iterable[str]) -> dict[str, list[str]]:
    """Tar files by split: their folder, or the name in front of their numbers; by number."""

    def by_number(file: str) -> list[str | int]:
        parts = re.split(r"(\d+)", file)
        return [int(part) if part.isdecimal() else part for part in parts]

    splits: dict[str, list[str]] = {}
    for file in sorted(files, key=by_number):
        path = PurePosixPath(file)
        if path.suffix != ".tar":
            continue
        name = path.parent.name
        if not name:
            words = re.match(r"[^\W\d_]*", path.name)
            name = (words and words[0]) or "train"
        splits.setdefault(name, []).append(file)
    return splits


def _choose_split(
    title: str, splits: Mapping[Any, Sequence[str]] | None, wanted: str | None
) -> tuple[str, list[str]]:
    """The name and the files of the split that the user named, or of the only one."""
    named = {str(name): list(files) for name, files in (splits or {}).items()}
    name = wanted or (next(iter(named)) if len(named) == 1 else "")
    if name not in named:
        what = f"no split '{wanted}'" if wanted else "which split?"
        raise DataError(
            f"{title}: {what} (splits: {shorten(named, 12)}); write it after a"
            f" colon.{did_you_mean(wanted or '', named)}"
        )
    return name, named[name]


def _read(title: str, builder: str, files: Sequence[str], split: str, features: Any = None) -> Any:
    """Read files as one table, which `datasets` keeps in its cache and maps into memory."""
    library = _datasets()
    options: dict[str, Any] = {}
    with _one_line(title):
        if builder == "arrow":
            return library.concatenate_datasets(list(map(library.Dataset.from_file, files)))
        if builder == "csv":  # open_clip's tables have tabs, whatever their suffix
            with Path(files[0]).open(encoding="utf-8-sig", errors="replace") as file:
                heading = file.readline()
            mark = "\t" if "\t" in heading else ";" if "," not in heading else ","
            columns = next(csv.reader([heading], delimiter=mark, skipinitialspace=True), [])
            features = library.Features({name: library.Value("string") for name in columns})
            options = {"sep": mark, "keep_default_na": False, "skipinitialspace": True}
        table = library.load_dataset(
            builder, data_files={split: list(files)}, split=split, features=features, **options
        )
    if not len(table):
        raise DataError(f"{title}: has no rows")
    return table


def _datasets() -> Any:
    """Import `datasets`, which takes a second; its progress is shown on a terminal only."""
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets


@contextmanager
def _one_line(title: str) -> Iterator[None]:
    """Turn any error of `datasets` into one line: the first of its cause."""
    try:
        yield
    except ClipmergeError:
        raise
    except Exception as error:  # each library below raises its own
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next(iter(str(cause).strip().splitlines()), "") or type(cause).__name__
        raise DataError(f"{title}: cannot be read ({reason})") from error
