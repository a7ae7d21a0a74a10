"""Find images with their classes or captions; images are decoded only on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np

from clipmerge.errors import DataError, did_you_mean, shorten
from clipmerge.files.limits import MAX_PROMPT_LENGTH
from clipmerge.files.paths import local_path
from clipmerge.images import Columns, ImageSet, OpenedSource, Store
from clipmerge.images.file_store import describe_folder, expand, local_split, open_local
from clipmerge.images.folder import load_flat, load_folder
from clipmerge.images.in_memory import open_in_memory
from clipmerge.images.prompts import ClassNames, listed_names, name_classes
from clipmerge.images.readable import without_unreadable
from clipmerge.images.registry import RegistryRef, find_known, known_sets
from clipmerge.images.tables import load_table
from clipmerge.types import Names, Shape


@dataclass(frozen=True)
class LabelledImages(ImageSet):
    """Images with their classes."""

    class_names: Names  # name of each class, as it goes into the prompts
    templates: Names = ()  # the source's own prompt templates; empty if it has none
    # for each class its rows in a head of ImageNet's 1000 classes; empty if they are not known
    imagenet_rows: tuple[Shape, ...] = ()
    # whose labels they are: ``None`` while a source without labels waits for the fine-tuned model's
    labelled_by: Literal["source", "finetuned"] | None = "source"

    def require_classes(self) -> None:
        """Refuse images of a single class, which every model would recognise."""
        if len(self.class_names) < 2:
            raise DataError(f"{self.source}: has one class; measuring needs at least two")


@dataclass(frozen=True)
class CaptionedImages(ImageSet):
    """Images with their captions."""

    labels_are_classes: ClassVar[bool] = False

    captions: tuple[Names, ...]  # captions of each image, at least one

    def require_classes(self) -> None:
        """Refuse images with one caption, which every model would find."""
        if len(set(self.captions)) < 2:
            raise DataError(f"{self.source}: all images have one caption; measuring needs several")

    def with_one_caption(self, seed: int, known: Names = ()) -> LabelledImages:
        """Draw a caption of each image; images of one class have the same caption.

        The captions are the names of the classes, for prompts that add nothing to them, after those
        that are known.
        """
        rng = np.random.default_rng(seed)
        numbers = {caption: number for number, caption in enumerate(known)}
        labels = []
        for captions in self.captions:
            caption = captions[int(rng.integers(len(captions)))][:MAX_PROMPT_LENGTH]
            labels.append(numbers.setdefault(caption, len(numbers)))
        return LabelledImages(
            self.source,
            self.store,
            tuple(labels),
            tuple(numbers),
            templates=("{}",),
            revision=self.revision,
            notes=self.notes,
        )

    def sample(self, count: int, seed: int) -> Self:
        """Sample images, with all their captions, in a random order."""
        if self.store.blocks:
            return super().sample(count, seed)
        drawn = np.random.default_rng(seed).permutation(len(self))[:count]
        return self.subset([int(position) for position in drawn])

    def subset(self, positions: list[int]) -> Self:
        """Pick images, with all their captions."""
        captions = tuple(self.captions[position] for position in positions)
        return replace(super().subset(positions), captions=captions)


def with_captions(
    source: str,
    store: Store,
    captions: Sequence[Names],
    *,
    revision: str | None = None,
    notes: Names = (),
) -> CaptionedImages:
    """Make a set of images with captions; images whose first captions are equal share a label."""
    numbers: dict[str, int] = {}
    labels = tuple(numbers.setdefault(texts[0], len(numbers)) for texts in captions)
    return CaptionedImages(source, store, labels, tuple(captions), revision=revision, notes=notes)


def open_images(
    source: Any,
    classes: ClassNames = None,
    *,
    columns: Columns | None = None,
    whole: bool = False,
    most: int | None = None,
    seed: int = 0,
) -> LabelledImages | CaptionedImages:
    """Find images with classes or with captions, without decoding them.

    The source is the short name of a public data set (`clipmerge.images.registry`); a folder
    with one subfolder per class, with captions in texts beside the images, or with a table; a CSV
    or TSV file; Parquet or WebDataset tar files, one, a ``{0..9}`` range or a folder of them;
    ``hf://datasets/org/name[@revision][:split]``; ``digits``, which come with clipmerge; or
    images in memory (`clipmerge.images.in_memory`). Where both are there, classes are taken unless
    ``columns`` names captions.

    ``whole`` says that all images will be read to compute an accuracy: a dataset on the Hub is then
    kept in the cache, and a single class is refused. A sample will take at most ``most``: no more
    are taken from a ``DataLoader``, which cannot be sampled, and of tar files on the Hub only those
    that it needs are downloaded.
    """
    if isinstance(source, str):
        source = find_source(source)
    columns = columns or Columns()
    known = source.known if isinstance(source, RegistryRef) else None
    if known is not None:
        source = source.address
    source, opened = _opened(source, columns, whole=whole, most=most, seed=seed)
    if opened.captions:
        return with_captions(
            source, opened.store, opened.captions, revision=opened.revision, notes=opened.notes
        )
    opened = known.describe(opened) if known is not None else opened
    labels, names, notes = name_classes(source, opened, classes)
    images = LabelledImages(
        source=source,
        store=opened.store,
        labels=labels,
        class_names=names,
        revision=opened.revision,
        notes=(*opened.notes, *notes),
        templates=opened.templates,
        imagenet_rows=known.imagenet_rows if known is not None else (),
    )
    if whole:
        images.require_classes()
    return images


def load_images(
    source: Any,
    classes: ClassNames = None,
    *,
    columns: Columns | None = None,
    whole: bool = False,
    most: int | None = None,
    seed: int = 0,
) -> LabelledImages:
    """Find images with classes, like `open_images`; images with captions are refused."""
    return require_labelled(
        open_images(source, classes, columns=columns, whole=whole, most=most, seed=seed)
    )


def require_labelled(images: LabelledImages | CaptionedImages) -> LabelledImages:
    """Refuse images with captions."""
    if isinstance(images, CaptionedImages):
        raise DataError(
            f"{images.source}: its images have captions and no classes, which cannot be used here;"
            " give images with classes"
        )
    return images


def load_unlabelled(
    source: Any, columns: Columns | None = None, *, most: int, seed: int = 0
) -> LabelledImages:
    """Find images whose labels are neither needed nor read, in any source of `load_images`: all get
    one class.
    """
    columns = replace(columns or Columns(), label=None, caption=None, labelled=False)
    named = str(find_source(source)) if isinstance(source, str) else source
    source, opened = _opened(named, columns, most=most, seed=seed)
    if not opened.labels:
        raise DataError(
            f"{source}: holds no images; give `unlabelled` images from where the model will be used"
        )
    labels = (0,) * len(opened.labels)
    return LabelledImages(
        source,
        opened.store,
        labels,
        ("unlabelled",),
        revision=opened.revision,
        notes=opened.notes,
    )


def load_without_labels(
    source: Any,
    classes: Path | Sequence[str],
    columns: Columns | None = None,
    *,
    most: int,
    seed: int = 0,
) -> LabelledImages:
    """Find images of these classes in a source without labels, which the fine-tuned model gives
    later.
    """
    images = load_unlabelled(source, columns, most=most, seed=seed)
    note = (
        f"{images.source}: its images have no labels; the fine-tuned model's answers stand in for"
        " them"
    )
    return replace(
        images,
        class_names=listed_names(classes),
        labelled_by=None,
        notes=(*images.notes, note),
    )


def find_source(source: str) -> RegistryRef | str:
    """Look up the short name of a public data set; the source is returned if it is not such a
    name.
    """
    if not source.strip():  # as a path it would be the working directory
        raise DataError(
            f"'{source}': names no images; give a folder, a file or hf://datasets/ORG/NAME:SPLIT"
        )
    return find_known(source) or source


def _opened(
    source: Any, columns: Columns, *, whole: bool = False, most: int | None, seed: int
) -> tuple[str, OpenedSource]:
    """Open a source: its name, and what it holds; unreadable images are left out if that is
    wanted.
    """
    if isinstance(source, str):
        title, opened = source, _open_named(source, columns, whole=whole, most=most, seed=seed)
    else:
        title, opened = open_in_memory(source, columns, most)
    return title, without_unreadable(title, opened) if columns.skip_unreadable else opened


def _open_named(
    source: str, columns: Columns, *, whole: bool, most: int | None, seed: int
) -> OpenedSource:
    """Open a folder, files, a data set on the Hub, or ``digits``."""
    if source == "digits" and not local_path(source).is_dir():
        from clipmerge.images.digits import load_digits

        return load_digits()
    if source.startswith("hf://"):
        from clipmerge.images.hub_dataset import load_hub_dataset

        return load_hub_dataset(source, columns, whole=whole, most=most, seed=seed)
    if parquet := expand(source, ".parquet"):
        from clipmerge.images.parquet import load_parquet

        return load_parquet(source, open_local, parquet, columns)
    if tars := expand(source, ".tar"):
        from clipmerge.images.webdataset import load_tars

        return load_tars(source, tars, columns, describe_folder(Path(tars[0]).parent))
    if local_path(source).suffix in (".csv", ".tsv") and not local_path(source).is_dir():
        table = local_path(source)
        if not table.is_file():
            raise DataError(f"{source}: no such file")
        return load_table(source, table, columns)
    path, split = local_split(source)
    if split is not None:
        there = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        raise DataError(
            f"{source}: {path} has no folder '{split}' and no files of a split of that name"
            f" (folders: {shorten(there) or 'none'}).{did_you_mean(split, there)}"
        )
    if not columns.labelled:
        return load_flat(source, path)
    return load_folder(source, path, columns, others=known_sets())
