"""Images in folders: one subfolder a class."""

from __future__ import annotations

from pathlib import Path

from clipmerge.errors import DataError, shorten
from clipmerge.images.store import Files, Labelled

_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


def load_folder(source: str, folder: Path) -> Labelled:
    """List a folder's images; none is opened.

    Args:
        source: What the user wrote, for messages.
        folder: Where it is.

    Returns:
        The source; its classes are the folders' names, sorted.

    Raises:
        DataError: If there is no such folder, it has no subfolders, or one of them holds no images.
    """
    if not folder.is_dir():
        raise DataError(
            f"{source}: no such folder; --data takes a folder with one subfolder a class, Parquet or tar files, "
            "hf://datasets/ORG/NAME:SPLIT, or 'digits'"
        )
    folders = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise DataError(f"{source}: has no subfolders; expected one a class, such as {source}/cat/1.jpg")
    paths: list[str] = []
    labels: list[int] = []
    for label, each in enumerate(folders):
        found = sorted(str(file) for file in each.iterdir() if _is_image(file))
        if not found:
            raise _no_images(each)
        paths += found
        labels += [label] * len(found)
    return Labelled(Files(tuple(paths)), tuple(labels), tuple(each.name for each in folders))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in _IMAGE_SUFFIXES and not file.name.startswith(".")


def _no_images(folder: Path) -> DataError:
    inner = [entry.name for entry in sorted(folder.iterdir()) if entry.is_dir()]
    if inner:
        return DataError(
            f"{folder}: holds folders ({shorten(inner, 3)}), not images; give the folder right above the class "
            f"folders, such as {folder}"
        )
    return DataError(f"{folder}: this class folder holds no images; add some or remove the folder")
