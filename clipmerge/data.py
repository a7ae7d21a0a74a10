"""Labelled images: found, named, sampled and turned into batches."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipmerge.errors import DataError, UsageError, shorten

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image
    from torch import Tensor

DEFAULT_TEMPLATE = "a photo of a {}."
_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_WORDNET = re.compile(r"n\d{8}")
# A batch is the unit of the bootstrap, so there should be a few of them even when images are scarce.
_LARGEST_BATCH = 128
_FEWEST_BATCHES = 8


@dataclass(frozen=True)
class LabelledImages:
    """Images with their classes.

    Attributes:
        source: What the user wrote.
        dataset: Columns ``image`` (decoded when read) and ``label``.
        labels: Class index of each image.
        class_names: Name of each class, as it goes into the prompts.
        paths: File of each image, where there is one; for messages.
        notes: What the user should know.
    """

    source: str
    dataset: Dataset
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    paths: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def image(self, index: int) -> Image:
        """Decode one image, as RGB.

        Args:
            index: Position.

        Raises:
            DataError: If the file cannot be decoded.
        """
        try:
            image = self.dataset[index]["image"]
            # palette images with transparency go through RGBA, as pillow asks
            rgb: Image = (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")
            return rgb
        except Exception as error:  # a damaged file can make a decoder raise anything
            where = self.paths[index] if self.paths else f"{self.source}, image {index}"
            reason = str(error).split(" <")[0] or type(error).__name__
            raise DataError(f"{where}: cannot be read as an image ({reason}); mend or remove it") from None


def load_images(source: str, classes: Path | None = None) -> LabelledImages:
    """Find labelled images.

    Args:
        source: A folder with one subfolder a class, or ``digits`` (scikit-learn's, extra ``demo``).
        classes: File with class names; see `read_class_names`. By default the folders' names are used, with
            spaces for underscores.

    Returns:
        The images, not decoded yet.

    Raises:
        DataError: If there is nothing there, a class is empty, or the class names do not fit.
    """
    path = Path(source).expanduser()
    if source == "digits" and not path.is_dir():
        return _load_digits()
    if path.is_dir():
        return _load_folder(source, path, classes)
    if source.startswith("hf://") or path.suffix in (".parquet", ".tar"):
        raise DataError(
            f"{source}: this version reads folders with one subfolder a class, and 'digits'; export the images"
        )
    raise DataError(f"{source}: no such folder; --data takes a folder with one subfolder a class, or 'digits'")


def _load_folder(source: str, folder: Path, classes: Path | None) -> LabelledImages:
    folders = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise DataError(f"{source}: has no subfolders; expected one a class, such as {source}/cat/1.jpg")
    names, notes = _names_of(source, [each.name for each in folders], classes)
    paths: list[str] = []
    labels: list[int] = []
    for label, each in enumerate(folders):
        found = sorted(str(file) for file in each.iterdir() if _is_image(file))
        if not found:
            raise _no_images(each)
        paths += found
        labels += [label] * len(found)
    return LabelledImages(source, _dataset(paths, labels), tuple(labels), names, tuple(paths), notes)


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


def _dataset(images: list[Any], labels: list[int]) -> Dataset:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def _load_digits() -> LabelledImages:
    from clipmerge.demo_data import CLASS_NAMES, digit_images

    images, labels = digit_images("all")
    return LabelledImages("digits", _dataset(images, labels), tuple(labels), CLASS_NAMES)


def _names_of(source: str, folders: list[str], classes: Path | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if classes is not None:
        return read_class_names(classes, folders), ()
    notes: tuple[str, ...] = ()
    if all(_WORDNET.fullmatch(name) for name in folders):
        notes = (f"{source}: the folders are WordNet ids, which CLIP does not know; pass their names with --classes",)
    return tuple(name.replace("_", " ") for name in folders), notes


def read_class_names(path: Path, folders: list[str]) -> tuple[str, ...]:
    """Read class names for folders.

    Args:
        path: Text with one name a line in the folders' sorted order, or ``folder<TAB>name`` lines; or JSON, a
            list or an object from folder to name.
        folders: The folders, sorted.

    Returns:
        One name a folder.

    Raises:
        DataError: If it cannot be read, or names do not fit the folders.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data: Any = json.loads(text) if path.suffix == ".json" else None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as class names ({error})") from None
    if data is None:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        data = dict(line.split("\t", 1) for line in lines) if lines and all("\t" in x for x in lines) else lines
    if isinstance(data, dict):
        missing = [folder for folder in folders if folder not in data]
        if missing:
            raise DataError(f"{path}: has no name for {len(missing)} class folders: {shorten(missing)}")
        data = [data[folder] for folder in folders]
    if not isinstance(data, list) or len(data) != len(folders):
        count = len(data) if isinstance(data, list) else 0
        raise DataError(
            f"{path}: has {count} class names, there are {len(folders)} class folders; give one name a folder"
        )
    return tuple(str(name) for name in data)


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
