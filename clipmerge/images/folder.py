"""Images in folders: one subfolder per class, captions beside the images, or neither."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from clipmerge.errors import DataError, NoLabelsError, counted, did_you_mean, shorten
from clipmerge.files.reading import read_text, refusing
from clipmerge.images.columns import Columns, caption_lists, number_classes
from clipmerge.images.file_store import refuse_links
from clipmerge.images.store import OpenedSource, check_count, image_files
from clipmerge.images.tables import load_table
from clipmerge.types import Names

# Ending of the file with the captions of the image beside it, one per line.
_TEXT = "txt"
_IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".avif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k"}
)


def load_folder(
    source: str, folder: Path, columns: Columns, *, others: Iterable[str] = ()
) -> OpenedSource:
    """List the images of a folder without opening any.

    Its classes are the subfolders; a folder without class folders may have ``KEY.txt`` with
    captions beside ``KEY.jpg``, and one with ``metadata.csv`` or ``metadata.jsonl`` has the labels
    or captions of that table. ``others`` are names to suggest.
    """
    if not folder.is_dir():
        raise DataError(
            f"{source}: {_describe_missing(folder)}; give a folder with one subfolder per class or"
            " with captions beside the images, Parquet, tar or CSV files,"
            f" hf://datasets/ORG/NAME:SPLIT, or 'digits'.{did_you_mean(source, others)}"
        )
    if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise DataError(
            f"{source}: was written by save_to_disk; write each split as Parquet, which is read: "
            "datasets.load_from_disk(FOLDER).to_parquet(FILE)"
        )
    listed = _listed(source, folder, folder)
    tables = [entry for entry in listed if entry.name in ("metadata.csv", "metadata.jsonl")]
    if tables and columns.caption != _TEXT:
        refuse_links(source, folder, [Path(tables[0].path)])
        return load_table(source, Path(tables[0].path), columns, inside=folder)
    subfolders = [entry for entry in listed if entry.is_dir()]
    if columns.caption is not None and columns.caption != _TEXT:
        raise DataError(
            f"{source}: a folder has its captions in KEY.{_TEXT} beside KEY.jpg (`caption_column`"
            f" {_TEXT}), or in the columns of metadata.csv or metadata.jsonl"
        )
    beside = [
        entry
        for entry in listed
        if _is_image(entry) and Path(entry.path).with_suffix(f".{_TEXT}").is_file()
    ]
    if columns.caption is not None or (beside and not subfolders and columns.label is None):
        return _load_captions(source, folder)
    return _load_classes(source, folder, subfolders, captions=bool(beside))


def _load_classes(
    source: str, folder: Path, subfolders: Sequence[os.DirEntry[str]], *, captions: bool
) -> OpenedSource:
    """List class folders; ``captions`` says that there are images with captions beside them."""
    if not subfolders:
        raise NoLabelsError(
            f"{source}: has no subfolders; expected one per class, such as {source}/cat/1.jpg, or"
            f" captions beside the images, such as 1.{_TEXT} beside 1.jpg (if it is one of the"
            f" classes, give the folder above it, {folder.resolve().parent})"
        )
    paths: list[str] = []
    labels: list[str] = []
    left_out: list[os.DirEntry[str]] = []
    for subfolder in subfolders:
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
    notes = _left_out(source, left_out)
    captions |= any(Path(path).with_suffix(f".{_TEXT}").is_file() for path in paths[:1])
    if captions:
        notes += (
            f"{source}: has class folders, and captions beside images; the classes are taken"
            f" (captions with `caption_column` {_TEXT})",
        )
    return OpenedSource(image_files(paths), indices, names, named, notes=notes)


def _load_captions(source: str, folder: Path) -> OpenedSource:
    """List the images of a folder and of all inside it, and read the text beside each."""
    paths, _ = _walk(source, folder)
    texts = {path: Path(path).with_suffix(f".{_TEXT}") for path in paths}
    missing = [Path(path).name for path, text in texts.items() if not text.is_file()]
    if missing:
        beside = counted(len(missing), "image has", "images have")
        raise DataError(
            f"{source}: {beside} no captions beside it ({shorten(missing, 3)}); write them to the"
            f" same name in .{_TEXT}"
        )
    refuse_links(source, folder, texts.values())
    captions: list[str] = []
    for text in texts.values():
        with refusing(DataError, f"{source}: {text.name} cannot be read"):
            captions.append(read_text(text, encoding="utf-8-sig"))
    store = image_files(paths)
    notes: Names = (f"{source}: images with captions, from .{_TEXT} beside each",)
    read = {text.name for text in texts.values()}
    if alone := sorted({path.name for path in folder.glob(f"*.{_TEXT}")} - read):
        without = counted(len(alone), "text without its image", "texts without their images")
        notes += (f"{source}: left out {without} ({shorten(alone, 3)})",)
    names = [text.name for text in texts.values()]
    found = caption_lists(source, captions, names.__getitem__)
    return OpenedSource.with_captions(store, found, notes=notes)


def _left_out(source: str, entries: Iterable[os.DirEntry[str]]) -> Names:
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
    paths, left_out = _walk(source, folder)
    notes = _left_out(source, left_out)
    return OpenedSource(image_files(paths), (0,) * len(paths), ("0",), named=False, notes=notes)


def _walk(source: str, folder: Path) -> tuple[list[str], list[os.DirEntry[str]]]:
    """The images of a folder and of all inside it, sorted by path, and the files left out."""
    paths: list[str] = []
    waiting, left_out = [folder], list[os.DirEntry[str]]()
    while waiting:
        listed = _listed(source, folder, waiting.pop())
        # a link to a folder inside the source leads to images that are listed in that folder
        waiting += [Path(entry.path) for entry in listed if entry.is_dir(follow_symlinks=False)]
        paths += [entry.path for entry in listed if _is_image(entry)]
        left_out += [entry for entry in listed if not entry.is_dir() and not _is_image(entry)]
        check_count(source, len(paths))
    return sorted(paths), left_out


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
