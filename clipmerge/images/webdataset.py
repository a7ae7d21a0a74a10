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
from clipmerge.images.captions import caption_lines, has_captions
from clipmerge.images.columns import CAPTION_NAMES, LABEL_NAMES
from clipmerge.images.decoding import Encoded
from clipmerge.images.local_files import open_local
from clipmerge.images.shard_texts import Description
from clipmerge.images.source import Columns, Source
from clipmerge.images.store import Store, check_count

_MEMBER = re.compile(r"(?P<key>(?:.*/)?[^./][^.]*)\.(?P<ending>[^/]+)", re.DOTALL)
_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "avif", "jfif", "ppm", "jp2")
_TEXT = "txt"
_LABELS = ("cls", "json", _TEXT)


class Member(NamedTuple):
    """A file in an archive, and its position there."""

    archive: str
    name: str
    offset: int
    size: int


#: An image of an archive, and its label (a text may be captions) or a list of captions.
Sample: TypeAlias = tuple[Member, int | str | list[str]]


class TarImages(Store):
    """Images of several archives, read in place."""

    def __init__(self, members: list[Member]) -> None:
        self._members = members

    def __len__(self) -> int:
        return len(self._members)

    def read(self, positions: Sequence[int]) -> list[Encoded]:
        """Read images, each archive opened once."""
        images: dict[int, Encoded] = {}

        def archive_of(position: int) -> str:
            return self._members[position].archive

        ordered = sorted(sorted(positions), key=archive_of)
        for archive, group in groupby(ordered, key=archive_of):
            with open_local(archive) as file:
                for position in group:
                    member = self._members[position]
                    if member.size > MAX_IMAGE_BYTES:
                        raise DataError(
                            f"{self.name(position)}: is larger than {format_size(MAX_IMAGE_BYTES)}"
                        )
                    images[position] = _read_member(file, member)
        return [images[position] for position in positions]

    def name(self, position: int) -> str:
        """Archive and member."""
        member = self._members[position]
        return f"{member.archive}, {member.name}"


def load_tars(
    source: str, archives: Sequence[str], columns: Columns, described: Description
) -> Source:
    """Open tar files as one source; member headers and labels are read, images are not."""
    columns = columns_of(source, columns, described)
    samples: list[Sample] = []
    unlabelled: list[Sample] = []
    error: NoLabelsError | None = None
    for archive in archives:
        more, missing = read_samples(archive, columns)
        samples += more
        unlabelled += more if missing else []
        error = error or missing
        check_count(source, len(samples))
    require_folders(unlabelled, error)
    return join_samples(source, samples, columns, described)


def columns_of(source: str, columns: Columns, described: Description) -> Columns:
    """The columns to read, of sets for retrieval the captions."""
    if not columns.labelled or columns.caption is not None:
        return columns
    if described.is_retrieval and columns.label is None:
        return replace(columns, caption=_TEXT)
    described.require_classes(source)
    return columns


def read_samples(archive: str, columns: Columns) -> tuple[list[Sample], NoLabelsError | None]:
    """Read the headers and labels of one archive; without labels, images have the name of their
    folder, and an error comes with them for `require_folders`.
    """
    samples: list[Sample] = []
    missing: NoLabelsError | None = None
    with open_local(archive) as file:
        for key, members in groupby(_members(file, archive), key=itemgetter(0)):
            endings = {ending: member for _, ending, member in members}
            where = f"{archive}, {key}"
            named = columns.image and columns.image.lower()
            if not columns.labelled and named not in endings:
                named = None
            image = endings[_image_ending(where, list(endings), named)]
            label: int | str | list[str] = 0
            if missing is not None:
                label = _folder(key)
            elif columns.labelled:
                try:
                    label = _label(where, file, endings, columns, not samples)
                except NoLabelsError as error:
                    missing = error
                    label = _folder(key)
            samples.append((image, label))
            check_count(archive, len(samples))
    return samples, missing


def require_folders(unlabelled: Sequence[Sample], error: NoLabelsError | None) -> None:
    """Raise the error about archives without labels, unless their images are in several folders."""
    if error is not None and len({folder for _, folder in unlabelled}) < 2:
        raise error


def _folder(key: str) -> str:
    """The name of the folder that a file is in."""
    return key.rpartition("/")[0].rpartition("/")[2]


