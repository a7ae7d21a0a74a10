"""Images in memory: a `datasets.Dataset`, or a ``Dataset`` or ``DataLoader`` of torch."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from clipmerge.errors import DataError, NoLabelsError
from clipmerge.finding import Finding
from clipmerge.images.captions import has_captions
from clipmerge.images.classes import as_numbers
from clipmerge.images.columns import CAPTION_NAMES, find_columns
from clipmerge.images.decoding import Encoded
from clipmerge.images.source import Columns, Source
from clipmerge.images.store import Items, Pixels
from clipmerge.types import Names

_IMAGES = ("pixel_values", "image", "images", "pixels")
_LABELS = ("labels", "label", "target", "targets")
# Images that are looked at to see whether floats are normalised, and whether labels are right.
_SHOWN = 8
# Numbers of channels: grey, grey with alpha, RGB, RGB with alpha.
_CHANNELS = (1, 2, 3, 4)
_PNG_MODES = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")


def open_in_memory(data: Any, columns: Columns, max_images: int | None) -> Source:
    """Open images in memory."""
    title = f"{type(data).__name__} in memory"
    if hasattr(data, "features") and hasattr(data, "cast_column"):
        return _open_table(title, data, columns)
    if hasattr(data, "batch_size") and hasattr(data, "dataset"):
        return _open_loader(title, data, columns, max_images)
    is_table = hasattr(data, "iloc")  # of pandas, whose positions are not its items
    is_sequence = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if is_sequence and not is_table and not isinstance(data, Mapping):
        return _open_items(title, data, columns)
    raise DataError(
        f"data: {type(data).__name__} holds no labelled images; give a path, a datasets.Dataset"
        " (one split), or torch's Dataset or DataLoader"
    )


def _open_table(title: str, data: Any, columns: Columns) -> Source:
    import datasets

    if not hasattr(data, "num_rows") or data.features is None:
        raise DataError(
            f"{title}: is a stream, from which no sample can be drawn; load the whole split"
        )
    table = data.with_format(None)
    chosen = find_columns(title, table.features.arrow_schema, columns)
    if isinstance(table.features[chosen.image], datasets.Image):
        table = table.cast_column(chosen.image, datasets.Image(decode=False))

    def encoded(row: int) -> Encoded:
        value = table[row][chosen.image]
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        return value if isinstance(value, bytes) else str(value)

    values = None if chosen.text_column is None else list(table[chosen.text_column])
    return chosen.to_source(title, Items(encoded, tuple(range(len(table))), title), values)


def _open_items(title: str, data: Any, columns: Columns) -> Source:
    """Open (image, label) or (image, captions) pairs or mappings; without labels also images, or
    tuples that begin with an image.
    """
    count = len(data)
    if not count:
        raise DataError(f"{title}: holds no images")
    if columns.labelled and _label_of(data[0], columns) is None:
        raise NoLabelsError(
            f"{title}: its items are not (image, label) or (image, caption) pairs, or mappings of"
            " these names"
        )
    targets, names = _labels_and_names_of(data, columns)
    if columns.labelled and targets is None:
        targets = [_label_of(data[at], columns) for at in range(count)]
    return _build_source(title, lambda at: _image_of(data[at]), count, targets, names, columns)


def _labels_and_names_of(data: Any, columns: Columns) -> tuple[Sequence[Any] | None, Names | None]:
    """The list of labels that torchvision's data sets keep, and the class names of a data set.

    A transform may change the labels of the items; then neither the list nor the names are right.
    """
    names = _class_names_of(data)
    targets = getattr(data, "targets", None)
    if not columns.labelled or targets is None or isinstance(targets, Mapping):
        return None, names
    if len(targets) != len(data):
        return None, names
    are_right = all(
        np.array_equal(_label_of(data[at], columns), targets[at])
        for at in _sample_positions(len(data))
    )
    return (targets, names) if are_right else (None, None)


def _sample_positions(count: int) -> list[int]:
    """Positions of a few items, evenly from the first to the last."""
    return sorted({at * (count - 1) // max(1, _SHOWN - 1) for at in range(_SHOWN)})


def _open_loader(title: str, loader: Any, columns: Columns, max_images: int | None) -> Source:
    pictures: list[Any] = []
    targets: list[Any] = []
    for batch in loader:
        images = _image_of(batch)
        labels = _label_of(batch, columns)
        if images is None or (columns.labelled and labels is None):
            wanted = "(images, labels) and do not hold 'pixel_values' and 'labels'"
            wanted = wanted if columns.labelled else "images and do not hold 'pixel_values'"
            error = DataError if images is None else NoLabelsError
            raise error(f"{title}: its batches are not {wanted}")
        pictures += list(images)
        targets += list(labels) if columns.labelled else []
        if max_images is not None and len(pictures) >= max_images:
            break
    pictures = pictures[:max_images]
    targets = targets[:max_images]
    values = targets if columns.labelled else None
    _, names = _labels_and_names_of(loader.dataset, columns)
    opened = _build_source(title, pictures.__getitem__, len(pictures), values, names, columns)
    numbers = as_numbers(opened.values or ())
    if not numbers or has_captions(opened):
        return opened
    seen = len(set(numbers))
    classes = len(opened.class_names or ()) or max(numbers) + 1
    note = Finding.of("not-shuffled", source=title, images=len(numbers), seen=seen, classes=classes)
    return replace(opened, notes=(*opened.notes, note)) if seen < classes else opened


def _image_of(item: Any) -> Any:
    """The image, or the images, of an item or a batch that may also have labels."""
    if isinstance(item, Mapping):
        return next((item[name] for name in _IMAGES if name in item), None)
    return item[0] if isinstance(item, (tuple, list)) else item


def _label_of(item: Any, columns: Columns) -> Any:
    """The label or the captions of an item or a batch; ``None`` if it has neither."""
    if not isinstance(item, Mapping):
        return item[1] if isinstance(item, (tuple, list)) and len(item) > 1 else None
    wanted = columns.caption or columns.label
    names = (wanted,) if wanted else (*_LABELS, *CAPTION_NAMES)
    return next((item[name] for name in names if name in item), None)


def _build_source(
    title: str,
    get: Callable[[int], Any],
    count: int,
    targets: Sequence[Any] | None,
    class_names: Names | None,
    columns: Columns,
) -> Source:
    """Images by position, with their labels or captions and the class names of a data set.

    Arrays or tensors of floats are preprocessed already, unless all values of those that are looked
    at are within [0, 1], which no normalised photograph is; all others are encoded losslessly.
    """
    positions = tuple(range(count))
    is_float = bool(count) and "float" in str(getattr(get(0), "dtype", ""))
    is_ready = False
    if is_float:
        shown = [_as_array(get(at)) for at in _sample_positions(count)]
        # zeros are black, or preprocessed and grey: they tell nothing
        telling = [values for values in shown if values.any()]
        is_ready = not telling or not all(map(_within_unit_interval, telling))
    opened = Source(
        title,
        Pixels(get, positions, title)
        if is_ready
        else Items(lambda at: _encoded(f"{title}, image {at}", get(at)), positions, title),
        targets,
        captioned=columns.captioned,
        class_names=class_names,
        notes=(Finding.of("unit-floats", source=title),) if is_float and not is_ready else (),
    )
    if targets is None or has_captions(opened):
        return opened
    return replace(opened, values=[_parse_label(title, target) for target in targets])


def _class_names_of(data: Any) -> Names | None:
    """The class names of a data set, or of the one that it is a part of, as torch's `Subset` is."""
    while not hasattr(data, "classes") and hasattr(data, "dataset"):
        data = data.dataset
    listed = getattr(data, "classes", None)
    if not listed or not isinstance(listed, (list, tuple)):
        return None
    # torchvision's ImageNet has several names of each class
    names = tuple(name[0] if isinstance(name, tuple) and name else name for name in listed)
    return names if all(isinstance(name, str) for name in names) else None


