"""Images in Parquet files: labels are read first, without the images; images a few rows at a time, on demand."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from clipmerge.errors import DataError
from clipmerge.files.limits import LARGEST_HELD, LARGEST_IMAGE, LARGEST_TEXT, MOST_IMAGES, MOST_INFLATION
from clipmerge.files.reading import told_size
from clipmerge.images.columns import Columns, Found, find_columns, number_classes
from clipmerge.images.pages import Chunk, RowGroup, Window, read_chunk, read_footer
from clipmerge.images.places import Place
from clipmerge.images.store import Encoded, Labelled
from clipmerge.images.thrift import Damaged

if TYPE_CHECKING:
    import pyarrow.parquet

_AT_ONCE = 8
# A column that repeats one large image is small in the file, so only a few rows are decoded at a time.
_ROWS_AT_ONCE = 4
_LABELS_AT_ONCE = 1 << 14
_BUFFER = 1 << 20


@dataclass(frozen=True)
class _Group:
    """One row group: its file, its number and first row in the file, that row's position among all, and its images."""

    file: str
    number: int
    row: int
    start: int
    rows: int
    images: Chunk


class _Rows:
    """The images of one row group, read front to back; going back starts over."""

    def __init__(self, place: Place, group: _Group, metadata: Any, path: str) -> None:
        # a function, not a method: a generator that refers to this object would keep the file open
        self._begin = partial(_images, place, group, metadata, path)
        self._images = self._begin()
        self._next, self._latest = 0, b""
        self.compressed = group.images.length

    def __getitem__(self, row: int) -> bytes:
        """One image by its row in the group."""
        if row < self._next - 1:
            self.close()
            self._images, self._next = self._begin(), 0
        while self._next <= row:
            self._latest = next(self._images)
            self._next += 1
        return self._latest

    def close(self) -> None:
        """Close the file."""
        self._images.close()


def _images(place: Place, group: _Group, metadata: Any, path: str) -> Generator[bytes, None, None]:
    """Read the images of one row group, a few rows at a time; nobody asks for more than the footer promises."""
    row = group.row
    with place.reading(group.file), place.open(group.file) as file:
        begin, data = read_chunk(file, group.images)
        batches = _open(Window(file, {begin: data}), metadata).iter_batches(
            _ROWS_AT_ONCE, row_groups=[group.number], columns=[path], use_threads=False
        )
        for batch in batches:
            for image in _bytes_of(batch):
                yield _checked(f"{place.called(group.file)}, row {row}", image)
                row += 1
        raise EOFError("it has fewer rows than its footer says")


@dataclass
class ParquetImages:
    """The image column of several files; the last row group read stays open.

    Attributes:
        place: Place of the files.
        groups: Their row groups, in order.
        blocks: Row group of every image.
        opened: By file, pyarrow's metadata and the path of the image column.
    """

    place: Place
    groups: list[_Group]
    blocks: tuple[int, ...]
    opened: dict[str, tuple[Any, str]] = field(repr=False)
    _kept: tuple[int, _Rows | None] = field(default=(-1, None), repr=False)

    def read(self, positions: Sequence[int]) -> list[Encoded]:
        """Read images, each row group once."""
        images: dict[int, Encoded] = {}
        held = read = 0
        for position in sorted(positions):  # ascending positions visit the blocks in order
            block = self.blocks[position]
            is_new = self._kept[0] != block
            rows = self._rows(block)
            image = rows[position - self.groups[block].start]
            read += rows.compressed if is_new or not read else 0
            held += len(image)
            if held > max(LARGEST_HELD, MOST_INFLATION * read):
                raise DataError(
                    f"{self.name(position)}: {told_size(read)} of the file became {told_size(held)} of "
                    "images; it is damaged, or made to fill memory"
                )
            images[position] = {"bytes": image, "path": None}
        return [images[position] for position in positions]

    def _rows(self, block: int) -> _Rows:
        at, rows = self._kept
        if rows is None or at != block:
            if rows is not None:
                rows.close()
            group = self.groups[block]
            rows = _Rows(self.place, group, *self.opened[group.file])
            self._kept = block, rows
        return rows

    def name(self, position: int) -> str:
        """File and row."""
        group = self.groups[self.blocks[position]]
        return f"{self.place.called(group.file)}, row {group.row + position - group.start}"


