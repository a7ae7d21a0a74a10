"""Pictures in tar files as WebDataset writes them: ``KEY.jpg`` beside ``KEY.cls``, ``KEY.json`` or
``KEY.txt``, or in class folders. Headers and labels are read once, pictures in place.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any, NamedTuple

from clipmerge.errors import DataError, shorten
from clipmerge.images.folder import IMAGE_SUFFIXES, caption_lines, is_hidden
from clipmerge.images.image_set import (
    CAPTION_NAMES,
    LABEL_NAMES,
    Columns,
    OpenedSource,
    Pictures,
    first_named,
)
from clipmerge.types import Names

#: Texts that CLIP_benchmark writes beside the archives of a data set.
TEXTS = ("classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt")


class Member(NamedTuple):
    """A file in an archive, and where it lies there."""

    archive: str
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Read the file."""
        with Path(self.archive).open("rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise DataError(f"{self.archive}, {self.name}: the archive ends inside it")
        return content


def load_tars(title: str, archives: Sequence[str], columns: Columns) -> OpenedSource:
    """Index tar files as one source, with the texts beside them or in the folder above."""
    class_names, templates, kind = (_text_beside(Path(archives[0]), name) for name in TEXTS)
    if kind == ("retrieval",) and columns.captioned is None:
        columns = replace(columns, caption="txt")
    images: list[Member] = []
    values: list[Any] = []
    for archive in archives:
        for key, samples in groupby(_read_members(archive), key=itemgetter(0)):
            files = {ending: member for _, ending, member in samples}
            where = f"{archive}, {key}"
            images.append(_image_of(where, files, columns.image))
            values.append(_label_or_captions(where, key, files, columns))
    has_values = any(value not in (None, "") for value in values)
    if values and not has_values:
        raise DataError(
            f"{title}: its images have no .cls, .json or .txt with a label beside them, and are not"
            " in class folders"
        )
    return OpenedSource(
        title,
        Pictures(
            lambda at: images[at].read(),
            lambda at: f"{images[at].archive}, {images[at].name}",
            range(len(images)),
        ),
        values,
        captioned=columns.captioned,
        class_names=class_names or None,
        verbatim=True,
        templates=tuple(line.replace("{c}", "{}") for line in templates),
    )


def _text_beside(archive: Path, name: str) -> Names:
    """The lines of a text in the folder of an archive or in the one above; empty without it."""
    for folder in archive.absolute().parents[:2]:
        file = folder / name
        if file.is_file():
            return tuple(file.read_text("utf-8").rstrip().splitlines())
    return ()


def _read_members(archive: str) -> Iterator[tuple[str, str, Member]]:
    """The files of an archive: their key, which those of one sample share, their ending, and where
    they lie.
    """
    try:
        with tarfile.open(archive, "r:") as opened:
            members = opened.getmembers()
    except (tarfile.TarError, EOFError) as error:
        raise DataError(
            f"{archive}: cannot be read as a tar archive ({error}); is it whole?"
        ) from None
    by_name = {normpath(info.name): info for info in members}
    for info in members:
        path = PurePosixPath(info.name)
        if info.isdir() or any(map(is_hidden, path.parts)):
            continue
        content = info
        if not info.isreg():  # a hard link is named from the top, a symbolic one from its folder
            linked = info.linkname if info.islnk() else path.parent / info.linkname
            content = by_name.get(normpath(linked), info)
        if not content.isreg():
            raise DataError(
                f"{archive}, {info.name}: is a link to no file of the archive; write it with files"
                " in place of links (`tar -h`)"
            )
        stem, _, ending = path.name.partition(".")
        member = Member(archive, info.name, content.offset_data, content.size)
        yield str(path.with_name(stem)), ending.lower(), member


def _image_of(where: str, files: dict[str, Member], wanted: str | None) -> Member:
    """A sample's picture."""
    found: list[Member] = []
    for ending, member in files.items():
        _, _, last = ending.rpartition(".")
        if ending == wanted or (not wanted and f".{last}" in IMAGE_SUFFIXES):
            found.append(member)
    if len(found) != 1:
        raise DataError(
            f"{where}: has {len(found) or 'no'} images (endings: {shorten(files)}); name one by its"
            " ending with `image_column`"
        )
    return found[0]


def _label_or_captions(where: str, key: str, files: dict[str, Member], columns: Columns) -> Any:
    """A sample's label or captions; without a file of either, the name of its folder."""
    wanted, _, field = (columns.caption or columns.label or "").partition(".")
    for ending in [wanted.lower()] if wanted else ("cls", "json", "txt"):
        if ending not in files:
            continue
        text = files[ending].read().decode("utf-8", "replace").strip()
        if ending != "json":
            lines = caption_lines(text)
            is_list = columns.caption or (ending == "txt" and len(lines) > 1)
            return lines if is_list else text
        try:
            data = json.loads(text)
        except ValueError as error:
            raise DataError(f"{where}.json: cannot be read as JSON ({error})") from None
        names = [field] if field else (*LABEL_NAMES, *CAPTION_NAMES)
        value = first_named(data, names) if isinstance(data, dict) else None
        if value is not None:
            return [value] if columns.caption and isinstance(value, str) else value
    if wanted:
        raise DataError(f"{where}: has no .{wanted} (endings: {shorten(files)})")
    return PurePosixPath(key).parent.name
