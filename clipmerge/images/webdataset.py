"""Images in WebDataset tar files: ``KEY.jpg`` beside ``KEY.cls``, ``KEY.json`` or ``KEY.txt``."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import IO, NamedTuple, TypeAlias, cast

from clipmerge.errors import DataError, did_you_mean, shorten
from clipmerge.files.limits import LARGEST_IMAGE, LARGEST_LABEL, LARGEST_TAR_HEADER
from clipmerge.files.reading import format_size, parse_json, refusing
from clipmerge.images.columns import LABEL_NAMES, Columns, as_numbers, number_classes
from clipmerge.images.decoding import Encoded
from clipmerge.images.file_store import Description, open_local
from clipmerge.images.store import OpenedSource, Store, check_count

_MEMBER = re.compile(r"(?P<key>(?:.*/)?[^./][^.]*)\.(?P<ending>[^/]+)", re.DOTALL)
_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "avif", "jfif", "ppm", "jp2")
_LABELS = ("cls", "json", "txt")
# labels look like captions if there are more classes than this share of the images
_CAPTIONS = 0.5


class Member(NamedTuple):
    """A file in an archive, and its position there."""

    archive: str
    name: str
    offset: int
    size: int


#: An image of an archive, and its label (captions are one text).
Sample: TypeAlias = tuple[Member, int | str]


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
                    if member.size > LARGEST_IMAGE:
                        raise DataError(
                            f"{self.name(position)}: is larger than {format_size(LARGEST_IMAGE)}"
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
    if columns.labelled:
        described.require_classes(source)
    samples: list[Sample] = []
    for archive in archives:
        samples += read_samples(archive, columns)
        check_count(source, len(samples))
    return joined(source, samples, described)


def read_samples(archive: str, columns: Columns) -> list[Sample]:
    """Read the headers and labels of one archive."""
    samples: list[Sample] = []
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
            samples.append(
                (
                    endings[image],
                    _label(where, file, endings, columns.label) if columns.labelled else 0,
                )
            )
            check_count(archive, len(samples))
    return samples


def joined(source: str, samples: Sequence[Sample], described: Description) -> OpenedSource:
    """Make one source of several archives and the texts beside them."""
    labels = labels_of(samples)
    indices, classes, named = number_classes(source, labels, described.class_names)
    verbatim = described.class_names is not None and classes == described.class_names
    notes: tuple[str, ...] = ()
    if named and not verbatim and len(classes) > max(100, _CAPTIONS * len(labels)):
        notes = (
            f"{source}: {len(classes)} classes for {len(labels)} images; are the labels captions?",
        )
    store = TarImages([member for member, _ in samples])
    return OpenedSource(
        store,
        indices,
        classes,
        named,
        notes=notes,
        templates=described.templates,
        verbatim=verbatim,
    )


def labels_of(samples: Sequence[Sample]) -> Sequence[int | str]:
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
    """Reads the headers of a tar file, and refuses one that is larger than `LARGEST_TAR_HEADER`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        """Read at most as many bytes as a description may have."""
        if not 0 <= size <= LARGEST_TAR_HEADER:
            raise tarfile.ReadError(f"a header is larger than {format_size(LARGEST_TAR_HEADER)}")
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
    where: str, file: IO[bytes], endings: dict[str, Member], wanted: str | None
) -> int | str:
    """Read a sample's label: the text of its ``cls`` or ``txt``, or the label in its ``json``."""
    ending, _, key = (wanted or "").partition(".")
    candidates = [ending.lower()] if wanted else [ending for ending in _LABELS if ending in endings]
    for candidate in candidates:
        if candidate not in endings:
            break
        if endings[candidate].size > LARGEST_LABEL:
            raise DataError(
                f"{where}.{candidate}: is larger than {format_size(LARGEST_LABEL)}, too large for a"
                " label"
            )
        text = _content(file, endings[candidate]).decode("utf-8", errors="replace").strip()
        label = _from_json(where, text, key) if candidate == "json" else text
        if label is not None and label != "":
            return label
    needed = f".{wanted} for `label_column`" if wanted else ".cls, .json or .txt with a label"
    raise DataError(f"{where}: has no {needed} (endings: {shorten(endings)})")


def _from_json(where: str, text: str, key: str) -> int | str | None:
    with refusing(DataError, f"{where}.json: cannot be read as JSON"):
        value = parse_json(text)
    if not isinstance(value, dict):
        return None
    names = [key] if key else [name for name in LABEL_NAMES if name in value]
    label = value.get(names[0]) if names else None
    return label if isinstance(label, int | str) and not isinstance(label, bool) else None


def _content(file: IO[bytes], member: Member) -> bytes:
    # no need to seek back: the walk of the archive seeks to every header itself
    file.seek(member.offset)
    content = file.read(member.size)
    if len(content) < member.size:
        raise EOFError("it ends in the middle of a file")
    return content
