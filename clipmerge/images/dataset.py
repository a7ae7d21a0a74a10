"""Find images with their classes or captions, in any source; images are decoded only on demand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipmerge.errors import DataError, counted, did_you_mean, is_utf8, shorten
from clipmerge.files.paths import glob_files, local_path
from clipmerge.images.classes import ClassNames, name_classes
from clipmerge.images.folder import is_hidden, load_folder
from clipmerge.images.image_set import CaptionedImages, LabelledImages, number_texts
from clipmerge.images.registry import KnownSet, find_known, known_sets
from clipmerge.images.source import TEXTS, Columns, Opened
from clipmerge.types import Names

# Texts are captions if their mean number of words is at least this and most of them differ.
_WORDS_OF_A_CAPTION = 3


def open_images(
    source: Any, classes: ClassNames = None, *, columns: Columns | None = None
) -> LabelledImages | CaptionedImages:
    """Find images with classes or with captions, without decoding them.

    The source is the short name of a public data set (`clipmerge.images.registry`); a folder
    with one subfolder per class, with captions in texts beside the images, with a table, or with
    Parquet or tar files; one or several such files (``*`` stands for any letters);
    ``hf://datasets/org/name[@revision][:split]``; ``digits``, which come with clipmerge; or images
    in memory (`clipmerge.images.in_memory`). Where both are there, classes are taken unless
    ``columns`` names captions.
    """
    known, address = find_known(source) if isinstance(source, str) else (None, source)
    opened = _open(address, columns or Columns())
    if not len(opened.values):
        raise DataError(f"{opened.title}: holds no images")
    if _has_captions(opened):
        return _captioned(opened, classes)
    return _labelled(opened, classes, known)


def load_images(
    source: Any, classes: ClassNames = None, *, columns: Columns | None = None
) -> LabelledImages:
    """Find images with classes, like `open_images`; images with captions are refused."""
    return require_labelled(open_images(source, classes, columns=columns))


def require_labelled(images: LabelledImages | CaptionedImages) -> LabelledImages:
    """Refuse images with captions."""
    if isinstance(images, CaptionedImages):
        raise DataError(
            f"{images.source}: its images have captions and no classes, which cannot be used here;"
            " give images with classes"
        )
    return images


def _open(source: Any, columns: Columns) -> Opened:
    """Open a folder, files, a data set on the Hub, ``digits``, or images in memory."""
    if not isinstance(source, (str, os.PathLike)):
        from clipmerge.images.in_memory import load_in_memory

        return load_in_memory(source, columns)
    title = str(source)
    if not title.strip():  # as a path it would be the working directory
        raise DataError(
            f"'{title}': names no images; give a folder, a file or hf://datasets/ORG/NAME:SPLIT"
        )
    path = local_path(title)
    if title == "digits" and not path.is_dir():
        from clipmerge.images.digits import load_digits

        return load_digits()
    from clipmerge.images.tables import load_files, load_from_hub, load_repository

    if title.startswith("hf://"):
        return load_from_hub(title, columns)
    if files := [path] if path.is_file() else glob_files(title):
        return load_files(title, list(map(str, files)), columns)
    split = None
    if not path.exists() and ":" in title:  # DIR:SPLIT
        above, _, split = title.rpartition(":")
        path = local_path(above)
        if (path / split).is_dir():
            path, split = path / split, None
    if not path.is_dir():
        raise DataError(
            f"{title}: no such folder or file; give a folder with one subfolder per class or with"
            " captions beside the images, Parquet, tar, CSV or JSONL files,"
            f" hf://datasets/ORG/NAME:SPLIT, or 'digits'.{did_you_mean(title, known_sets())}"
        )
    names = sorted(entry.name for entry in path.iterdir() if not is_hidden(entry.name))
    if tables := [name for name in names if Path(name).stem == "metadata"]:
        return load_files(title, [str(path / tables[0])], columns)
    if _holds_tables(path):
        return load_repository(title, path, columns, split)
    if split is not None:
        raise DataError(
            f"{title}: {path} has no folder '{split}' (it has {shorten(names)})."
            f"{did_you_mean(split, names)}"
        )
    return load_folder(title, path, columns)


def _holds_tables(folder: Path) -> bool:
    """Whether a folder holds Parquet or tar files, or others that `datasets` reads as a whole."""
    kinds = (".parquet", ".tar", ".arrow", ".csv", ".jsonl")
    places = [folder, folder / "data"]
    if any((folder / name).is_file() for name in TEXTS):  # CLIP_benchmark's sets
        places += folder.iterdir()
    return any(file.suffix in kinds for place in places for file in place.glob("[!.]*.*"))


def _has_captions(opened: Opened) -> bool:
    """Whether images come with captions and not classes: as the source or the user says, or by the
    look of the values.
    """
    if opened.captioned is not None:
        return opened.captioned
    if any(isinstance(value, (list, tuple)) for value in opened.values):
        return True
    return opened.class_names is None and look_like_captions(opened.values)


def look_like_captions(labels: Sequence[Any]) -> bool:
    """Whether texts are captions and not names of classes: several words each, and most differ.

    Example:
        >>> look_like_captions(["a dog on a bed", "two cats at play", "an old oak"])
        True
        >>> look_like_captions(["dog", "cat", "oak tree"])
        False
    """
    if not all(isinstance(label, str) for label in labels):
        return False
    words = sum(len(label.split()) for label in labels)
    return words >= _WORDS_OF_A_CAPTION * len(labels) and 2 * len(set(labels)) > len(labels)


def _captioned(opened: Opened, classes: ClassNames) -> CaptionedImages:
    """Images with the captions of each, a text or those of a list, without empty ones."""
    captions: list[Names] = []
    for at, value in enumerate(opened.values):
        texts = value if isinstance(value, (list, tuple)) else [value]
        if not all(isinstance(text, str) and is_utf8(text) for text in texts):
            name = opened.pictures.name_of(at)
            raise DataError(f"{opened.title}: {name} has a caption that is not a text in UTF-8")
        captions.append(tuple(text.strip() for text in texts if text.strip()))
    if empty := [opened.pictures.name_of(at) for at, texts in enumerate(captions) if not texts]:
        have = counted(len(empty), "image has", "images have")
        raise DataError(
            f"{opened.title}: {have} no caption (of {len(captions)}): {shorten(empty, 3)}; write"
            " one, or leave these images out"
        )
    notes = opened.notes
    if classes is not None:
        notes += (f"{opened.title}: its images have captions, so `classes` is not used",)
    labels, _ = number_texts(texts[0] for texts in captions)
    return CaptionedImages(
        opened.title,
        opened.pictures,
        labels,
        tuple(captions),
        revision=opened.revision,
        notes=notes,
    )


def _labelled(opened: Opened, classes: ClassNames, known: KnownSet | None) -> LabelledImages:
    """Images with the number of the class of each, and the classes' names."""
    if known:
        opened = known.describe(opened)
    labels, names, notes = name_classes(opened, classes)
    return LabelledImages(
        opened.title,
        opened.pictures,
        labels,
        names,
        opened.templates,
        known.imagenet_rows if known else (),
        revision=opened.revision,
        notes=opened.notes + notes,
    )
