"""Labelled images: found, named, sampled and turned into batches."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipmerge.errors import DataError, UsageError, shorten
from clipmerge.files.paths import local_path
from clipmerge.images import Columns, Labelled, Store
from clipmerge.images.decoding import decode, extent
from clipmerge.images.digits import load_digits
from clipmerge.images.folder import load_folder
from clipmerge.images.places import Local, expand
from clipmerge.images.store import Files, Held

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

DEFAULT_TEMPLATE = "a photo of a {}."
_WORDNET = re.compile(r"n\d{8}")
# A batch is the unit of the bootstrap, so there should be a few of them even when images are scarce.
_LARGEST_BATCH = 128
_FEWEST_BATCHES = 8


@dataclass(frozen=True)
class LabelledImages:
    """Images with their classes.

    Attributes:
        source: What the user wrote.
        store: The encoded images; decoded one by one, when asked for.
        labels: Class index of each image.
        class_names: Name of each class, as it goes into the prompts.
        revision: Commit of a dataset on the Hub, else ``None``.
        notes: What the user should know.
    """

    source: str
    store: Store
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    revision: str | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def paths(self) -> tuple[str, ...]:
        """File of each image; empty where images are not files."""
        return self.store.paths if isinstance(self.store, Files) else ()

    def image(self, index: int) -> Image:
        """Decode one image, as RGB.

        Args:
            index: Position.

        Raises:
            DataError: If the file cannot be decoded, or holds numbers whose range is not known.
        """
        (encoded,) = self.store.read([index])
        return decode(self.store.name(index), encoded)

    def extent(self, index: int) -> tuple[int, int]:
        """The shorter and the longer side of an image, in pixels, from its header.

        Args:
            index: Position.

        Raises:
            DataError: If the file is no image.
        """
        (encoded,) = self.store.read([index])
        return extent(self.store.name(index), encoded)

    def require_classes(self) -> None:
        """Refuse images of one class, of which every model recognises all.

        Raises:
            DataError: If there is one class.
        """
        if len(self.class_names) < 2:
            raise DataError(f"{self.source}: has one class; measuring needs at least two")

    def sample(self, count: int, seed: int) -> LabelledImages:
        """Pick images, class-balanced and in a mixed order, reading no more blocks than that takes.

        Args:
            count: Images wanted; all when there are fewer.
            seed: Seed; the same seed and images give the same sample.

        Returns:
            The sample; it is in memory where images are read in blocks.

        Raises:
            DataError, HubError: If images cannot be read.
        """
        candidates = candidate_positions(self.labels, self.store.blocks, count, seed)
        chosen = balanced_sample(tuple(self.labels[at] for at in candidates), count, seed)
        positions = [candidates[at] for at in chosen]
        if isinstance(self.store, Files):
            store: Store = Files(tuple(self.store.paths[at] for at in positions))
        else:
            names = tuple(self.store.name(at) for at in positions)
            store = Held(tuple(self.store.read(positions)), names)
        return replace(self, store=store, labels=tuple(self.labels[at] for at in positions))


def load_images(
    source: str, classes: Path | None = None, *, columns: Columns | None = None, whole: bool = False
) -> LabelledImages:
    """Find labelled images.

    Args:
        source: A folder with one subfolder a class; Parquet or WebDataset tar files, one, a ``{0..9}`` range or a
            folder of them; ``hf://datasets/org/name[@revision][:split]``; or ``digits`` (scikit-learn's, extra
            ``demo``).
        classes: File with class names; see `read_class_names`. By default the source's own are used, with spaces
            for underscores.
        columns: The columns that the user named, for sources that have columns.
        whole: Whether all images will be read, and the right ones counted: a dataset on the Hub is then kept in the
            cache, and one class is refused, of which every image would be right.

    Returns:
        The images, not decoded yet.

    Raises:
        DataError: If there is nothing there, a class is empty, or the class names do not fit.
        HubError: If the Hub refuses or cannot be reached.
    """
    if not source.strip():  # as a path it would be the working directory
        raise DataError(f"'{source}': names no images; give a folder, a file or hf://datasets/ORG/NAME:SPLIT")
    path = local_path(source)
    if source == "digits" and not path.is_dir():
        found = load_digits()
    elif source.startswith("hf://"):
        from clipmerge.images.hub_dataset import load_hub_dataset

        found = load_hub_dataset(source, columns or Columns(), whole=whole)
    else:
        found = _load_tables(source, columns or Columns()) or load_folder(source, path)
    names, notes = _names_of(source, found, classes)
    images = LabelledImages(source, found.store, found.labels, names, found.revision, (*found.notes, *notes))
    if whole:
        images.require_classes()
    return images


def _load_tables(source: str, columns: Columns) -> Labelled | None:
    """Open Parquet or tar files; ``None`` where the source is neither."""
    if parquet := expand(source, ".parquet"):
        from clipmerge.images.parquet import load_parquet

        return load_parquet(source, Local(), parquet, columns)
    if tars := expand(source, ".tar"):
        from clipmerge.images.webdataset import load_tars

        return load_tars(source, Local(), tars, columns)
    return None


def _names_of(source: str, found: Labelled, classes: Path | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if classes is not None:
        names = read_class_names(classes, list(found.classes), numbered=not found.named)
        return names, _shared(str(classes), names)
    if not found.named:
        beyond = len(found.classes) > len(found.labels)
        ids = "; if they are ids, name the column of the labels with --label-column" if beyond else ""
        raise DataError(
            f"{source}: its labels are the numbers 0 to {len(found.classes) - 1} without names; pass a file with the "
            f"names with --classes, one a line{ids}"
        )
    names = tuple(name.replace("_", " ") for name in found.classes)
    for name in names:
        if not _is_utf8(name):
            raise DataError(
                f"{source}: class {name!a} has a name that is not UTF-8; rename it, or pass names with --classes"
            )
    notes = _shared(source, names)
    if all(_WORDNET.fullmatch(name) for name in found.classes):
        notes += (f"{source}: the classes are WordNet ids, which CLIP does not know; pass their names with --classes",)
    return names, notes


def _shared(source: str, names: Iterable[str]) -> tuple[str, ...]:
    """A note on names that several classes have: lists of ImageNet's that are in use have some, so it is no error."""
    shared = [name for name, count in Counter(name.strip() for name in names).items() if count > 1]
    if not shared:
        return ()
    told = shorten(map(repr, shared))
    return (f"{source}: names more than one class {told}; a model takes the first of them for all",)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a file's name in another encoding, or a lone surrogate in JSON
        return False
    return True


