"""Pictures in folders: one subfolder per class, or captions in ``KEY.txt`` beside ``KEY.jpg``.

Links are followed: data sets made by DVC, git-annex or a few lines of shell consist of them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from clipmerge.errors import DataError, counted, shorten
from clipmerge.images.source import Columns, Opened, picture_files
from clipmerge.types import Names

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".avif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".heic", ".heif"}
)


def is_hidden(name: str) -> bool:
    """Whether a name is one of those that systems leave behind, such as ``.DS_Store``."""
    return name.startswith(".") or name == "__MACOSX"


def load_folder(title: str, folder: Path, columns: Columns) -> Opened:
    """List the pictures of a folder without opening any.

    The classes are its subfolders, with the pictures inside them at any depth; a folder without
    subfolders may have captions beside its pictures.
    """
    subfolders = sorted(
        entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_hidden(entry.name)
    )
    if columns.caption == "txt" or (not subfolders and columns.label is None):
        return _load_captions(title, folder)
    paths: list[str] = []
    labels: list[str] = []
    others: Counter[str] = Counter()
    for name in subfolders:
        files = list(_walk(folder / name))
        found = [str(file) for file in files if is_image(file)]
        if not found:
            inside = f"; it holds {shorten((file.name for file in files), 3)}" if files else ""
            raise DataError(
                f"{folder / name}: this class folder holds no images{inside}; add some, remove the"
                " folder, or name the folder right above the class folders"
            )
        others.update(file.suffix or file.name for file in files if not is_image(file))
        paths += found
        labels += [name] * len(found)
    has_captions = bool(paths) and Path(paths[0]).with_suffix(".txt").is_file()
    return Opened(
        title,
        picture_files(paths),
        labels,
        captioned=False,
        unread_captions="txt" if has_captions else None,
        notes=_note_others(title, others),
    )


def _load_captions(title: str, folder: Path) -> Opened:
    """Read the text beside each picture of a folder and of all inside it, one caption per line."""
    paths = list(filter(is_image, _walk(folder)))
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
    captions = [
        caption_lines(path.with_suffix(".txt").read_text("utf-8", "surrogateescape"))
        for path in paths
    ]
    return Opened(title, picture_files(list(map(str, paths))), captions, captioned=True)


def caption_lines(text: str) -> list[str]:
    """The captions in a text file, one per line."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def is_image(file: Path) -> bool:
    """Whether a file's name is that of a picture."""
    return file.suffix.lower() in IMAGE_SUFFIXES


def _walk(folder: Path) -> Iterator[Path]:
    """The files of a folder and of all inside it, by name; a folder that links lead to twice is
    read once.
    """
    seen: set[Path] = set()
    for inside, folders, files in os.walk(folder, followlinks=True):
        real = Path(inside).resolve()
        folders[:] = [] if real in seen else sorted(n for n in folders if not is_hidden(n))
        if real not in seen:
            yield from (Path(inside, name) for name in sorted(files) if not is_hidden(name))
        seen.add(real)


def _note_others(title: str, suffixes: Counter[str]) -> Names:
    """Note the files that are not read."""
    kinds = shorten(f"{count} {kind}" for kind, count in suffixes.most_common())
    return (f"{title}: not read, because they are no images: {kinds}",) if suffixes else ()
