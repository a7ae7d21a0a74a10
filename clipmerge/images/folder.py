"""Pictures in folders: one subfolder per class, or captions in ``KEY.txt`` beside ``KEY.jpg``.

Links are followed: data sets made by DVC, git-annex or a few lines of shell consist of them.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from clipmerge.errors import DataError, counted, shorten
from clipmerge.images.image_set import Columns, OpenedSource, picture_files
from clipmerge.types import Names

_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".avif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".heic", ".heif"}
)


def is_hidden(name: str) -> bool:
    """Whether a file is hidden, or one that systems leave behind, such as ``.DS_Store``."""
    return name.startswith(".") or name == "__MACOSX"


def load_folder(title: str, folder: Path, columns: Columns) -> OpenedSource:
    """List the pictures of a folder, with classes or captions; no picture is opened.

    Each subfolder is a class, whose pictures may lie at any depth. A folder without subfolders may
    have captions beside its pictures.
    """
    subfolders: list[str] = []
    beside: list[str] = []
    for entry in os.scandir(folder):
        if not is_hidden(entry.name):
            (subfolders if entry.is_dir() else beside).append(entry.name)
    subfolders.sort()
    if columns.caption == "txt" or (not subfolders and columns.label is None):
        return _load_captions(title, folder)
    paths: list[str] = []
    labels: list[str] = []
    others: Counter[str] = Counter()
    for name in subfolders:
        found, left = _list_files(folder / name)
        if not found:
            inside = f"; it holds {shorten((file.name for file in left), 3)}" if left else ""
            raise DataError(
                f"{folder / name}: this class folder holds no images{inside}; add some, remove the"
                " folder, or name the folder right above the class folders"
            )
        others.update(file.suffix or file.name for file in left)
        paths += map(str, found)
        labels += [name] * len(found)
    notes: Names = ()
    others.update(Path(name).suffix for name in filter(is_picture, beside))
    if others:
        kinds = shorten(f"{count} {kind}" for kind, count in others.most_common())
        notes = (f"{title}: not read, because they are no images in a class folder: {kinds}",)
    return OpenedSource(title, picture_files(paths), labels, captioned=False, notes=notes)


def _load_captions(title: str, folder: Path) -> OpenedSource:
    """Read the captions beside each picture in a folder and its subfolders, one per line."""
    paths, _ = _list_files(folder)
    missing = [path.name for path in paths if not path.with_suffix(".txt").is_file()]
    if len(missing) == len(paths):
        raise DataError(
            f"{title}: has no subfolders; expected one per class, such as {title}/cat/1.jpg, or"
            f" captions beside the images, such as 1.txt beside 1.jpg (if it is one of the classes,"
            f" give the folder above it, {folder.resolve().parent})"
        )
    if missing:
        have = counted(len(missing), "image has", "images have")
        raise DataError(
            f"{title}: {have} no text with captions ({shorten(missing, 3)}); write them beside the"
            " image, to the same name in .txt"
        )
    captions: list[list[str]] = []
    for path in paths:
        text = path.with_suffix(".txt").read_text("utf-8", "replace")
        captions.append(caption_lines(text))
    files = list(map(str, paths))
    return OpenedSource(title, picture_files(files), captions, captioned=True)


def caption_lines(text: str) -> list[str]:
    """Split the text of a file into captions, one per line."""
    return list(filter(None, map(str.strip, text.splitlines())))


def is_picture(name: str) -> bool:
    """Whether a file name has the suffix of a picture format."""
    return Path(name).suffix.lower() in _SUFFIXES


def _list_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """List the pictures and the other files in a folder and its subfolders, sorted. If several
    links lead to one folder, it is read once.
    """
    pictures: list[Path] = []
    others: list[Path] = []
    seen: set[Path] = set()
    for inside, folders, files in os.walk(folder, followlinks=True):
        real = Path(inside).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in sorted(files):
            file = Path(inside, name)
            if not is_hidden(name):
                (pictures if is_picture(name) else others).append(file)
    return pictures, others