def read_class_names(path: Path, classes: list[str], *, numbered: bool = False) -> tuple[str, ...]:
    """Read class names.

    Args:
        path: Text with one name a line in the order of the classes, or ``class<TAB>name`` lines; or JSON, a list or
            an object from class to name.
        classes: What the source calls its classes, in its order: folders sorted, a table's own order, numbers from 0.
        numbered: Whether classes are numbers, so that there may be more names than numbers seen.

    Returns:
        One name a class.

    Raises:
        DataError: If it cannot be read, or names do not fit the classes or are not texts.
    """
    data = _parsed_names(path)
    if isinstance(data, dict):
        missing = [name for name in classes if name not in data]
        if missing:
            raise DataError(f"{path}: has no name for {len(missing)} classes: {shorten(missing)}")
        data = [data[name] for name in classes]
    names: list[Any] = data if isinstance(data, list) else []
    if numbered and 0 < len(names) < len(classes):
        raise DataError(
            f"{path}: label {len(classes) - 1} has no name, it has {len(names)}; give one name a class, or name the "
            "column of the labels with --label-column"
        )
    if len(names) < len(classes) or (len(names) > len(classes) and not numbered):
        raise DataError(
            f"{path}: has {len(names)} class names, there are {len(classes)} classes; give one name a class"
        )
    return _checked_names(path, names)


