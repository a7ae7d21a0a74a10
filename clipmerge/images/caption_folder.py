"""Images with captions in a folder: ``KEY.txt`` beside ``KEY.jpg``, one caption per line."""

from __future__ import annotations

from pathlib import Path

from clipmerge.errors import DataError, shorten
from clipmerge.files.limits import MOST_IMAGES
from clipmerge.files.reading import Unreadable, read_text
from clipmerge.files.side_files import lies_in
from clipmerge.images.folder import FolderStore, is_image_name

_CAPTIONS = ".txt"


def captioned_files(folder: Path) -> list[Path]:
    """List the images of a folder that have a text beside them, by name; empty if it is not such a folder."""
    if not folder.is_dir():
        return []
    listed = sorted(path for path in folder.iterdir() if is_image_name(path.name) and not path.name.startswith("."))
    return [path for path in listed if path.with_suffix(_CAPTIONS).is_file()]


def read_captioned(source: str, folder: Path) -> tuple[FolderStore, tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """The images of a folder, none of them opened, their captions, and a note on texts without an image."""
    files = captioned_files(folder)
    alone = [path.name for path in sorted(folder.iterdir()) if is_image_name(path.name) and path not in set(files)]
    if alone:
        raise DataError(f"{source}: {shorten(alone, 3)} has no captions beside it; write them to the same name in .txt")
    if len(files) > MOST_IMAGES:
        raise DataError(f"{source}: has more than {MOST_IMAGES} images; give a folder of some of them")
    everything = [file for path in files for file in (path, path.with_suffix(_CAPTIONS))]
    leading_out = [path.name for path in everything if not lies_in(folder, path)]
    if leading_out:
        raise DataError(f"{source}: {shorten(leading_out, 3)} are links out of it; put the files themselves there")
    captions = tuple(_captions(source, path.with_suffix(_CAPTIONS)) for path in files)
    texts = sorted({path.name for path in folder.glob(f"*{_CAPTIONS}")} - {path.name for path in everything})
    without = f"{source}: left out {len(texts)} texts without an image beside them ({shorten(texts, 3)})"
    return FolderStore(tuple(map(str, files))), captions, (without,) if texts else ()


def _captions(source: str, file: Path) -> tuple[str, ...]:
    try:
        text = read_text(file)
    except Unreadable as error:
        raise DataError(f"{source}: {file.name} cannot be read ({error})") from None
    captions = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not captions:
        raise DataError(f"{source}: {file.name} holds no caption; write one per line")
    return captions
