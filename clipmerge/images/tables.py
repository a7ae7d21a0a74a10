"""Tables of pictures, as `pyarrow` reads them: Parquet, CSV, TSV, JSON Lines and Arrow files, and a
`datasets.Dataset`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from clipmerge.errors import ClipmergeError, DataError, counted, did_you_mean, shorten
from clipmerge.files import local_path, user_cache
from clipmerge.images.image_set import (
    CAPTION_NAMES,
    LABEL_NAMES,
    Columns,
    OpenedSource,
    Pictures,
    picture_files,
)
from clipmerge.images.tar import load_tars
from clipmerge.types import Names

if TYPE_CHECKING:
    import pyarrow as pa

#: Names of columns with names of image files.
FILE_NAMES = ("file_name", "filepath", "file", "path", "image", "image_path", "filename")
# Rows of a Parquet file in memory at once while it is copied; a picture may have megabytes.
_ROWS_AT_ONCE = 256
# Bytes of a line of JSON, at most.
_LONGEST_LINE = 1 << 24


def load_files(
    title: str, files: Sequence[str], columns: Columns, folder: Path | None = None
) -> OpenedSource:
    """Open one table or tar file, or several of a kind as one. Names of files in a table start from
    ``folder``, by default the table's own.
    """
    suffixes = sorted({Path(file).suffix.lower() for file in files})
    suffix = suffixes[0]
    if suffixes == [".tar"]:
        return load_tars(title, files, columns)
    if len(suffixes) > 1 or suffix not in READERS:
        raise DataError(
            f"{title}: is {shorten(suffixes)}; give files of one kind:"
            f" {shorten(['.tar', *READERS], 9)}"
        )
    with one_line(title):
        import pyarrow as pa

        tables = list(map(READERS[suffix], files))
        table = pa.concat_tables(tables, promote_options="default")
    if not table.num_rows:
        raise DataError(f"{title}: has no rows")
    return _open_table(title, table.schema, table.select, columns, folder or Path(files[0]).parent)


def load_dataset(title: str, data: Any, columns: Columns) -> OpenedSource:
    """Open a `datasets.Dataset`, in memory or mapped from a disk."""
    select = data.with_format("arrow").select_columns
    return _open_table(title, data.features.arrow_schema, select, columns, Path())


def _map_parquet(file: str) -> pa.Table:
    """Map the copy of a Parquet file in the cache, of which any row can be read in place."""
    about = Path(file).stat()
    version = f"{Path(file).resolve()} {about.st_size} {about.st_mtime_ns}"
    name = sha256(version.encode()).hexdigest()
    copy = user_cache("tables") / f"{name}.arrow"
    if not copy.is_file():
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile

        copy.parent.mkdir(parents=True, exist_ok=True)
        parquet = ParquetFile(file, memory_map=True)
        with TemporaryDirectory(dir=copy.parent) as folder:
            part = Path(folder, copy.name)
            with pa.ipc.new_stream(str(part), parquet.schema_arrow) as writer:
                for rows in parquet.iter_batches(_ROWS_AT_ONCE):
                    writer.write_batch(rows)
            part.replace(copy)
    return _map_arrow(str(copy))


def _map_arrow(file: str) -> pa.Table:
    import pyarrow as pa

    return pa.ipc.open_stream(pa.memory_map(file)).read_all()


def _read_csv(file: str) -> pa.Table:
    """Read texts between tabs, as open_clip has them, semicolons or commas, whatever the suffix."""
    import pyarrow as pa

    with Path(file).open(encoding="utf-8-sig", newline="") as opened:
        heading = opened.readline()
        opened.seek(0)
        mark = "\t" if "\t" in heading else ";" if "," not in heading else ","
        reader = csv.reader(opened, delimiter=mark, skipinitialspace=True)
        names = next(reader, [])
        rows: list[list[str]] = []
        for row in filter(None, reader):
            if len(row) != len(names):
                raise ValueError(
                    f"line {reader.line_num} has {len(row)} fields, and the heading {len(names)}"
                )
            rows.append(row)
        if any("\n" in field for row in rows for field in row):
            opened.seek(0)
            _refuse_open_quotes(csv.reader(opened, reader.dialect, strict=True))
    columns = list(zip(*rows, strict=True)) or [() for _ in names]
    return pa.table(dict(zip(names, columns, strict=True)))


def _refuse_open_quotes(reader: Any) -> None:
    """Refuse a quote that is not closed in its field, and so swallows the rows up to the next."""
    try:
        for _ in reader:
            pass
    except csv.Error:
        raise ValueError(
            f"line {reader.line_num}: a quote that opens a field is not closed; close it, and"
            " double those inside of texts"
        ) from None


def _read_json_lines(file: str) -> pa.Table:
    from pyarrow import json

    return json.read_json(file, json.ReadOptions(block_size=_LONGEST_LINE))


#: Readers of a file by its suffix.
READERS: Mapping[str, Callable[[str], pa.Table]] = {
    ".parquet": _map_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json_lines,
    ".arrow": _map_arrow,
}


def _open_table(
    title: str,
    schema: pa.Schema,
    select: Callable[[list[str]], Any],
    columns: Columns,
    folder: Path,
) -> OpenedSource:
    """Read labels or captions now, and pictures when they are needed; ``select`` gives some of the
    columns, whose rows are slices.
    """
    class_names = _class_names(schema)
    chosen = _choose_columns(title, schema, columns, list(class_names))
    values = select([chosen.text])[:].column(0).to_pylist()
    images = select([chosen.image])
    if _kind_of_column(schema.field(chosen.image).type) == "texts":
        files = _find_files(title, images[:].column(0).to_pylist(), folder)
        if chosen.captioned:
            files, values = _join_captions(files, values)
        pictures = picture_files(files)
    else:
        pictures = _pictures_of_rows(title, images, len(values))
    return OpenedSource(
        title=title,
        pictures=pictures,
        values=values,
        captioned=chosen.captioned,
        class_names=class_names.get(chosen.text),
        notes=chosen.notes,
    )


def _class_names(schema: pa.Schema) -> dict[str, Names]:
    """The names of classes by column, as `datasets` writes them."""
    written = json.loads((schema.metadata or {}).get(b"huggingface", "{}"))
    features = written.get("info", {}).get("features", {})
    return {
        column: tuple(feature["names"])
        for column, feature in features.items()
        if "names" in feature
    }


def _pictures_of_rows(title: str, images: Any, count: int) -> Pictures:
    """The pictures of a table of one column, by row."""

    def name(row: int) -> str:
        return f"{title}, row {row}"

    def get(row: int) -> bytes | str:
        value = images[row : row + 1].column(0)[0].as_py()
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        return value or b""

    return Pictures(get, name, range(count))


def _join_captions(files: list[str], values: list[Any]) -> tuple[list[str], list[Any]]:
    """The captions of each picture, which may have a row for each of them."""
    captions: dict[str, list[Any]] = {}
    for file, value in zip(files, values, strict=True):
        listed = value if isinstance(value, list) else [value]
        captions.setdefault(file, []).extend(listed)
    return list(captions), list(captions.values())


@dataclass(frozen=True)
class _Choice:
    """The columns of a table that are read."""

    image: str
    text: str  # labels or captions
    captioned: bool
    notes: Names


def _choose_columns(title: str, schema: pa.Schema, wanted: Columns, classes: list[str]) -> _Choice:
    """Choose the columns that the user named; otherwise those of a type or with a usual name, and
    captions only without labels.
    """
    kinds = {field.name: _kind_of_column(field.type) for field in schema}
    pictures = [name for name, kind in kinds.items() if kind == "images"]
    files = [name for name in FILE_NAMES if kinds.get(name) == "texts"]
    usual = [name for name in LABEL_NAMES if name in kinds]
    labels = classes or usual[:1]
    captions = [name for name in CAPTION_NAMES if kinds.get(name) in ("texts", "lists")]
    image = _pick_column(title, "image", wanted.image, pictures or files[:1], kinds)
    text = _pick_column(
        title, "label or caption", wanted.caption or wanted.label, labels or captions[:1], kinds
    )
    captioned = wanted.captioned
    notes: Names = ()
    if captioned is None:
        captioned = not labels
        if labels and captions:
            notes = (
                f"{title}: has labels (column '{text}') and captions ('{captions[0]}'); the labels"
                f" are taken; the captions are with `caption_column` {captions[0]}",
            )
    _require_kind(title, schema.field(image), ("images", "texts"))
    _require_kind(title, schema.field(text), ("texts", "lists" if captioned else "numbers"))
    return _Choice(image, text, captioned, notes)


def _require_kind(title: str, column: pa.Field, allowed: Names) -> None:
    if _kind_of_column(column.type) not in allowed:
        kinds = " or ".join(allowed)
        raise DataError(f"{title}: column '{column.name}' holds {column.type}, not {kinds}")


def _pick_column(
    title: str, kind: str, wanted: str | None, found: Sequence[str], columns: Mapping[str, str]
) -> str:
    """The column that the user named; or the one that was found, or of several the one that has the
    usual name.
    """
    if wanted:
        if wanted in columns:
            return wanted
        what = f"no column '{wanted}'"
    elif kind in found:
        return kind
    elif len(found) == 1:
        return found[0]
    else:
        what = f"several {kind} columns ({shorten(found)})" if found else f"no {kind} column"
    flags = " or ".join(f"`{name}_column`" for name in kind.split(" or "))
    raise DataError(
        f"{title}: {what} (columns: {shorten(columns, 12)}); name it with"
        f" {flags}.{did_you_mean(wanted or '', columns)}"
    )


def _kind_of_column(held: pa.DataType) -> str:
    """What a column holds: ``images``, ``numbers``, ``texts``, ``lists`` of texts, or nothing that
    is read.
    """
    name = str(held)
    if "binary" in name:  # also in the pairs of bytes and path that `datasets` writes
        return "images"
    if name.startswith(("list", "large_list")):
        return "lists" if "string" in name else ""
    if "string" in name and not name.startswith("struct"):
        return "texts"
    return "numbers" if re.match(r"u?int", name) else ""


def _find_files(title: str, names: Sequence[str | None], folder: Path) -> list[str]:
    """The files of all rows, beside the table or else from the working folder; missing ones are
    named.
    """
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
def one_line(title: str) -> Iterator[None]:
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