def _parsed_names(path: Path) -> Any:
    """Read a file of names as what it holds: names in order, or class to name."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows put a mark in front
        data: Any = json.loads(text) if path.suffix == ".json" else None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as class names ({error})") from None
    if data is None:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return dict(line.split("\t", 1) for line in lines) if lines and all("\t" in x for x in lines) else lines
    return data


def _checked_names(path: Path, names: list[Any]) -> tuple[str, ...]:
    for name in names:
        if not (isinstance(name, str) and name.strip() and _is_utf8(name)):
            raise DataError(f"{path}: {json.dumps(name)[:60]} is no class name; write a text for each class")
    return tuple(names)


def check_templates(templates: list[str]) -> tuple[str, ...]:
    """Check prompt templates; none given means the default.

    Args:
        templates: Texts with ``{}`` where the class name goes.

    Returns:
        The templates.

    Raises:
        UsageError: If one has no ``{}``.
    """
    for template in templates:
        if "{}" not in template:
            raise UsageError(f"--template '{template}': has no {{}} for the class name, as in '{DEFAULT_TEMPLATE}'")
    return tuple(templates) or (DEFAULT_TEMPLATE,)


def class_prompts(class_names: tuple[str, ...], templates: tuple[str, ...]) -> list[str]:
    """Write out the prompts, class by class: entry ``c * len(templates) + t``."""
    return [template.replace("{}", name) for name in class_names for template in templates]


def balanced_sample(labels: tuple[int, ...], count: int, seed: int) -> list[int]:
    """Pick images, as equally many a class as there are, in a mixed order.

    Args:
        labels: Class index of each image.
        count: Images wanted; all when there are fewer.
        seed: Seed; the same seed and labels give the same sample.

    Returns:
        Positions, shuffled.

    Example:
        >>> sorted(balanced_sample((0, 0, 0, 0, 1), 3, seed=0)[:3])[-1]
        4
    """
    rng = np.random.default_rng(seed)
    by_class: dict[int, list[int]] = {}
    for position in rng.permutation(len(labels)).tolist():
        by_class.setdefault(labels[position], []).append(position)
    rounds = max((len(positions) for positions in by_class.values()), default=0)
    picked = [
        by_class[label][turn] for turn in range(rounds) for label in sorted(by_class) if turn < len(by_class[label])
    ]
    picked = picked[:count]
    return [picked[i] for i in rng.permutation(len(picked)).tolist()]


def candidate_positions(labels: tuple[int, ...], blocks: tuple[int, ...], count: int, seed: int) -> list[int]:
    """List positions to sample from, in as few blocks as give every class its share of a balanced sample.

    Blocks are visited in a seeded order, and one is taken when it holds a class that still lacks images. A sample of
    the result has as many images a class as a sample of everything.

    Args:
        labels: Class index of each image.
        blocks: Block of each image; empty where images are read singly, and everything is a candidate.
        count: Images wanted.
        seed: Seed of the order.

    Returns:
        Positions, ascending.

    Example:
        >>> candidate_positions((0, 0, 1, 1, 0, 1), (0, 0, 0, 1, 1, 1), 2, seed=0)
        [3, 4, 5]
    """
    if not blocks or count >= len(labels):
        return list(range(len(labels)))
    classes, places = np.asarray(labels), np.asarray(blocks)
    sizes = np.bincount(classes)
    rounds = next(turn for turn in range(1, len(labels) + 1) if np.minimum(sizes, turn).sum() >= count)
    lacking = np.minimum(sizes, rounds)
    taken = []
    for block in np.random.default_rng([seed, len(labels)]).permutation(places[-1] + 1):
        here = np.bincount(classes[np.searchsorted(places, block) : np.searchsorted(places, block, "right")])
        here = np.pad(here, (0, len(sizes) - len(here)))
        if not (lacking > 0).any():
            break
        if ((here > 0) & (lacking > 0)).any():
            lacking = lacking - here
            taken.append(block)
    return [int(position) for position in np.flatnonzero(np.isin(places, taken))]


def batch_size_for(images: int, wanted: int | None) -> int:
    """Choose the batch size: at most 128, and small enough for eight batches.

    Example:
        >>> batch_size_for(1024, None), batch_size_for(160, None), batch_size_for(160, 64)
        (128, 20, 64)
    """
    return wanted or max(1, min(_LARGEST_BATCH, -(-images // _FEWEST_BATCHES)))


def pixel_batches(
    images: LabelledImages,
    positions: list[int],
    batch_size: int,
    to_pixels: Callable[[list[Image]], Tensor],
    *,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Decode and preprocess batches.

    Args:
        images: Where from.
        positions: Which, in order.
        batch_size: Images a batch; the last may be smaller.
        to_pixels: The checkpoint's own preprocessing, RGB images -> (batch, 3, height, width).
        share: This process's index and the number of processes; batches are dealt out in turn.

    Yields:
        Batch number, pixels (batch, 3, height, width) float32, labels (batch,) int64.

    Raises:
        DataError: If an image cannot be decoded.
    """
    import torch

    rank, world = share
    for number, start in enumerate(range(0, len(positions), batch_size)):
        if number % world == rank:
            chosen = positions[start : start + batch_size]
            pixels = to_pixels([images.image(position) for position in chosen])
            yield number, pixels, torch.tensor([images.labels[position] for position in chosen])