def _parse_label(title: str, label: Any) -> int | str:
    """A class index or name; a vector of scores per class is not turned into one."""
    if isinstance(label, str):
        return label
    values = np.asarray(label)
    if values.size == 1 and values.dtype.kind in "biuf" and float(values.item()).is_integer():
        return int(values.item())
    if values.size > 1:
        raise DataError(
            f"{title}: a label has {values.size} numbers; give one class per image (of one-hot"
            " labels the argmax), or captions as texts, not as tokens"
        )
    raise DataError(f"{title}: {label!r} is not a label; give a class index or a name")


def _encoded(name: str, image: Any) -> Encoded:
    """The path of an image file, or an image encoded losslessly."""
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    from PIL import Image, ImageOps

    if isinstance(image, Image.Image) and image.mode == "F":
        image = np.asarray(image)[None]
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)  # PNG would lose how a camera was held
        if image.mode not in _PNG_MODES:
            image = image.convert("RGB")
    else:
        values = _as_array(image)
        if values.dtype.kind == "f":
            if not _within_unit_interval(values):
                raise DataError(
                    f"{name}: has values outside [0, 1], unlike the first images; give all images"
                    " normalised for the model, or none"
                )
            values = np.rint(255 * values.astype(np.float32)).astype(np.uint8)
        if values.ndim == 3 and values.shape[0] in _CHANNELS and values.shape[2] not in _CHANNELS:
            values = values.transpose(1, 2, 0)
        is_image = values.ndim == 2 or (values.ndim == 3 and values.shape[2] in _CHANNELS)
        if values.ndim == 3 and values.shape[2] == 1:
            values = values[:, :, 0]
        if values.dtype != np.uint8 or not is_image:
            raise DataError(
                f"{name}: is {type(image).__name__} of {values.dtype}, shape {values.shape};"
                " expected a path, a PIL image, uint8 values, or float pixels (3, height, width)"
            )
        image = Image.fromarray(values)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _as_array(image: Any) -> np.ndarray[Any, Any]:
    if hasattr(image, "detach"):  # a tensor, of any device, or of a type that numpy lacks
        image = image.detach().cpu()
        image = image.float() if image.is_floating_point() else image
    return np.asarray(image)


def _within_unit_interval(values: np.ndarray[Any, Any]) -> bool:
    return values.ndim == 3 and bool(values.min() >= 0 and values.max() <= 1)
