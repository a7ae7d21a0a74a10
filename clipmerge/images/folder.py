"""Images in folders: one subfolder per class, or at any depth if they have no labels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from clipmerge.errors import DataError, did_you_mean, shorten
from clipmerge.images.columns import number_classes
from clipmerge.images.file_store import refuse_links
from clipmerge.images.store import OpenedSource, check_count, image_files

_IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".avif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k"}
)


def load_folder(source: str, folder: Path, *, others: Iterable[str] = ()) -> OpenedSource:
    """List the images of a folder without opening any; its classes are the subfolders, ``others``
    names to suggest.
    """
    if not folder.is_dir():
        raise DataError(
            f"{source}: {_describe_missing(folder)}; give a folder with one subfolder per class,"
            " Parquet or tar files, hf://datasets/ORG/NAME:SPLIT, or"
            f" 'digits'.{did_you_mean(source, others)}"
        )
    if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise DataError(
            f"{source}: was written by save_to_disk; write each split as Parquet, which is read: "
            "datasets.load_from_disk(FOLDER).to_parquet(FILE)"
        )
    by_name = {entry.name: entry for entry in _listed(source, folder, folder) if entry.is_dir()}
    if not by_name:
        raise DataError(
            f"{source}: has no subfolders; expected one per class, such as {source}/cat/1.jpg"
        )
    paths: list[str] = []
    labels: list[str] = []
    left_out: list[os.DirEntry[str]] = []
    for subfolder in by_name.values():
        listed = _listed(source, folder, Path(subfolder.path))
        files = [file.path for file in listed if _is_image(file)]
        if not files:
            inner = [
                entry.name
                for entry in listed
                if entry.is_dir() or entry.name.endswith((".parquet", ".tar"))
            ]
            if inner:
                raise DataError(
                    f"{subfolder.path}: holds {shorten(inner, 3)}, not images; give the folder"
                    " right above the class folders, or that of Parquet or tar files, such as"
                    f" {subfolder.path}"
                )
            raise DataError(
                f"{subfolder.path}: this class folder holds no images; add some or remove the"
                " folder"
            )
        left_out += [entry for entry in listed if not _is_image(entry)]
        paths += files
        labels += [subfolder.name] * len(files)
        check_count(source, len(paths))
    indices, names, named = number_classes(source, labels)
    return OpenedSource(
        image_files(paths), indices, names, named, notes=_left_out(source, left_out)
    )


def _left_out(source: str, entries: Iterable[os.DirEntry[str]]) -> tuple[str, ...]:
    """Note the files that are not read: other formats, and images in folders inside class
    folders.
    """
    suffixes: Counter[str] = Counter()
    inside = 0
    for entry in entries:
        if entry.is_dir():
            inside += sum(
                is_image_name(name) for _, _, names in os.walk(entry.path) for name in names
            )
        else:
            suffixes[Path(entry.name).suffix.lower() or entry.name] += 1
    kinds = [f"{count} {suffix}" for suffix, count in suffixes.most_common()]
    parts = [f"files that are not images ({shorten(kinds, 5)})"] if kinds else []
    parts += [f"images in folders inside class folders ({inside})"] if inside else []
    return (f"{source}: left out {' and '.join(parts)}",) if parts else ()


def load_flat(source: str, folder: Path) -> OpenedSource:
    """List the images of a folder and of all inside it, sorted by path; they have no labels, so all
    get the label 0.
    """
    if not folder.is_dir():
        raise DataError(
            f"{source}: {_describe_missing(folder)}; `unlabelled` takes a folder with images at any"
            " depth, Parquet or tar files, or hf://datasets/ORG/NAME:SPLIT"
        )
    paths: list[str] = []
    waiting, left_out = [folder], list[os.DirEntry[str]]()
    while waiting:
        listed = _listed(source, folder, waiting.pop())
        # a link to a folder inside the source leads to images that are listed in that folder
        waiting += [Path(entry.path) for entry in listed if entry.is_dir(follow_symlinks=False)]
        paths += [entry.path for entry in listed if _is_image(entry)]
        left_out += [entry for entry in listed if not entry.is_dir() and not _is_image(entry)]
        check_count(source, len(paths))
    notes = _left_out(source, left_out)
    return OpenedSource(
        image_files(sorted(paths)), (0,) * len(paths), ("0",), named=False, notes=notes
    )


def _describe_missing(path: Path) -> str:
    return "is not a kind of file that is read" if path.exists() else "no such folder"


def _listed(source: str, root: Path, folder: Path) -> list[os.DirEntry[str]]:
    """List a folder by name, without hidden entries; a link out of the source is refused, not
    followed.
    """
    try:
        with os.scandir(folder) as entries:
            listed = sorted(
                (entry for entry in entries if not entry.name.startswith(".")),
                key=lambda entry: entry.name,
            )
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error})") from None
    refuse_links(source, root, map(Path, listed))
    return listed


def is_image_name(name: str) -> bool:
    """Whether a file has the ending of an image."""
    return Path(name).suffix.lower() in _IMAGE_SUFFIXES


def _is_image(file: os.DirEntry[str]) -> bool:
    return is_image_name(file.name) and file.is_file()  # reading a pipe would never end
