"""Images in WebDataset tar files: ``KEY.jpg`` beside ``KEY.cls``, ``KEY.json`` or ``KEY.txt``, or
in class folders.

A ``KEY.txt`` holds a class name or captions, one per line; which of them, its words show.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import IO, Any, NamedTuple, TypeAlias, cast

from clipmerge.errors import DataError, NoLabelsError, did_you_mean, shorten
from clipmerge.files.limits import MAX_IMAGE_BYTES, MAX_LABEL_BYTES, MAX_TAR_HEADER_BYTES
from clipmerge.files.reading import format_size, parse_json, refusing
from clipmerge.images.columns import (
    CAPTION_NAMES,
    LABEL_NAMES,
    Columns,
    as_numbers,
    caption_lists,
    look_like_captions,
    number_classes,
)
from clipmerge.images.decoding import Encoded
from clipmerge.images.file_store import Description, open_local
from clipmerge.images.store import OpenedSource, Store, check_count
from clipmerge.types import Names

_MEMBER = re.compile(r"(?P<key>(?:.*/)?[^./][^.]*)\.(?P<ending>[^/]+)", re.DOTALL)
_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "avif", "jfif", "ppm", "jp2")
_TEXT = "txt"
_LABELS = ("cls", "json", _TEXT)
# labels look like captions if there are more classes than this share of the images
_CAPTIONS = 0.5


class Member(NamedTuple):
    """A file in an archive, and its position there."""

    archive: str
    name: str
    offset: int
    size: int


#: An image of an archive, and its label: a text may be captions, a tuple holds captions.
Sample: TypeAlias = tuple[Member, int | str | Names]


class TarImages(Store):
    """Images of several archives, read in place."""

    def __init__(self, members: list[Member]) -> None:
        self._members = members

    def read(self, positions: Sequence[int]) -> list[Encoded]:
        """Read images, each archive opened once."""
        images: dict[int, Encoded] = {}
        for archive in sorted({self._members[position].archive for position in positions}):
            here = [
                position for position in positions if self._members[position].archive == archive
            ]
            with open_local(archive) as file:
                for position in sorted(here):
                    member = self._members[position]
                    if member.size > MAX_IMAGE_BYTES:
                        raise DataError(
                            f"{self.name(position)}: is larger than {format_size(MAX_IMAGE_BYTES)}"
                        )
                    images[position] = _content(file, member)
        return [images[position] for position in positions]

    def name(self, position: int) -> str:
        """Archive and member."""
        member = self._members[position]
        return f"{member.archive}, {member.name}"


def load_tars(
    source: str, archives: Sequence[str], columns: Columns, described: Description
) -> OpenedSource:
    """Open tar files as one source; member headers and labels are read, images are not."""
    columns = columns_of(source, columns, described)
    samples: list[Sample] = []
    for archive in archives:
        samples += read_samples(archive, columns)
        check_count(source, len(samples))
    return joined(source, samples, columns, described)


def columns_of(source: str, columns: Columns, described: Description) -> Columns:
    """The columns to read, of sets for retrieval the captions."""
    if not columns.labelled or columns.caption is not None:
        return columns
    if described.is_retrieval and columns.label is None:
        return replace(columns, caption=_TEXT)
    described.require_classes(source)
    return columns


def read_samples(archive: str, columns: Columns) -> list[Sample]:
    """Read the headers and labels of one archive; without labels, images in several folders have
    the folder's name.
    """
    samples: list[Sample] = []
    missing: NoLabelsError | None = None
    with open_local(archive) as file:
        for key, members in groupby(_members(file, archive), key=itemgetter(0)):
            endings = {ending: member for _, ending, member in members}
            where = f"{archive}, {key}"
            named = (
                columns.image
                if columns.labelled or (columns.image or "").lower() in endings
                else None
            )
            image = _image_ending(where, list(endings), named)
            label: int | str | Names = 0
            if missing is not None:
                label = _folder(key)
            elif columns.labelled:
                try:
                    label = _label(where, file, endings, columns, is_first=not samples)
                except NoLabelsError as error:
                    missing, label = error, _folder(key)
            samples.append((endings[image], label))
            check_count(archive, len(samples))
    if missing is not None and len({label for _, label in samples}) < 2:
        raise missing
    return samples


def _folder(key: str) -> str:
    """The name of the folder that a file is in."""
    return key.rpartition("/")[0].rpartition("/")[2]


def joined(
    source: str, samples: Sequence[Sample], columns: Columns, described: Description
) -> OpenedSource:
    """Make one source of several archives and the texts beside them."""
    store = TarImages([member for member, _ in samples])
    labels = labels_of(samples)
    has_names = described.class_names is not None or columns.label is not None
    if columns.labelled and (
        columns.caption is not None
        or any(isinstance(label, tuple) for label in labels)
        or (not has_names and look_like_captions(labels))
    ):
        texts = [list(label) if isinstance(label, tuple) else str(label) for label in labels]
        captions = caption_lists(source, texts, store.name)
        note = f"{source}: images with captions, from .{columns.caption or _TEXT}"
        if described.is_retrieval:
            return OpenedSource.with_captions(store, captions)
        return OpenedSource.with_captions(store, captions, notes=(note,))
    indices, classes, named = number_classes(source, labels, described.class_names)
    verbatim = described.class_names is not None and classes == described.class_names
    notes: Names = ()
    if named and not verbatim and len(classes) > max(100, _CAPTIONS * len(labels)):
        notes = (
            f"{source}: {len(classes)} classes for {len(labels)} images; are the labels captions?"
            f" Then give `caption_column` {_TEXT}",
        )
    return OpenedSource(
        store,
        indices,
        classes,
        named,
        notes=notes,
        templates=described.templates,
        verbatim=verbatim,
    )


def labels_of(samples: Sequence[Sample]) -> Sequence[Any]:
    """Labels of all images, as numbers where all of them are numbers."""
    labels = [label for _, label in samples]
    return as_numbers(labels) or labels


def _members(file: IO[bytes], name: str) -> Iterator[tuple[str, str, Member]]:
    """Files with their key, which those of one sample share, and their ending; archives are walked
    header by header.
    """
    with tarfile.open(fileobj=cast(IO[bytes], _Headers(file)), mode="r:") as archive:
        for info in archive:
            archive.members = []  # type: ignore[attr-defined]  # otherwise it keeps every header it has read
            match = _MEMBER.fullmatch(info.name)
            if info.isreg() and match is not None:
                yield (
                    match["key"],
                    match["ending"].lower(),
                    Member(name, info.name, info.offset_data, info.size),
                )
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(
            tarfile.BLOCKSIZE
        ):  # the walk mistakes a truncated header for the end
            raise EOFError("it ends before its end mark")


class _Headers:
    """Reads the headers of a tar file, each of at most `MAX_TAR_HEADER_BYTES`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        """Read at most as many bytes as a description may have."""
        if not 0 <= size <= MAX_TAR_HEADER_BYTES:
            raise tarfile.ReadError(f"a header is larger than {format_size(MAX_TAR_HEADER_BYTES)}")
        return self._file.read(size)