def join_samples(
    source: str, samples: Sequence[Sample], columns: Columns, described: Description
) -> Source:
    """Make one source of several archives and the texts beside them."""
    values = [value for _, value in samples]
    ending = columns.caption or ("json" if any(isinstance(v, list) for v in values) else _TEXT)
    opened = Source(
        source,
        TarImages([member for member, _ in samples]),
        values if columns.labelled else None,
        captioned=columns.captioned,
        # captions that the set has by itself need no note
        captions_from=None if described.is_retrieval else f".{ending}",
        class_names=described.class_names,
        verbatim=True,
        templates=described.templates,
    )
    if has_captions(opened):
        lines = [caption_lines(value) if isinstance(value, str) else value for value in values]
        return replace(opened, values=lines)
    return opened


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
        # the walk mistakes a truncated header for the end
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise EOFError("it ends before its end mark")


class _Headers:
    """Reads the headers of a tar file, each of at most `MAX_TAR_HEADER_BYTES`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        """Read at most as many bytes as a description may have."""
        if not 0 <= size <= MAX_TAR_HEADER_BYTES:
            raise tarfile.ReadError(f"a header is larger than {format_size(MAX_TAR_HEADER_BYTES)}")
        return self._file.read(size)


def _image_ending(where: str, endings: list[str], wanted: str | None) -> str:
    if wanted is not None:
        if wanted not in endings:
            raise DataError(
                f"{where}: no file ending in .{wanted} for `image_column` (endings:"
                f" {shorten(endings)}).{did_you_mean(wanted, endings)}"
            )
        return wanted
    candidates = [ending for ending in endings if ending.rpartition(".")[2] in _IMAGES]
    if len(candidates) != 1:
        some = f"several images ({shorten(candidates)}); name the one you mean"
        none = f"has no image beside it (endings: {shorten(endings)}); name it"
        raise DataError(f"{where}: {some if candidates else none} with `image_column`")
    return candidates[0]


def _label(
    where: str, file: IO[bytes], endings: dict[str, Member], columns: Columns, is_first: bool
) -> int | str | list[str]:
    """Read a sample's label or captions: the text of its ``cls`` or ``txt``, or a value in its
    ``json``.
    """
    wanted = columns.caption or columns.label
    named, _, key = (wanted or "").partition(".")
    captions: list[str] = []
    for ending in [named.lower()] if wanted else _LABELS:
        if ending not in endings:
            continue
        if endings[ending].size > MAX_LABEL_BYTES:
            raise DataError(
                f"{where}.{ending}: is larger than {format_size(MAX_LABEL_BYTES)}, too large for a"
                " label"
            )
        content = _read_member(file, endings[ending])
        if ending == "json":
            label = _label_from_json(where, content.decode("utf-8", errors="replace"), key)
            if columns.caption and isinstance(label, str):
                label = [label]  # a whole text, not lines of captions
        else:
            # what is not UTF-8 is told from text by the check of names or captions
            label = content.decode("utf-8", errors="surrogateescape").strip()
        if isinstance(label, list):
            captions = [] if columns.label else label
        elif label is not None and label != "":
            return label
    if captions:
        return captions
    parameter = "`caption_column`" if columns.caption else "`label_column`"
    others = ".cls, .json or .txt with a label, and is not in one of several class folders"
    needed = f".{wanted} for {parameter}" if wanted else others
    error = NoLabelsError if is_first and not wanted else DataError
    raise error(f"{where}: has no {needed} (endings: {shorten(endings)})")


def _label_from_json(where: str, text: str, key: str) -> int | str | list[str] | None:
    """The label in a sample's JSON, or its captions."""
    with refusing(DataError, f"{where}.json: cannot be read as JSON"):
        data = parse_json(text)
    if not isinstance(data, dict):
        return None

    def first(names: Sequence[str]) -> Any:
        return next((data[name] for name in names if name in data), None)

    label = first([key] if key else LABEL_NAMES)
    if isinstance(label, int | str) and not isinstance(label, bool):
        return label
    captions = first([key] if key else CAPTION_NAMES)
    texts = [captions] if isinstance(captions, str) else captions
    is_list = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
    return texts if is_list else None


def _read_member(file: IO[bytes], member: Member) -> bytes:
    # no need to seek back: the walk of the archive seeks to every header itself
    file.seek(member.offset)
    content = file.read(member.size)
    if len(content) < member.size:
        raise EOFError("it ends in the middle of a file")
    return content