def load_parquet(source: str, place: Place, files: Sequence[str], asked: Columns) -> Labelled:
    """Open Parquet files as one source; schema and labels are read, images are not.

    Args:
        source: The source as the user wrote it, for messages.
        place: Place of the files.
        files: Their names, sorted.
        asked: The columns that the user named.

    Returns:
        The source.

    Raises:
        DataError: If a file is damaged, a column is missing, or images have no label.
        HubError: If a file on the Hub cannot be reached.
    """
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        parts = list(pool.map(lambda file: _index(place, file, asked), files))
    columns = parts[0].columns
    groups: list[_Group] = []
    labels: list[Any] = []
    blocks: list[int] = []
    for file, part in zip(files, parts, strict=True):
        if part.columns != columns:
            raise DataError(
                f"{place.called(file)}: its columns or class names differ from those of {place.called(files[0])}; "
                "give the files of one split"
            )
        start = len(labels)
        for number, (rows, images) in enumerate(part.groups):
            blocks += [len(groups)] * rows
            groups.append(_Group(file, number, start - len(labels), start, rows, images))
            start += rows
        labels += part.labels
        _check_count(source, len(labels))
    indices, classes, named = number_classes(source, labels, columns.names)
    opened = {file: part.opened for file, part in zip(files, parts, strict=True)}
    return Labelled(ParquetImages(place, groups, tuple(blocks), opened), indices, classes, named)


@dataclass(frozen=True)
class _Part:
    """One file: its columns, labels, rows and images by row group; pyarrow's metadata, and the path of the images."""

    columns: Found
    labels: list[Any]
    groups: list[tuple[int, Chunk]]
    opened: tuple[Any, str]


def _index(place: Place, name: str, asked: Columns) -> _Part:
    with place.reading(name), place.open(name) as file:
        footer = read_footer(file)
        parquet = _open(Window(file, {footer.begin: footer.tail}))
        metadata = parquet.metadata
        _check_count(place.called(name), metadata.num_rows)
        columns = find_columns(place.called(name), parquet.schema_arrow, asked)
        rows = [group.rows for group in footer.groups]
        if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
            raise EOFError("its row groups do not add up to its number of rows")
        if any(len(group.columns) != metadata.num_columns for group in footer.groups):
            raise EOFError("its row groups differ in their number of columns")
        labels = [0] * sum(rows)
        if columns.label is not None:
            labels = _labels(place.called(name), file, metadata, columns.label, footer.groups)
        if len(labels) != metadata.num_rows:
            raise EOFError("it has fewer labels than its footer says")
        at = _leaf(metadata, columns.image)
        groups = [(group.rows, group.columns[at]) for group in footer.groups]
        return _Part(columns, labels, groups, (metadata, metadata.schema.column(at).path))


def _labels(where: str, file: Any, metadata: Any, column: str, groups: Sequence[RowGroup]) -> list[Any]:
    """Read the labels; a text shared by many rows is kept once."""
    index = _leaf(metadata, column)
    filled = [number for number, group in enumerate(groups) if group.rows]
    ranges = dict(read_chunk(file, groups[number].columns[index]) for number in filled)
    is_text = "BYTE_ARRAY" in metadata.schema.column(index).physical_type
    parquet = _open(Window(file, ranges), metadata, read_dictionary=[column] if is_text else None)
    labels: list[Any] = []
    texts: dict[str, str] = {}
    for batch in parquet.iter_batches(_LABELS_AT_ONCE, row_groups=filled, columns=[column], use_threads=False):
        (values,) = batch.columns
        if values.nbytes > LARGEST_TEXT:
            raise DataError(f"{where}: the labels in column '{column}' are longer than class names; name another")
        if hasattr(values, "dictionary"):
            named = [texts.setdefault(text, text) if text else text for text in values.dictionary.to_pylist()]
            labels += [None if at is None else named[at] for at in values.indices.to_pylist()]
        else:
            labels += values.to_pylist()
    return labels


def _leaf(metadata: Any, column: str) -> int:
    """Index of the stored column that holds a column's numbers, texts or bytes."""
    paths = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    found = [number for number, path in enumerate(paths) if path in (column, f"{column}.bytes")]
    if not found:
        raise Damaged(f"column '{column}' holds no bytes, numbers or texts")
    return found[0]


def _check_count(where: str, count: int) -> None:
    if count > MOST_IMAGES:
        raise DataError(f"{where}: has {count} images, more than {MOST_IMAGES}; give some of the files")


def _open(file: Any, metadata: Any = None, **options: Any) -> pyarrow.parquet.ParquetFile:
    import pyarrow.parquet

    # with a buffer size pages are read one by one, and ranges in memory are not copied whole
    return pyarrow.parquet.ParquetFile(file, metadata=metadata, buffer_size=_BUFFER, **options)


def _bytes_of(batch: Any) -> list[Any]:
    """The bytes of some rows, from a column of bytes or of structures with ``bytes``."""
    (values,) = batch.columns
    with contextlib.suppress(AttributeError):
        values = values.field("bytes")
    return list(values.to_pylist())


def _checked(where: str, image: bytes | None) -> bytes:
    if image is None:  # there may be a path instead: a file on this machine that somebody else chose
        raise DataError(f"{where}: holds no image; a path beside it is not followed, store the images' bytes")
    if len(image) > LARGEST_IMAGE:
        raise DataError(f"{where}: its image is larger than {told_size(LARGEST_IMAGE)}")
    return image
