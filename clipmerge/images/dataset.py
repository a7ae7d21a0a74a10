"""Open a source of any kind, and return its images with classes or captions."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from clipmerge.errors import DataError, UsageError, did_you_mean_path
from clipmerge.files import local_path
from clipmerge.images.classes import ClassNames, name_classes
from clipmerge.images.image_set import (
    CaptionedImages,
    Columns,
    Images,
    LabelledImages,
    OpenedSource,
    number_texts,
    require_all,
)
from clipmerge.images.registry import PublicSet, find_public_set, public_sets
from clipmerge.types import Names

# Texts are captions if they have at least this many words on average, and most of them differ.
# Names of classes have one or two words.
_WORDS_OF_A_CAPTION = 3


def open_images(
    source: Any, classes: ClassNames = None, *, columns: Columns | None = None
) -> Images:
    """Open images with classes or with captions. No image is decoded yet.

    Args:
        source: The short name of a public data set (`clipmerge.images.registry`); a folder with one
            subfolder per class, with captions in texts beside the images, with a table, or with
            Parquet or tar files; one such file; ``hf://datasets/org/name[@revision][:split]``;
            ``digits``, which come with clipmerge; or images in memory
            (`clipmerge.images.in_memory`).
        classes: Class names to use in place of the source's own.
        columns: Columns that the user named. If a source has classes and captions, the classes are
            used unless the caption column is named.

    Raises:
        DataError: If the source does not exist, cannot be read, or has no labels.
    """
    columns = columns or Columns()
    if columns.label and columns.caption:
        raise UsageError(
            "`label_column` asks for classes and `caption_column` for captions; give one"
        )
    known: PublicSet | None = None
    if not isinstance(source, (str, os.PathLike)):
        from clipmerge.images.in_memory import load_in_memory

        opened = load_in_memory(source, columns)
    elif source == "digits" and not local_path(source).is_dir():
        from clipmerge.images.digits import load_digits

        opened = load_digits()
    else:
        address = str(source)
        if isinstance(source, str):
            known, address = find_public_set(source)
        opened = _open_address(address, columns)
    if not len(opened.values):
        raise DataError(f"{opened.title}: holds no images")
    if _look_like_captions(opened) if opened.captioned is None else opened.captioned:
        return _with_captions(opened, classes)
    return _with_labels(opened, classes, known)


def require_labelled(images: Images) -> LabelledImages:
    """Raise an error if the images have captions and no classes."""
    if isinstance(images, CaptionedImages):
        raise DataError(
            f"{images.source}: its images have captions and no classes, which cannot be used here;"
            " give images with classes"
        )
    return images


def _open_address(title: str, columns: Columns) -> OpenedSource:
    """Open a folder, files, or a data set on the Hub."""
    if not title.strip():  # as a path it would be the working directory
        raise DataError(
            f"'{title}': names no images; give a folder, a file or hf://datasets/ORG/NAME:SPLIT"
        )
    from clipmerge.images.folder import load_folder
    from clipmerge.images.repository import files_of_split, load_from_hub, splits_of_folder
    from clipmerge.images.tables import load_files

    if title.startswith("hf://"):
        return load_from_hub(title, columns)
    path = local_path(title)
    if path.is_file():
        return load_files(title, [str(path)], columns)
    folder, split = path, None
    if not path.exists() and ":" in title:  # DIR:SPLIT
        above, _, split = title.rpartition(":")
        folder = local_path(above)
        path = folder / split
        if path.is_dir():
            folder, split = path, None
    if splits := splits_of_folder(folder):
        return load_files(title, files_of_split(title, splits, split), columns)
    if not path.is_dir():
        raise DataError(
            f"{title}: no such folder or file; give a folder with one subfolder per class or with"
            " captions beside the images, Parquet, tar, CSV or JSONL files,"
            " hf://datasets/ORG/NAME:SPLIT, or"
            f" 'digits'.{did_you_mean_path(path, public_sets())}"
        )
    return load_folder(title, path, columns)


def _look_like_captions(opened: OpenedSource) -> bool:
    """Whether the values are captions: lists of texts, or different texts of several words."""
    values = opened.values
    texts = [text for value in values for text in _as_list(value)]
    if opened.class_names is not None or not all(isinstance(text, str) for text in texts):
        return False
    if any(isinstance(value, (list, tuple)) for value in values):
        return True
    words = sum(len(text.split()) for text in texts)
    return words >= _WORDS_OF_A_CAPTION * len(texts) and 2 * len(set(texts)) > len(texts)


def _as_list(value: Any) -> Sequence[Any]:
    """Return the captions of an image, one text or several, as a list."""
    return value if isinstance(value, (list, tuple)) else [value]


def _require_utf8(title: str, texts: Iterable[str]) -> None:
    """Raise an error if a text, such as an old folder's name, is not UTF-8."""
    for text in texts:
        if text.encode(errors="ignore").decode() != text:
            raise DataError(
                f"{title}: '{text}' is not UTF-8; rename class folders, save texts as UTF-8, or"
                " name the classes with `classes`"
            )


def _with_captions(opened: OpenedSource, classes: ClassNames) -> CaptionedImages:
    """Make captioned images from an opened source, without empty captions."""
    captions: list[Names] = []
    for value in opened.values:
        texts = [text.strip() for text in _as_list(value) if isinstance(text, str)]
        captions.append(tuple(filter(None, texts)))
    empty = [opened.pictures.name_of(at) for at, texts in enumerate(captions) if not texts]
    remedy = "write one, or leave these images out"
    require_all(opened.title, "caption", empty, len(captions), remedy)
    _require_utf8(opened.title, chain.from_iterable(captions))
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


def _with_labels(
    opened: OpenedSource, classes: ClassNames, known: PublicSet | None
) -> LabelledImages:
    """Make labelled images from an opened source: number and name the classes."""
    if known:
        opened = known.describe(opened)
    labels, names, notes = name_classes(opened, classes)
    _require_utf8(opened.title, names)
    return LabelledImages(
        opened.title,
        opened.pictures,
        labels,
        names,
        opened.templates,
        known.imagenet_rows if known else (),
        revision=opened.revision,
        notes=(*opened.notes, *notes),
    )
