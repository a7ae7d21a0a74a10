"""Images in Parquet files: labels are read first, without the images; images a few rows at a time,
on demand.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from clipmerge.errors import DataError
from clipmerge.files.limits import (
    MAX_FOOTER_BYTES,
    MAX_FOOTER_PARTS,
    MAX_HELD_BYTES,
    MAX_IMAGE_BYTES,
    MAX_INFLATION,
    MAX_TEXT_BYTES,
)
from clipmerge.files.reading import format_size
from clipmerge.images.columns import TableColumns, find_columns
from clipmerge.images.decoding import Encoded
from clipmerge.images.local_files import Opener
from clipmerge.images.source import Columns, Source
from clipmerge.images.store import Store, check_count
from clipmerge.types import Shape

if TYPE_CHECKING:
    import pyarrow.parquet

_FILES_AT_ONCE = 8
# A column that repeats one large image is small in the file, so only a few rows are decoded at a
# time.
_ROWS_AT_ONCE = 4
_LABELS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class _File:
    """One file: its name and bytes, pyarrow's metadata, its columns, and the stored column of the
    images.
    """

    name: str
    size: int
    metadata: pyarrow.parquet.FileMetaData
    columns: TableColumns
    image_path: str


@dataclass(frozen=True)
class _Group:
    """One row group: its file, its number and first row there, and that row's position among
    all.
    """

    file: _File
    number: int
    row: int
    start: int


class ParquetImages(Store):
    """The image column of several files, row group by row group; the last one read stays open."""

    def __init__(self, opener: Opener, groups: list[_Group], blocks: Shape) -> None:
        self.blocks = blocks
        self._opener = opener
        self._groups = groups
        self._rows: Iterator[bytes | None] = iter(())
        self._block, self._next = -1, 0  # the open row group, and the position of its next row

    def __len__(self) -> int:
        return len(self.blocks)

    def read(self, positions: Sequence[int]) -> list[Encoded]:
        """Read images, each row group once."""
        files = [self._groups[self.blocks[position]].file for position in positions]
        stored = sum({file.name: file.size for file in files}.values())
        total = 0
        images: dict[int, Encoded] = {}
        for position in sorted(positions):  # ascending positions visit the blocks in order
            image = images[position] = self._read_row(position)
            total += len(image)
            if total > max(MAX_HELD_BYTES, MAX_INFLATION * stored):
                raise DataError(
                    f"{self.name(position)}: {format_size(stored)} of the file became"
                    f" {format_size(total)} of images; it is damaged, or made to fill memory"
                )
        return [images[position] for position in positions]

    def _read_row(self, position: int) -> bytes:
        """Read an image, from the open row group if it comes later there."""
        block = self.blocks[position]
        group = self._groups[block]
        if block != self._block or position < self._next:
            self._rows = _iter_images(self._opener, group)
            self._next = group.start
        self._block = -1  # after a fault the row group is opened again
        image = next(itertools.islice(self._rows, position - self._next, None))
        # a path beside it would be a file of this machine that a stranger chose
        image = image or b""
        if len(image) > MAX_IMAGE_BYTES:
            raise DataError(
                f"{self.name(position)}: its image is larger than {format_size(MAX_IMAGE_BYTES)}"
            )
        self._block = block
        self._next = position + 1
        return image

    def name(self, position: int) -> str:
        """File and row."""
        group = self._groups[self.blocks[position]]
        return f"{group.file.name}, row {group.row + position - group.start}"


def load_parquet(source: str, opener: Opener, names: Sequence[str], columns: Columns) -> Source:
    """Open Parquet files as one source; schema and labels are read, images are not."""
    with ThreadPoolExecutor(max_workers=_FILES_AT_ONCE) as pool:
        parts = list(pool.map(lambda name: _read_footer(opener, name, columns), names))
    first = parts[0][0]
    groups: list[_Group] = []
    blocks: list[int] = []
    for file, _ in parts:
        if file.columns != first.columns:
            raise DataError(
                f"{file.name}: its columns or class names differ from those of {first.name}; give"
                " the files of one split"
            )
        begin = len(blocks)
        for number in range(file.metadata.num_row_groups):
            groups.append(_Group(file, number, len(blocks) - begin, len(blocks)))
            blocks += [len(groups) - 1] * file.metadata.row_group(number).num_rows
        check_count(source, len(blocks))
    has_text = first.columns.text_column is not None
    values = [v for _, values in parts for v in values] if has_text else None
    return first.columns.to_source(source, ParquetImages(opener, groups, tuple(blocks)), values)


def _read_footer(opener: Opener, name: str, wanted: Columns) -> tuple[_File, list[Any]]:
    """Read the footer and the labels of one file, and check the sizes that it declares."""
    with opener(name) as file:
        parquet = _open_parquet(file)
        size = file.seek(0, io.SEEK_END)
        metadata = parquet.metadata
        check_count(name, metadata.num_rows)
        columns = find_columns(name, parquet.schema_arrow, wanted)
        # the columns of a group are not looked at: pyarrow ends the process if one contradicts
        # itself
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        rows = [group.num_rows for group in groups]
        if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
            raise EOFError("its row groups do not add up to its number of rows")
        largest = max((group.total_byte_size for group in groups), default=0)
        if largest > max(MAX_HELD_BYTES, MAX_INFLATION * size):
            raise EOFError(f"a row group would become {format_size(largest)}")
        has_text = columns.text_column is not None
        values = _read_labels(name, file, metadata, columns) if has_text else []
        if has_text and len(values) != metadata.num_rows:
            raise EOFError("it has fewer labels than its footer says")
        is_struct = parquet.schema_arrow.field(columns.image).type.num_fields > 0
        image_path = f"{columns.image}.bytes" if is_struct else columns.image
        return _File(name, size, metadata, columns, image_path), values


def _read_labels(
    where: str, file: IO[bytes], metadata: pyarrow.parquet.FileMetaData, columns: TableColumns
) -> list[Any]:
    """Read labels or captions; the text of a label, which many rows share, is kept once."""
    column = columns.text_column
    shared = [columns.label] if columns.label is not None else []
    parquet = _open_parquet(file, metadata=metadata, read_dictionary=shared)
    values: list[Any] = []
    texts: dict[str, str] = {}
    for batch in parquet.iter_batches(_LABELS_AT_ONCE, columns=[column], use_threads=False):
        (array,) = batch.columns
        if array.nbytes > MAX_TEXT_BYTES:
            raise DataError(
                f"{where}: the texts in column '{column}' are too long for labels or captions; name"
                " another"
            )
        if hasattr(array, "dictionary"):
            names = [texts.setdefault(text, text) for text in array.dictionary.to_pylist()]
            values += [None if at is None else names[at] for at in array.indices.to_pylist()]
        else:
            values += array.to_pylist()
    return values


def _iter_images(opener: Opener, group: _Group) -> Iterator[bytes | None]:
    """Read the images of one row group, a few rows at a time."""
    with opener(group.file.name) as file:
        batches = _open_parquet(file, metadata=group.file.metadata).iter_batches(
            _ROWS_AT_ONCE,
            row_groups=[group.number],
            columns=[group.file.image_path],
            use_threads=False,
        )
        for batch in batches:
            (values,) = batch.columns
            yield from (values.field("bytes") if values.type.num_fields else values).to_pylist()
        raise EOFError("it has fewer rows than its footer says")


def _open_parquet(file: IO[bytes], **options: Any) -> pyarrow.parquet.ParquetFile:
    import pyarrow.parquet

    limits = {
        "thrift_string_size_limit": MAX_FOOTER_BYTES,
        "thrift_container_size_limit": MAX_FOOTER_PARTS,
    }
    return pyarrow.parquet.ParquetFile(file, **limits, **options)
