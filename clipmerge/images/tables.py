"""Tables of pictures: Parquet, CSV, TSV, JSON Lines and Arrow files, and a `datasets.Dataset`.

The library `datasets` copies them to its cache, from which it reads single rows.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipmerge.errors import DataError, counted, did_you_mean, shorten
from clipmerge.files import local_path
from clipmerge.images.image_set import (
    CAPTION_NAMES,
    LABEL_NAMES,
    Columns,
    OpenedSource,
    Pictures,
    pictures_in_files,
)
from clipmerge.images.tar import load_tars

#: Suffixes of tables.
TABLES = (".parquet", ".csv", ".tsv", ".jsonl", ".arrow")
# Usual names of columns of image files.
_FILE_NAMES = ("file_name", "filepath", "file", "path", "image", "image_path", "filename")
# Rows of a Parquet file in memory at once; a picture may have megabytes.
_ROWS_AT_ONCE = 256


def import_datasets() -> Any:
    """Import `datasets` when it is needed, which takes a second, and keep its progress bars for
    terminals.
    """
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets


def load_files(title: str, files: Sequence[str], columns: Columns) -> OpenedSource:
    """Open tables or tar files, all of one kind. File names in a table start from its folder."""
    suffixes = sorted({Path(file).suffix.lower() for file in files})
    if suffixes == [".tar"]:
        return load_tars(title, files, columns)
    if len(suffixes) > 1 or suffixes[0] not in TABLES:
        raise DataError(
            f"{title}: is {shorten(suffixes)}; give files of one kind: {shorten(('.tar', *TABLES))}"
        )
    with report_read_errors(title):
        data = _read_tables(suffixes[0], list(files))
    return load_dataset(title, data, columns, Path(files[0]).parent)


def _read_tables(suffix: str, files: list[str]) -> Any:
    """Read files of one kind into one `datasets.Dataset`."""
    datasets = import_datasets()
    table = datasets.Dataset
    if suffix == ".parquet":
        return table.from_parquet(files, **parquet_options())
    if suffix == ".jsonl":
        return table.from_json(files)
    read = table.from_file if suffix == ".arrow" else _read_csv
    return datasets.concatenate_datasets(list(map(read, files)))


def parquet_options() -> dict[str, Any]:
    """Make options for `datasets` with which memory holds one row group of a Parquet file."""
    from pyarrow.dataset import ParquetFragmentScanOptions

    scan = ParquetFragmentScanOptions(use_buffered_stream=True, pre_buffer=False)
    return {"batch_size": _ROWS_AT_ONCE, "fragment_scan_options": scan}


def _read_csv(file: str) -> Any:
    """Read a table whose fields are separated by tabs (as for open_clip), semicolons or commas,
    whatever its suffix.
    """
    import datasets

    text = Path(file).read_text(encoding="utf-8-sig")
    heading, _, _ = text.partition("\n")
    mark = "\t" if "\t" in heading else ";" if "," not in heading else ","

    def read(strict: bool) -> dict[str, list[str]]:
        """Read the columns; empty lines are left out."""
        rows = csv.DictReader(
            io.StringIO(text), delimiter=mark, skipinitialspace=True, strict=strict
        )
        columns: dict[str, list[str]] = {name: [] for name in rows.fieldnames or ()}
        try:
            for row in rows:
                if None in row or None in row.values():  # too many or too few
                    raise ValueError(f"line {rows.line_num} has more or fewer fields than line 1")
                for name, field in row.items():
                    columns[name].append(field)
        except csv.Error:
            raise ValueError(
                f"line {rows.reader.line_num}: a quote that opens a field is not closed; close it,"
                " and double quotes inside of texts"
            ) from None
        return columns

    columns = read(strict=False)
    if any("\n" in field for fields in columns.values() for field in fields):
        read(strict=True)  # a quote that is not closed swallows rows
    return datasets.Dataset.from_dict(columns)


def load_dataset(title: str, data: Any, columns: Columns, folder: Path = Path()) -> OpenedSource:
    """Open a `datasets.Dataset`: read labels or captions now, and each picture when needed."""
    class_names = {
        name: tuple(feature.names)
        for name, feature in data.features.items()
        if hasattr(feature, "names")
    }
    schema = data.features.arrow_schema

    def usual(names: Sequence[str]) -> list[str]:
        """The column with the first of some usual names."""
        return [name for name in names if name in schema.names][:1]

    pictures = [field.name for field in schema if "binary" in str(field.type)]
    labels = list(class_names) or usual(LABEL_NAMES)
    image = _pick_column(
        title, "image", columns.image, pictures or usual(_FILE_NAMES), schema.names
    )
    wanted = columns.caption or columns.label
    text = _pick_column(
        title, "label or caption", wanted, labels or usual(CAPTION_NAMES), schema.names
    )
    captioned = not labels if columns.captioned is None else columns.captioned

    def read(column: str) -> Any:
        """A column as Arrow keeps it, without decoding pictures."""
        return data.select_columns([column]).with_format("arrow")

    values = read(text)[:].column(0).to_pylist()
    images = read(image)
    if image in pictures:
        shown = _pictures_of_rows(title, images)
    else:
        paths = _find_files(title, images[:].column(0).to_pylist(), folder)
        if captioned:
            paths, values = _join_captions(paths, values)
        shown = pictures_in_files(paths)
    return OpenedSource(title, shown, values, captioned, class_names.get(text))


def _pick_column(
    title: str, kind: str, wanted: str | None, found: Sequence[str], columns: Sequence[str]
) -> str:
    """Return the user's column, or else the candidate named like its kind, or else the only
    candidate.
    """
    if wanted:
        if wanted in columns:
            return wanted
        what = f"no column '{wanted}'"
    elif len(found) == 1 or kind in found:
        return kind if kind in found else found[0]
    else:
        what = f"several {kind} columns ({shorten(found)})" if found else f"no {kind} column"
    flags = " or ".join(f"`{name}_column`" for name in kind.split(" or "))
    raise DataError(
        f"{title}: {what} (columns: {shorten(columns, 12)}); name it with"
        f" {flags}.{did_you_mean(wanted or '', columns)}"
    )


def _pictures_of_rows(title: str, images: Any) -> Pictures:
    """Make pictures of the rows of a table that has one column."""

    def get(row: int) -> bytes | str:
        value = images[row].column(0)[0].as_py()
        if isinstance(value, dict):  # bytes and path, as `datasets` writes them
            value = value.get("bytes") or value.get("path")
        return value or b""

    return Pictures(get, f"{title}, row {{}}".format, range(len(images)))


def _join_captions(files: list[str], values: list[Any]) -> tuple[list[str], list[Any]]:
    """Collect the captions of each picture from all rows that name it. Return pictures and lists
    of captions.
    """
    captions: dict[str, list[Any]] = {}
    for file, value in zip(files, values, strict=True):
        listed = value if isinstance(value, list) else [value]
        captions.setdefault(file, []).extend(listed)
    return list(captions), list(captions.values())


def _find_files(title: str, names: Sequence[Any], folder: Path) -> list[str]:
    """Find the files that the rows of a table name, in its folder or else the working folder."""
    files: list[str] = []
    missing: list[str] = []
    for row, name in enumerate(map(str, names), 1):
        file = folder / name
        if not file.is_file():
            file = local_path(name)
        if not file.is_file():
            missing.append(f"row {row}, {name}")
        files.append(str(file))
    if missing:
        are = counted(len(missing), "file is", "files are")
        raise DataError(
            f"{title}: {are} missing (of {len(files)}): {shorten(missing, 3)}; names start from"
            f" {folder} or the working folder. Add the files, or remove these rows"
        )
    return files


@contextmanager
def report_read_errors(title: str) -> Iterator[None]:
    """Turn any error of `datasets` into one line, the first line of its cause."""
    try:
        yield
    except Exception as error:  # each library below raises its own
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next(iter(str(cause).strip().splitlines()), "") or type(cause).__name__
        raise DataError(f"{title}: cannot be read ({reason})") from error
