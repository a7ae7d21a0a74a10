"""Images in folders: one subfolder per class, captions beside the images, or neither."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from clipmerge.errors import DataError, NoLabelsError, counted, shorten
from clipmerge.files.reading import read_text, refusing
from clipmerge.finding import Finding
from clipmerge.images.captions import caption_lines
from clipmerge.images.local_files import refuse_links
from clipmerge.images.source import Columns, Source
from clipmerge.images.store import check_count, image_files
from clipmerge.images.tables import load_table

# Ending of the file with the captions of the image beside it, one per line.
_TEXT = ".txt"
# Names of a table of a folder's images.
_TABLES = ("metadata.csv", "metadata.jsonl")
_IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".avif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k"}
)


def load_folder(source: str, folder: Path, columns: Columns) -> Source:
    """List the images of a folder without opening any.

    Its classes are the subfolders; a folder without class folders may have ``KEY.txt`` with
    captions beside ``KEY.jpg``, and one with ``metadata.csv`` or ``metadata.jsonl`` has the labels
    or captions of that table. Without labels it has the images at any depth, sorted by path.
    """
    if not columns.labelled:
        paths, left_out = _walk_images(source, folder)
        return Source(source, image_files(paths), notes=_note_left_out(source, left_out))
    if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise DataError(
            f"{source}: was written by save_to_disk; write each split as Parquet, which is read: "
            "datasets.load_from_disk(FOLDER).to_parquet(FILE)"
        )
    listed = _list_visible(source, folder, folder)
    tables = [entry for entry in listed if entry.name in _TABLES]
    wants_beside = columns.caption == _TEXT[1:]
    if tables and not wants_beside:
        refuse_links(source, folder, map(Path, tables[:1]))
        return load_table(source, Path(tables[0]), columns, inside=folder)
    if columns.caption is not None and not wants_beside:
        raise DataError(
            f"{source}: a folder has its captions in KEY.txt beside KEY.jpg (`caption_column` txt),"
            " or in the columns of metadata.csv or metadata.jsonl"
        )
    subfolders = [entry for entry in listed if entry.is_dir()]
    beside = any(_is_image(entry) and _caption_file(entry).is_file() for entry in listed)
    if wants_beside or (beside and not subfolders and columns.label is None):
        return _load_captions(source, folder)
    return _load_classes(source, folder, subfolders, captions=beside)


def _load_classes(
    source: str, folder: Path, subfolders: Sequence[os.DirEntry[str]], *, captions: bool
) -> Source:
    """List class folders; ``captions`` says that there are images with captions beside them."""
    if not subfolders:
        raise NoLabelsError(
            f"{source}: has no subfolders; expected one per class, such as {source}/cat/1.jpg, or"
            f" captions beside the images, such as 1.txt beside 1.jpg (if it is one of the"
            f" classes, give the folder above it, {folder.resolve().parent})"
        )
    paths: list[str] = []
    labels: list[str] = []
    left_out: list[os.DirEntry[str]] = []
    for subfolder in subfolders:
        listed = _list_visible(source, folder, Path(subfolder))
        files = [entry.path for entry in listed if _is_image(entry)]
        if not files:
            raise _no_images_error(subfolder.path, listed)
        left_out += [entry for entry in listed if not _is_image(entry)]
        paths += files
        labels += [subfolder.name] * len(files)
        check_count(source, len(paths))
    notes = _note_left_out(source, left_out)
    has_captions = captions or _caption_file(paths[0]).is_file()
    if has_captions:
        notes += (Finding.of("class-folders-taken", source=source),)
    return Source(
        source,
        image_files(paths),
        labels,
        captioned=False,
        unread_captions=_TEXT[1:] if has_captions else None,
        notes=notes,
    )


def _no_images_error(folder: str, listed: Iterable[os.DirEntry[str]]) -> DataError:
    """The error about a class folder without images."""
    inner = [
        entry.name
        for entry in listed
        if entry.is_dir() or entry.name.endswith((".parquet", ".tar")) or entry.name in _TABLES
    ]
    if inner:
        return DataError(
            f"{folder}: is not a class folder: it holds {shorten(inner, 3)}; give the folder right"
            " above the class folders, or one with a table or with Parquet or tar files, such as"
            f" {folder}"
        )
    return DataError(f"{folder}: this class folder holds no images; add some or remove the folder")


def _load_captions(source: str, folder: Path) -> Source:
    """List the images of a folder and of all inside it, and read the text beside each."""
    paths, _ = _walk_images(source, folder)
    texts = list(map(_caption_file, paths))
    missing = [
        Path(path).name for path, text in zip(paths, texts, strict=True) if not text.is_file()
    ]
    if missing:
        have = counted(len(missing), "image has", "images have")
        raise DataError(
            f"{source}: {have} no text with captions ({shorten(missing, 3)}); write them beside the"
            " image, to the same name in .txt"
        )
    refuse_links(source, folder, texts)
    captions: list[list[str]] = []
    for text in texts:
        with refusing(DataError, f"{source}: {text.name} cannot be read"):
            captions.append(caption_lines(read_text(text)))
    notes: tuple[Finding, ...] = ()
    if alone := sorted(
        {path.name for path in folder.glob("*.txt")} - {text.name for text in texts}
    ):
        examples = shorten(alone, 3)
        notes = (Finding.of("lone-texts", source=source, texts=len(alone), examples=examples),)
    return Source(
        source,
        image_files(paths),
        captions,
        captioned=True,
        captions_from=".txt beside each",
        notes=notes,
    )


def _note_left_out(source: str, entries: Iterable[os.DirEntry[str]]) -> tuple[Finding, ...]:
    """Note the files that are not read: other formats, and images in folders inside class
    folders.
    """
    suffixes: Counter[str] = Counter()
    inside = 0
    for entry in entries:
        if entry.is_dir():
            inside += sum(
                _is_image_name(name) for _, _, names in os.walk(entry.path) for name in names
            )
        else:
            suffixes[Path(entry.name).suffix.lower() or entry.name] += 1
    if not suffixes and not inside:
        return ()
    kinds = shorten(f"{count} {suffix}" for suffix, count in suffixes.most_common())
    return (Finding.of("files-left-out", source=source, kinds=kinds, inside=inside),)


def _walk_images(source: str, folder: Path) -> tuple[list[str], list[os.DirEntry[str]]]:
    """The images of a folder and of all inside it, sorted by path, and the files left out."""
    paths: list[str] = []
    waiting = [folder]
    left_out = list[os.DirEntry[str]]()
    while waiting:
        listed = _list_visible(source, folder, waiting.pop())
        # a link to a folder inside the source leads to images that are listed in that folder
        waiting += [Path(entry) for entry in listed if entry.is_dir(follow_symlinks=False)]
        paths += [entry.path for entry in listed if _is_image(entry)]
        left_out += [entry for entry in listed if not entry.is_dir() and not _is_image(entry)]
        check_count(source, len(paths))
    return sorted(paths), left_out


def _list_visible(source: str, root: Path, folder: Path) -> list[os.DirEntry[str]]:
    """List a folder by name, without hidden entries; a link out of the source is refused, not
    followed.
    """
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error})") from None
    listed = sorted(visible, key=lambda entry: entry.name)
    refuse_links(source, root, map(Path, listed))
    return listed


def _caption_file(image: str | os.PathLike[str]) -> Path:
    return Path(image).with_suffix(_TEXT)


def _is_image_name(name: str) -> bool:
    return Path(name).suffix.lower() in _IMAGE_SUFFIXES


def _is_image(entry: os.DirEntry[str]) -> bool:
    return _is_image_name(entry.name) and entry.is_file()  # reading a pipe would never end
