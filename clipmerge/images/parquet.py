"""Images in Parquet: labels are read by themselves, images by row group when they are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from clipmerge.errors import DataError
from clipmerge.images.columns import Columns, Found, find_columns, number_classes
from clipmerge.images.places import Place
from clipmerge.images.store import Encoded, Labelled

if TYPE_CHECKING:
    import pyarrow.parquet

_AT_ONCE = 8


@dataclass(frozen=True)
class _Group:
    """One row group: its file, its number and its first row there, and that row's position in the whole."""

    file: str
    number: int
    row: int
    start: int


@dataclass
class ParquetImages:
    """The image column of several files; the row group read last is kept."""

    place: Place
    column: str
    groups: list[_Group]
    blocks: tuple[int, ...]
    metadata: dict[str, Any] = field(repr=False)
    _kept: tuple[int, list[Encoded]] = field(default=(-1, []), repr=False)

    def read(self, positions: Sequence[int]) -> list[Encoded]:
        """Read images, each row group once."""
        found: dict[int, Encoded] = {}
        for position in sorted(positions):  # positions go through the blocks in order
            block = self.blocks[position]
            found[position] = self._rows(block)[position - self.groups[block].start]
        return [found[position] for position in positions]

    def _rows(self, block: int) -> list[Encoded]:
        if self._kept[0] != block:
            group = self.groups[block]
            with self.place.reading(group.file), self.place.open(group.file) as file:
                table = _open(file, self.metadata[group.file]).read_row_group(group.number, columns=[self.column])
                self._kept = block, [_encoded(value) for value in table.column(self.column).to_pylist()]
        return self._kept[1]

    def name(self, position: int) -> str:
        """File and row."""
        group = self.groups[self.blocks[position]]
        return f"{self.place.called(group.file)}, row {group.row + position - group.start}"


def load_parquet(source: str, place: Place, files: Sequence[str], asked: Columns) -> Labelled:
    """Open Parquet files as one source: schema and labels are read, no image.

    Args:
        source: What the user wrote, for messages.
        place: Where the files lie.
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
    found = parts[0].columns
    groups: list[_Group] = []
    labels: list[Any] = []
    blocks: list[int] = []
    for file, part in zip(files, parts, strict=True):
        if part.columns != found:
            raise DataError(
                f"{place.called(file)}: its columns or class names differ from those of {place.called(files[0])}; "
                "give the files of one split"
            )
        start = len(labels)
        for number, rows in enumerate(part.rows):
            blocks += [len(groups)] * rows
            groups.append(_Group(file, number, start - len(labels), start))
            start += rows
        labels += part.labels
    indices, classes, named = number_classes(source, labels, found.names)
    metadata = {file: part.metadata for file, part in zip(files, parts, strict=True)}
    return Labelled(ParquetImages(place, found.image, groups, tuple(blocks), metadata), indices, classes, named)


@dataclass(frozen=True)
class _Part:
    """One file: its columns, labels, and rows by row group."""

    columns: Found
    labels: list[Any]
    rows: list[int]
    metadata: Any


def _index(place: Place, name: str, asked: Columns) -> _Part:
    with place.reading(name), place.open(name) as file:
        parquet = _open(file)
        columns = find_columns(place.called(name), parquet.schema_arrow, asked)
        labels = parquet.read(columns=[columns.label]).column(columns.label).to_pylist()
        rows = [parquet.metadata.row_group(number).num_rows for number in range(parquet.num_row_groups)]
        return _Part(columns, labels, rows, parquet.metadata)


def _open(file: Any, metadata: Any = None) -> pyarrow.parquet.ParquetFile:
    import pyarrow.parquet

    # ranges that lie together are fetched together
    return pyarrow.parquet.ParquetFile(file, metadata=metadata, pre_buffer=True)


def _encoded(value: Any) -> Encoded:
    if isinstance(value, dict):
        return {"bytes": value.get("bytes"), "path": value.get("path")}
    return {"bytes": value, "path": None}
