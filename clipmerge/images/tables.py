"""Tables of image files: ``metadata.csv`` and ``metadata.jsonl`` of folders, CSV and TSV files.

A folder's table is that of Hugging Face's image folders (``file_name``, ``text``), a file of its
own that of open_clip's training (``filepath``, ``title``, between tabs or commas).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from clipmerge.errors import DataError, NoLabelsError, counted, shorten
from clipmerge.files.limits import MAX_HELD_BYTES
from clipmerge.files.paths import local_path
from clipmerge.files.reading import Unreadable, parse_json, read_text, refusing
from clipmerge.files.side_files import lies_in
from clipmerge.images.columns import (
    CAPTION_NAMES,
    LABEL_NAMES,
    Columns,
    caption_lists,
    check_named,
    number_classes,
)
from clipmerge.images.store import OpenedSource, check_count, image_files
from clipmerge.types import Json, Names

_FILES = ("file_name", "filepath", "file", "path", "image", "image_path", "filename")


def load_table(
    source: str, table: Path, columns: Columns, *, inside: Path | None = None
) -> OpenedSource:
    """List the image files of a table with their labels or captions; no image is opened.

    Args:
        source: The source, for messages.
        table: The file.
        columns: The columns that the user named.
        inside: The folder that must hold all files; ``None`` to allow any, relative to the table or
            to the working folder.
    """
    with refusing(DataError, f"{table}: cannot be read"):
        text = read_text(table, MAX_HELD_BYTES, encoding="utf-8-sig")
        rows = list(_json_rows(text) if table.suffix == ".jsonl" else _csv_rows(text))
    if not rows:
        raise DataError(f"{source}: {table.name} has no rows")
    check_count(source, len(rows))
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    check_named(source, columns, names)
    files = columns.image or next((name for name in _FILES if name in names), None)
    if files is None:
        raise DataError(
            f"{source}: {table.name} has no column of image files (columns: {shorten(names, 12)});"
            " name it with `image_column`"
        )
    named = [(line, row.get(files)) for line, row in rows]
    paths = _paths(source, table, named, inside, may_miss=columns.skip_unreadable)
    store = image_files(paths)
    if not columns.labelled:
        return OpenedSource(store, (0,) * len(paths), ("0",), named=False)
    label = columns.label or next((name for name in LABEL_NAMES if name in names), None)
    caption = columns.caption or next((name for name in CAPTION_NAMES if name in names), None)
    lines = [f"line {line}" for line, _ in rows]
    if columns.caption is None and label is not None:
        notes: Names = ()
        if caption is not None and columns.label is None:
            notes = (
                f"{source}: {table.name} has classes ('{label}') and captions ('{caption}'); the"
                f" classes are taken (captions with `caption_column` {caption})",
            )
        labels = [row.get(label) for _, row in rows]
        labels = [None if value == "" else value for value in labels]
        if wrong := [line for line, value in zip(lines, labels, strict=True) if _is_other(value)]:
            raise DataError(f"{source}: {table.name}, {wrong[0]}: a label is a number or a text")
        return OpenedSource(store, *number_classes(source, labels), notes=notes)
    if caption is None:
        raise NoLabelsError(
            f"{source}: {table.name} has no column of labels or captions (columns:"
            f" {shorten(names, 12)}); name it with `label_column` or `caption_column`"
        )
    captions = caption_lists(
        f"{source}, {table.name}", [row.get(caption) for _, row in rows], lines.__getitem__
    )
    note = f"{source}: images with captions, from column '{caption}' of {table.name}"
    return OpenedSource.with_captions(store, captions, notes=(note,))


def _is_other(value: Any) -> bool:
    return value is not None and (isinstance(value, bool) or not isinstance(value, int | str))


def _json_rows(text: str) -> Iterable[tuple[int, Json]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            row = parse_json(line)
            if not isinstance(row, dict):
                raise Unreadable(f"line {number} is not an object")
            yield number, row


def _csv_rows(text: str) -> Iterable[tuple[int, Json]]:
    """Rows with the number of the line on which each ends."""
    first = text.partition("\n")[0]
    delimiter = "\t" if "\t" in first else ";" if ";" in first and "," not in first else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise Unreadable(
                    f"line {reader.line_num} does not have {len(reader.fieldnames or ())} cells;"
                    " quote texts that hold the separator"
                )
            yield reader.line_num, dict(row)
    except csv.Error as error:
        raise Unreadable(f"line {reader.line_num}: {error}") from None


def _paths(
    source: str,
    table: Path,
    named: Sequence[tuple[int, Any]],
    inside: Path | None,
    *,
    may_miss: bool,
) -> list[str]:
    """The files of all rows; those that are missing, unless they may be, or lie outside are named
    with their line.
    """
    paths: list[str] = []
    missing: list[str] = []
    for line, name in named:
        if not isinstance(name, str) or not name:
            raise DataError(f"{source}: {table.name}, line {line}: names no image file")
        beside = table.parent / name
        path = beside if inside is not None or beside.is_file() else local_path(name)
        if inside is not None and path.exists() and not lies_in(inside, path):
            raise DataError(
                f"{source}: {table.name}, line {line}: {name} lies outside of the folder; put the"
                " file there, or give the table as a source of its own"
            )
        if not path.is_file():
            missing.append(f"line {line}, {name}")
        paths.append(str(path))
    if missing and not may_miss:
        are = counted(len(missing), "file is", "files are")
        raise DataError(
            f"{source}: {table.name}: {are} missing (of {len(paths)}): {shorten(missing, 3)}; add"
            " them, remove these lines, or leave them out with `skip_unreadable=True`"
        )
    return paths
