"""Find images with their classes or captions, in any source; images are decoded only on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipmerge.errors import DataError, did_you_mean, shorten
from clipmerge.files.paths import local_path
from clipmerge.finding import Finding
from clipmerge.images.captions import has_captions, list_captions
from clipmerge.images.classes import ClassNames, as_numbers, name_classes, read_class_names
from clipmerge.images.folder import load_folder
from clipmerge.images.image_set import CaptionedImages, LabelledImages, number_texts
from clipmerge.images.in_memory import open_in_memory
from clipmerge.images.local_files import expand_files, local_split, open_local
from clipmerge.images.registry import RegistryRef, find_known, known_sets
from clipmerge.images.shard_texts import describe_folder
from clipmerge.images.source import Columns, Source
from clipmerge.images.tables import load_table
from clipmerge.types import Json

# More classes than this may be captions if they are also more than half as many as the images.
_MANY_CLASSES = 20


def open_images(
    source: Any,
    classes: ClassNames = None,
    *,
    columns: Columns | None = None,
    whole: bool = False,
    max_images: int | None = None,
    seed: int = 0,
) -> LabelledImages | CaptionedImages:
    """Find images with classes or with captions, without decoding them.

    The source is the short name of a public data set (`clipmerge.images.registry`); a folder
    with one subfolder per class, with captions in texts beside the images, or with a table; a CSV,
    TSV or JSONL file; Parquet or WebDataset tar files, one, a ``{0..9}`` range or a folder of them;
    ``hf://datasets/org/name[@revision][:split]``; ``digits``, which come with clipmerge; or
    images in memory (`clipmerge.images.in_memory`). Where both are there, classes are taken unless
    ``columns`` names captions.

    ``whole`` says that all images will be read to compute an accuracy: a dataset on the Hub is then
    kept in the cache, and a single class is refused. A sample will take at most ``max_images``: no
    more are taken from a ``DataLoader``, which cannot be sampled, and of tar files on the Hub only
    those that it needs are downloaded.
    """
    columns = columns or Columns()
    known = source if isinstance(source, RegistryRef) else _find_known(source)
    opened = _open(known or source, columns, whole=whole, max_images=max_images, seed=seed)
    facts: Json = {"revision": opened.revision, "notes": opened.notes}
    images: LabelledImages | CaptionedImages
    if has_captions(opened):
        captions, notes = list_captions(opened)
        facts["notes"] += notes
        labels, _ = number_texts(texts[0] for texts in captions)
        if opened.captions_from is not None:
            origin = opened.captions_from
            facts["notes"] += (Finding.of("captions", source=opened.title, origin=origin),)
        if classes is not None:
            facts["notes"] += (Finding.of("unused-classes", source=opened.title),)
        images = CaptionedImages(opened.title, opened.store, labels, captions, **facts)
    else:
        opened = known.known.describe(opened) if known else opened
        labels, names, notes = name_classes(opened, classes)
        facts["notes"] += (*_note_many_classes(opened), *notes)
        facts["imagenet_rows"] = known.known.imagenet_rows if known else ()
        images = LabelledImages(
            opened.title, opened.store, labels, names, opened.templates, **facts
        )
        if whole:
            images.require_classes()
    return images.without_unreadable() if columns.skip_unreadable else images


def _note_many_classes(source: Source) -> tuple[Finding, ...]:
    """Note that class names may be captions, where only their look told them apart."""
    values = source.values or ()
    if source.captioned is not None or as_numbers(values) is not None:
        return ()
    classes = len(set(map(str, values)))
    if classes <= max(_MANY_CLASSES, len(values) / 2):
        return ()
    column = (source.captions_from or "caption").removeprefix(".")
    note = Finding.of(
        "many-classes", source=source.title, classes=classes, images=len(values), column=column
    )
    return (note,)


def load_images(source: Any, classes: ClassNames = None, **options: Any) -> LabelledImages:
    """Find images with classes, like `open_images`; images with captions are refused."""
    return require_labelled(open_images(source, classes, **options))


def require_labelled(images: LabelledImages | CaptionedImages) -> LabelledImages:
    """Refuse images with captions."""
    if isinstance(images, CaptionedImages):
        raise DataError(
            f"{images.source}: its images have captions and no classes, which cannot be used here;"
            " give images with classes"
        )
    return images


def load_unlabelled(
    source: Any, columns: Columns | None = None, *, max_images: int, seed: int = 0
) -> LabelledImages:
    """Find images whose labels are neither needed nor read, in any source of `load_images`: all get
    one class.
    """
    columns = replace(columns or Columns(), label=None, caption=None, labelled=False)
    opened = _open(_find_known(source) or source, columns, max_images=max_images, seed=seed)
    if not len(opened.store):
        raise DataError(
            f"{opened.title}: holds no images; name a folder, an archive or a dataset that has some"
        )
    images = LabelledImages(
        opened.title,
        opened.store,
        (0,) * len(opened.store),
        ("unlabelled",),
        revision=opened.revision,
        notes=opened.notes,
    )
    return images.without_unreadable() if columns.skip_unreadable else images


def load_without_labels(
    source: Any,
    classes: Path | Sequence[str],
    columns: Columns | None = None,
    *,
    max_images: int,
    seed: int = 0,
) -> LabelledImages:
    """Find images of these classes in a source without labels, which the fine-tuned model gives
    later.
    """
    images = load_unlabelled(source, columns, max_images=max_images, seed=seed)
    note = Finding.of("no-labels", source=images.source)
    return replace(
        images,
        class_names=read_class_names(classes),
        labelled_by=None,
        notes=(*images.notes, note),
    )


def _find_known(source: Any) -> RegistryRef | None:
    """The public data set that a source names, if it does."""
    return find_known(source) if isinstance(source, str) else None


def _open(
    source: Any, columns: Columns, *, whole: bool = False, max_images: int | None, seed: int
) -> Source:
    """Open a folder, files, a data set on the Hub, ``digits``, or images in memory."""
    source = source.address if isinstance(source, RegistryRef) else source
    if not isinstance(source, str):
        return open_in_memory(source, columns, max_images)
    if not source.strip():  # as a path it would be the working directory
        raise DataError(
            f"'{source}': names no images; give a folder, a file or hf://datasets/ORG/NAME:SPLIT"
        )
    path = local_path(source)
    if source == "digits" and not path.is_dir():
        from clipmerge.images.digits import load_digits

        return load_digits()
    if source.startswith("hf://"):
        from clipmerge.images.hub_dataset import load_hub_dataset

        return load_hub_dataset(source, columns, whole=whole, max_images=max_images, seed=seed)
    if parquet := expand_files(source, ".parquet"):
        from clipmerge.images.parquet import load_parquet

        return load_parquet(source, open_local, parquet, columns)
    if tars := expand_files(source, ".tar"):
        from clipmerge.images.webdataset import load_tars

        return load_tars(source, tars, columns, describe_folder(Path(tars[0]).parent))
    if path.suffix in (".csv", ".tsv", ".jsonl") and not path.is_dir():
        if not path.is_file():
            raise DataError(f"{source}: no such file")
        return load_table(source, path, columns)
    folder, split = local_split(source)
    if split is not None:
        there = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        raise DataError(
            f"{source}: {folder} has no folder '{split}' and no files of a split of that name"
            f" (folders: {shorten(there) or 'none'}).{did_you_mean(split, there)}"
        )
    if not folder.is_dir():
        missing = "is not a kind of file that is read" if folder.exists() else "no such folder"
        raise DataError(
            f"{source}: {missing}; give a folder with one subfolder per class, with captions beside"
            " the images or (without labels) with images at any depth, Parquet, tar, CSV or JSONL"
            " files, hf://datasets/ORG/NAME:SPLIT, or 'digits'."
            f"{did_you_mean(source, known_sets())}"
        )
    return load_folder(source, folder, columns)