def _image_ending(where: str, endings: list[str], wanted: str | None) -> str:
    if wanted is not None:
        if wanted.lower() not in endings:
            hint = did_you_mean(wanted, endings)
            raise DataError(
                f"{where}: no file ending in .{wanted} for `image_column` (endings:"
                f" {shorten(endings)}).{hint}"
            )
        return wanted.lower()
    candidates = [ending for ending in endings if ending.rpartition(".")[2] in _IMAGES]
    if not candidates:
        raise DataError(
            f"{where}: has no image beside it (endings: {shorten(endings)}); name it with"
            " `image_column`"
        )
    if len(candidates) > 1:
        raise DataError(
            f"{where}: several images ({shorten(candidates)}); name the one you mean with"
            " `image_column`"
        )
    return candidates[0]


def _label(
    where: str,
    file: IO[bytes],
    endings: dict[str, Member],
    columns: Columns,
    *,
    is_first: bool,
) -> int | str | Names:
    """Read a sample's label or captions: the text of its ``cls`` or ``txt``, or a value in its
    ``json``.
    """
    wanted = columns.caption or columns.label
    ending, _, key = (wanted or "").partition(".")
    candidates = [ending.lower()] if wanted else [ending for ending in _LABELS if ending in endings]
    captions: Names = ()
    for candidate in candidates:
        if candidate not in endings:
            break
        if endings[candidate].size > MAX_LABEL_BYTES:
            raise DataError(
                f"{where}.{candidate}: is larger than {format_size(MAX_LABEL_BYTES)}, too large"
                " for a label"
            )
        content = _content(file, endings[candidate])
        if candidate == "json":
            label, captions = _from_json(where, content.decode("utf-8", errors="replace"), key)
        else:
            # what is not UTF-8 is told from text by the check of names or captions
            label = content.decode("utf-8", errors="surrogateescape").strip()
        if label is not None and label != "":
            return label
    if captions:
        return captions
    parameter = "`caption_column`" if columns.caption else "`label_column`"
    others = ".cls, .json or .txt with a label, and is not in one of several class folders"
    needed = f".{wanted} for {parameter}" if wanted else others
    error = NoLabelsError if is_first and not wanted else DataError
    raise error(f"{where}: has no {needed} (endings: {shorten(endings)})")


def _from_json(where: str, text: str, key: str) -> tuple[int | str | None, Names]:
    """The label in a sample's JSON, or its captions."""
    with refusing(DataError, f"{where}.json: cannot be read as JSON"):
        data = parse_json(text)
    if not isinstance(data, dict):
        return None, ()
    label = next((data[name] for name in ([key] if key else LABEL_NAMES) if name in data), None)
    if isinstance(label, int | str) and not isinstance(label, bool):
        return label, ()
    value = data.get(key) if key else next((data[n] for n in CAPTION_NAMES if n in data), None)
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
        return None, tuple(texts)
    return None, ()


def _content(file: IO[bytes], member: Member) -> bytes:
    # no need to seek back: the walk of the archive seeks to every header itself
    file.seek(member.offset)
    content = file.read(member.size)
    if len(content) < member.size:
        raise EOFError("it ends in the middle of a file")
    return content
