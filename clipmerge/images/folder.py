"""Images in folders: one subfolder a class."""

from __future__ import annotations

import os
from pathlib import Path

from clipmerge.errors import DataError, shorten
from clipmerge.files.limits import MOST_IMAGES
from clipmerge.files.side_files import lies_in
from clipmerge.images.store import Files, Labelled

_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"})


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
    folders = [each for each in _listed(source, folder, folder) if each.is_dir()]
    if not folders:
        raise DataError(f"{source}: has no subfolders; expected one a class, such as {source}/cat/1.jpg")
    paths: list[str] = []
    labels: list[int] = []
    for label, each in enumerate(folders):
        found = [file.path for file in _listed(source, folder, Path(each.path)) if _is_image(file)]
        if not found:
            raise _no_images(Path(each.path))
        paths += found
        labels += [label] * len(found)
        if len(paths) > MOST_IMAGES:
            raise DataError(f"{source}: has more than {MOST_IMAGES} images; give a folder of some of them")
    return Labelled(Files(tuple(paths)), tuple(labels), tuple(each.name for each in folders))


def _listed(source: str, root: Path, folder: Path) -> list[os.DirEntry[str]]:
    """List a folder by name, without what is hidden; a link out of the source is refused, not followed."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((each for each in entries if not each.name.startswith(".")), key=lambda each: each.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error})") from None
    leading_out = [each.path for each in found if each.is_symlink() and not lies_in(root, Path(each))]
    if leading_out:
        raise DataError(
            f"{source}: {shorten(leading_out, 3)} lead out of it, as links; put the images themselves there, or give "
            "the folder that holds them"
        )
    return found


def _is_image(file: os.DirEntry[str]) -> bool:
    return Path(file.name).suffix.lower() in _IMAGE_SUFFIXES and file.is_file()  # a pipe would never end


def _no_images(folder: Path) -> DataError:
    inner = [entry.name for entry in sorted(folder.iterdir()) if entry.is_dir()]
    if inner:
        return DataError(
            f"{folder}: holds folders ({shorten(inner, 3)}), not images; give the folder right above the class "
            f"folders, such as {folder}"
        )
    return DataError(f"{folder}: this class folder holds no images; add some or remove the folder")
