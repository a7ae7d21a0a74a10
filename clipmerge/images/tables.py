"""Tables of image files: ``metadata.csv`` and ``metadata.jsonl`` of folders, CSV and TSV files.

A folder's table is that of Hugging Face's image folders (``file_name``, ``text``), a file of its
own that of open_clip's training (``filepath``, ``title``, between tabs or commas) or JSON Lines.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clipmerge.errors import DataError, counted, shorten
from clipmerge.files.limits import MAX_HELD_BYTES
from clipmerge.files.paths import local_path
from clipmerge.files.reading import Unreadable, parse_json, read_text, refusing
from clipmerge.files.side_files import lies_in
from clipmerge.images.columns import FILE_NAMES, choose_columns
from clipmerge.images.source import Columns, Source
from clipmerge.images.store import check_count, image_files
from clipmerge.types import Json

_SEPARATORS = {"\t": "tabs", ";": "semicolons", ",": "commas"}

#: A row with its number in the file.
Row = tuple[int, Json]


def load_table(source: str, table: Path, columns: Columns, *, inside: Path | None = None) -> Source:
    """List the image files of a table with their labels or captions; no image is opened.

    Args:
        source: The source, for messages.
        table: The file.
        columns: The columns that the user named.
        inside: The folder that must hold all files; ``None`` to allow any, relative to the table or
            to the working folder.
    """
    with refusing(DataError, f"{table}: cannot be read"):
        text = read_text(table, MAX_HELD_BYTES)
        rows = list((_json_rows if table.suffix == ".jsonl" else _csv_rows)(text))
    where = source if inside is None else f"{source}: {table.name}"
    if not rows:
        raise DataError(f"{where} has no rows")
    check_count(source, len(rows))
    names = dict.fromkeys(name for _, row in rows for name in row)
    files = [name for name in FILE_NAMES if name in names]
    chosen = choose_columns(where, names, columns, files[:1], {})
    values: list[Any] | None = None
    if chosen.text_column is not None:
        values = [row.get(chosen.text_column) for _, row in rows]
    if chosen.label is not None and values is not None:
        values = [value.strip() if isinstance(value, str) else value for value in values]
        values = [None if value == "" else value for value in values]  # an empty cell of a CSV
        for (line, _), value in zip(rows, values, strict=True):
            if isinstance(value, bool) or not isinstance(value, int | str | None):
                raise DataError(f"{where}, line {line}: a label is a number or a text")
    paths = _paths(where, table, rows, chosen.image, inside, columns)
    if chosen.caption is not None and values is not None and len(set(paths)) < len(paths):
        captions: dict[str, list[Any]] = {}  # of an image that has a row for each of them
        for path, value in zip(paths, values, strict=True):
            captions.setdefault(path, []).extend(value if isinstance(value, list) else [value])
        paths = list(captions)
        values = list(captions.values())
    return chosen.to_source(source, image_files(paths), values)


def _json_rows(text: str) -> Iterator[Row]:
    # not by `splitlines`: JSON's texts may hold the line separators of Unicode
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = parse_json(line)
            except Unreadable as error:  # which counts lines from this one
                reason = str(error).replace(": line 1 column", ": column")
                raise Unreadable(f"line {number}: {reason}") from None
            if not isinstance(row, dict):
                raise Unreadable(f"line {number} is not an object")
            yield number, row


def _csv_rows(text: str) -> Iterator[Row]:
    """Rows with the number of the line on which each ends."""
    first = text.partition("\n")[0]
    delimiter = "\t" if "\t" in first else ";" if ";" in first and "," not in first else ","
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True
    )
    try:
        reader.fieldnames = names = [name.strip() for name in reader.fieldnames or ()]
        if repeated := [name for name, count in Counter(names).items() if count > 1]:
            raise Unreadable(f"its first line names {shorten(repeated)} twice; rename one of them")
        for row in reader:
            if None in row or None in row.values():
                raise Unreadable(
                    f"line {reader.line_num} does not have"
                    f" {counted(len(names), 'cell', 'cells')} between"
                    f" {_SEPARATORS[delimiter]}; quote texts that hold the separator"
                )
            yield reader.line_num, dict(row)
    except csv.Error as error:
        raise Unreadable(
            f"line {reader.reader.line_num}: {error}; end a quoted text with a quote, and write"
            " quotes inside it twice"
        ) from error


def _paths(
    where: str, table: Path, rows: Sequence[Row], column: str, inside: Path | None, columns: Columns
) -> list[str]:
    """The files of all rows; those that are missing, unless unreadable ones are skipped, or lie
    outside are named with their line.
    """
    paths: list[str] = []
    missing: list[str] = []
    for line, row in rows:
        name = row.get(column)
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}, line {line}: names no image file")
        beside = table.parent / name
        path = beside if inside is not None or beside.is_file() else local_path(name)
        if inside is not None and path.exists() and not lies_in(inside, path):
            raise DataError(
                f"{where}, line {line}: {name} lies outside of the folder; put the file there, or"
                " give the table as a source of its own"
            )
        if not path.is_file():
            missing.append(f"line {line}, {name}")
        paths.append(str(path))
    if missing and not columns.skip_unreadable:
        are = counted(len(missing), "file is", "files are")
        start = f"{table.parent}{'' if inside else ' or the working folder'}"
        raise DataError(
            f"{where}: {are} missing (of {len(paths)}): {shorten(missing, 3)}; names start from"
            f" {start}. Add the files, remove these lines, or leave them out with"
            " `skip_unreadable=True`"
        )
    return paths
