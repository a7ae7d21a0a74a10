"""Pictures in folders: one subfolder per class, or captions in ``KEY.txt`` beside ``KEY.jpg``.

Links are followed, because data sets made by DVC, git-annex or a few lines of shell consist of
links.
"""

from __future__ import annotations

import os
from pathlib import Path

from clipmerge.errors import DataError, shorten
from clipmerge.images.image_set import (
    Columns,
    OpenedSource,
    lines_of,
    pictures_in_files,
    require_all,
)
from clipmerge.types import Names

_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".avif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".heic", ".heif"}
)


def is_hidden(name: str) -> bool:
    """Whether a file is hidden, such as ``.DS_Store``, or a folder that macOS leaves behind."""
    return name.startswith(".") or name == "__MACOSX"


def load_folder(title: str, folder: Path, columns: Columns) -> OpenedSource:
    """Open a folder of pictures with classes or captions; no picture is read yet.

    Each subfolder is a class, whose pictures may lie at any depth. A folder without subfolders may
    have captions beside its pictures.
    """
    files = _list_files(folder)
    pictures = [file for file in files if is_picture(file.name)]
    names = sorted(
        file.name for file in folder.iterdir() if file.is_dir() and not is_hidden(file.name)
    )
    if columns.caption == "txt" or not (names or columns.label):
        return _load_captions(title, folder, pictures)
    inside = [file for file in pictures if file.parent != folder]
    depth = len(folder.parts)
    labels = [file.parts[depth] for file in inside]
    if empty := sorted(set(names).difference(labels)):
        raise DataError(
            f"{folder / empty[0]}: this class folder holds no images; add some, remove the folder,"
            " or name the folder right above the class folders"
        )
    notes: Names = ()
    # other files beside the class folders, such as a README, are no mistake
    unread = [file for file in files if file.parent != folder or file in pictures]
    if unread := sorted(set(unread).difference(inside)):
        listed = shorten(file.name for file in unread)
        notes = (f"{title}: not read, because they are no images in a class folder: {listed}",)
    shown = pictures_in_files(list(map(str, inside)))
    return OpenedSource(title, shown, labels, captioned=False, notes=notes)


def _load_captions(title: str, folder: Path, pictures: list[Path]) -> OpenedSource:
    """Read the captions beside each picture, one per line."""
    missing = [path.name for path in pictures if not path.with_suffix(".txt").is_file()]
    if len(missing) == len(pictures):
        raise DataError(
            f"{title}: has no subfolders; expected one per class, such as {title}/cat/1.jpg, or"
            f" captions beside the images, such as 1.txt beside 1.jpg (if it is one of the classes,"
            f" give the folder above it, {folder.resolve().parent})"
        )
    remedy = "write it beside the image, to a file with the same name and the suffix .txt"
    require_all(title, "text with captions", missing, len(pictures), remedy)
    captions = [
        lines_of(path.with_suffix(".txt").read_text("utf-8", "replace")) for path in pictures
    ]
    shown = pictures_in_files(list(map(str, pictures)))
    return OpenedSource(title, shown, captions, captioned=True)


def is_picture(name: str) -> bool:
    """Whether a file name has the suffix of a picture format."""
    return Path(name).suffix.lower() in _SUFFIXES


def _list_files(folder: Path) -> list[Path]:
    """List the files in a folder and its subfolders, sorted. A folder with several links to
    it is listed once.
    """
    listed: list[Path] = []
    seen: set[Path] = set()
    for inside, folders, files in os.walk(folder, followlinks=True):
        real = Path(inside).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        listed += [Path(inside, name) for name in sorted(files) if not is_hidden(name)]
    return listed
