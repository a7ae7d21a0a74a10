"""Pictures in tar files as WebDataset writes them: ``KEY.jpg`` beside ``KEY.cls``, ``KEY.json`` or
``KEY.txt``, or in class folders. Headers and labels are read first, and each picture when needed.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any, NamedTuple

from clipmerge.errors import DataError, shorten
from clipmerge.images.folder import is_hidden, is_picture
from clipmerge.images.image_set import (
    TEXT_NAMES,
    Columns,
    OpenedSource,
    Pictures,
    lines_of,
)
from clipmerge.types import Names

#: Texts that CLIP_benchmark writes beside the archives of a data set.
TEXTS = ("classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt")


class Member(NamedTuple):
    """A file inside an archive, and where its bytes are."""

    archive: str
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.archive}, {self.name}"

    def read(self) -> bytes:
        """Read the file."""
        with Path(self.archive).open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def load_tars(title: str, archives: Sequence[str], columns: Columns) -> OpenedSource:
    """Open tar files as one source. Class names and templates may be in text files in their folder,
    or in the folder above.
    """
    class_names, templates, kind = (_text_beside(Path(archives[0]), name) for name in TEXTS)
    if kind == ("retrieval",) and columns.captioned is None:
        columns = replace(columns, caption="txt")
    images: list[Member] = []
    values: list[Any] = []
    for archive in archives:
        for key, files in _read_samples(archive).items():
            where = f"{archive}, {key}"
            images.append(_image_of(where, files, columns.image))
            value = _label_or_captions(where, files, columns.caption or columns.label)
            values.append(PurePosixPath(key).parent.name if value is None else value)
    return OpenedSource(
        title,
        Pictures(lambda at: images[at].read(), lambda at: str(images[at]), range(len(images))),
        values,
        columns.captioned,
        class_names or None,
        verbatim=True,
        templates=tuple(line.replace("{c}", "{}") for line in templates),
    )


def _text_beside(archive: Path, name: str) -> Names:
    """Read the lines of a text in the folder of an archive or in the one above; empty if there is
    none.
    """
    for folder in archive.absolute().parents[:2]:
        file = folder / name
        if file.is_file():
            return tuple(file.read_text("utf-8").rstrip().splitlines())
    return ()


def _read_samples(archive: str) -> dict[str, dict[str, Member]]:
    """List the files of an archive by key, which is the same for a sample, and by ending."""
    try:
        with tarfile.open(archive, "r:") as opened:
            members = opened.getmembers()
    except (tarfile.TarError, EOFError) as error:
        raise DataError(
            f"{archive}: cannot be read as a tar archive ({error}); is it whole?"
        ) from None
    by_name = {normpath(info.name): info for info in members}
    samples: dict[str, dict[str, Member]] = {}
    for info in members:
        path = PurePosixPath(info.name)
        if info.isdir() or any(map(is_hidden, path.parts)):
            continue
        content: tarfile.TarInfo | None = info
        if not info.isreg():  # a hard link is relative to the top, a symbolic one to its folder
            linked = info.linkname if info.islnk() else path.parent / info.linkname
            content = by_name.get(normpath(linked))
        if content is None or not content.isreg():
            raise DataError(
                f"{archive}, {info.name}: is a link to no file of the archive; write it with files"
                " in place of links (`tar -h`)"
            )
        stem, _, ending = path.name.partition(".")
        member = Member(archive, info.name, content.offset_data, content.size)
        samples.setdefault(str(path.with_name(stem)), {})[ending.lower()] = member
    return samples


def _image_of(where: str, files: dict[str, Member], wanted: str | None) -> Member:
    """Find the picture among the files of a sample."""
    if wanted:
        found = [files[wanted]] if wanted in files else []
    else:
        found = [member for member in files.values() if is_picture(member.name)]
    if len(found) != 1:
        raise DataError(
            f"{where}: has {len(found) or 'no'} images (endings: {shorten(files)}); name one by its"
            " ending with `image_column`"
        )
    return found[0]


def _label_or_captions(where: str, files: dict[str, Member], wanted: str | None) -> Any:
    """Read the label or captions of a sample from the file with the wanted ending, or from that
    key of its JSON. ``None`` if it has none and the user asked for no particular ending.
    """
    field = (wanted or "").removeprefix("json.")
    found: dict[str, Any] = {}
    for ending, member in files.items():
        if ending == "json":
            try:
                data = json.loads(member.read())
            except ValueError as error:
                raise DataError(f"{where}.json: cannot be read as JSON ({error})") from None
            found |= data if isinstance(data, dict) else {}
        elif ending in ("cls", "txt", field):
            text = member.read().decode("utf-8", "replace")
            lines = lines_of(text)
            found[ending] = lines if len(lines) > 1 else text.strip()
    names = [field] if wanted else ("cls", *TEXT_NAMES, "txt")
    value = next((found[name] for name in names if found.get(name) is not None), None)
    if value is None and wanted:
        raise DataError(f"{where}: has no .{wanted} (endings: {shorten(files)})")
    return value
