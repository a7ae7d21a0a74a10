"""Tables of pictures: Parquet, CSV, TSV, JSON Lines and Arrow files, and a `datasets.Dataset`.

The library `datasets` copies them to its cache, and reads single rows from there.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipmerge.errors import DataError, did_you_mean, shorten
from clipmerge.files import local_path
from clipmerge.images.image_set import (
    CAPTION_NAMES,
    LABEL_NAMES,
    Columns,
    OpenedSource,
    Pictures,
    pictures_in_files,
    require_all,
)
from clipmerge.images.tar import load_tars

#: Suffixes of tables.
TABLES = (".parquet", ".csv", ".tsv", ".jsonl", ".arrow")
# Usual names of columns of image files.
_FILE_NAMES = ("file_name", "filepath", "file", "path", "image", "image_path", "filename")
# Rows of a Parquet file in memory at once; a picture may have megabytes.
_ROWS_AT_ONCE = 256


def import_datasets() -> Any:
    """Import `datasets`, which takes a second. Its progress bars are only for terminals."""
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
    if suffix == ".parquet":
        return build_table("parquet", files)
    if suffix == ".jsonl":
        return build_table("json", files)
    read = datasets.Dataset.from_file if suffix == ".arrow" else _read_csv
    return datasets.concatenate_datasets(list(map(read, files)))


def build_table(builder: str, files: Sequence[str], features: Any = None) -> Any:
    """Copy files to the cache of `datasets` as one table, unless they are there."""
    options: dict[str, Any] = {}
    if builder == "parquet":  # memory holds one row group
        from pyarrow.dataset import ParquetFragmentScanOptions

        scan = ParquetFragmentScanOptions(use_buffered_stream=True, pre_buffer=False)
        options = {"batch_size": _ROWS_AT_ONCE, "fragment_scan_options": scan}
    return import_datasets().load_dataset(
        builder, data_files=list(files), split="train", features=features, **options
    )


def _read_csv(file: str) -> Any:
    """Read a table with tabs (as for open_clip), semicolons or commas between its fields. The
    heading, not the suffix, shows which.
    """
    text = Path(file).read_text(encoding="utf-8-sig")
    heading, _, _ = text.partition("\n")
    mark = "\t" if "\t" in heading else ";" if "," not in heading else ","

    def read(strict: bool) -> list[list[str]]:
        """Read the rows; empty lines are left out."""
        rows = csv.reader(io.StringIO(text), delimiter=mark, skipinitialspace=True, strict=strict)
        try:
            return [row for row in rows if row]
        except csv.Error:
            raise ValueError(
                f"line {rows.line_num}: a quote that opens a field is not closed; close it, and"
                " double quotes inside of texts"
            ) from None

    rows = read(strict=False)
    if any("\n" in field for row in rows for field in row):
        read(strict=True)  # a quote that is not closed swallows rows
    names = rows.pop(0) if rows else []
    for number, row in enumerate(rows, 2):
        if len(row) != len(names):
            raise ValueError(f"row {number} has more or fewer fields than row 1")
    columns = {name: [row[at] for row in rows] for at, name in enumerate(names)}
    return import_datasets().Dataset.from_dict(columns)


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
    text = _pick_column(title, "label", wanted, labels or usual(CAPTION_NAMES), schema.names)
    captioned = not labels if columns.captioned is None else columns.captioned

    def read(column: str) -> Any:
        """A column as Arrow keeps it, without decoding pictures."""
        return data.select_columns([column]).with_format("arrow")

    values = read(text)[:].column(0).to_pylist()
    images = read(image)
    if image in pictures:
        shown = _pictures_of_rows(title, images)
    else:
        files = _find_files(title, images[:].column(0).to_pylist(), folder)
        if captioned:
            joined = _join_captions(files, values)
            files, values = list(joined), list(joined.values())
        shown = pictures_in_files(files)
    return OpenedSource(title, shown, values, captioned, class_names.get(text))


def _pick_column(
    title: str, kind: str, wanted: str | None, found: Sequence[str], columns: Sequence[str]
) -> str:
    """Return the user's column, or else the only candidate or the one named like its kind."""
    if not wanted and len(found) == 1:
        return found[0]
    name = wanted or kind
    if name in (columns if wanted else found):
        return name
    flags = "`image_column`" if kind == "image" else "`label_column` or `caption_column`"
    raise DataError(
        f"{title}: no column '{name}' (columns: {shorten(columns, 12)}); name one with"
        f" {flags}.{did_you_mean(name, columns)}"
    )


def _pictures_of_rows(title: str, images: Any) -> Pictures:
    """Make pictures of the rows of a table that has one column."""

    def get(row: int) -> bytes | str:
        value = images[row].column(0)[0].as_py()
        if isinstance(value, dict):  # bytes and path, as `datasets` writes them
            value = value.get("bytes") or value.get("path")
        return value or b""

    return Pictures(get, f"{title}, row {{}}".format, range(len(images)))


def _join_captions(files: list[str], values: list[Any]) -> dict[str, list[Any]]:
    """Collect the captions of each picture: several rows may name one file."""
    captions: dict[str, list[Any]] = {}
    for file, value in zip(files, values, strict=True):
        captions.setdefault(file, []).extend(value if isinstance(value, list) else [value])
    return captions


def _find_files(title: str, names: Sequence[Any], folder: Path) -> list[str]:
    """Find the files of a table in its folder, or else in the working folder."""
    files: list[Path] = []
    for name in map(str, names):
        file = folder / name
        files.append(file if file.is_file() else local_path(name))
    missing = [f"row {row}, {file}" for row, file in enumerate(files, 1) if not file.is_file()]
    remedy = f"add it to {folder} or the working folder, or remove the row"
    require_all(title, "file", missing, len(files), remedy)
    return list(map(str, files))


@contextmanager
def report_read_errors(title: str) -> Iterator[None]:
    """Turn any error of `datasets` into one line, the first line of its cause."""
    try:
        yield
    except Exception as error:  # each library below raises its own
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = str(cause).strip().partition("\n")[0] or type(cause).__name__
        raise DataError(f"{title}: cannot be read ({reason})") from error
