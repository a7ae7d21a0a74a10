"""Pictures in memory: a `datasets.Dataset`, a torch ``Dataset``, or a list of (image, label)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from clipmerge.errors import DataError
from clipmerge.images.decoding import Encoded
from clipmerge.images.image_set import CAPTION_NAMES, LABEL_NAMES, Columns, Opened, Pictures
from clipmerge.images.tables import load_dataset, load_files
from clipmerge.types import Names

_IMAGES = ("pixel_values", "image", "images", "pixels")
# Items that are looked at to see whether floats are normalised.
_SHOWN = 8


def load_in_memory(data: Any, columns: Columns) -> Opened:
    """Open pictures in memory, or a list of files."""
    title = f"{type(data).__name__} in memory"
    if hasattr(data, "features") and hasattr(data, "num_rows"):
        return load_dataset(title, data, columns)
    is_sequence = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    is_other = isinstance(data, Mapping) or hasattr(data, "iloc")  # a table of pandas
    if not is_sequence or is_other:
        raise DataError(
            f"data: {type(data).__name__} holds no labelled images; give a path, a datasets.Dataset"
            " (one split), a torch Dataset (of a DataLoader its .dataset) or a list of (image,"
            " label)"
        )
    if not len(data):
        raise DataError(f"{title}: holds no images")
    first = data[0]
    if isinstance(first, (str, os.PathLike)):
        files = list(map(os.fspath, data))
        return load_files(files[0], files, columns)
    if _label_of(first, columns) is None:
        raise DataError(
            f"{title}: its items are not (image, label) or (image, caption) pairs, or mappings of"
            " these names"
        )
    labels = _kept_labels(data)
    if labels is None:
        labels = [_label_of(data[at], columns) for at in range(len(data))]
    if not all(isinstance(label, (str, list, tuple)) for label in labels):
        labels = [_number(title, label) for label in labels]
    return Opened(
        title=title,
        pictures=_pictures(title, data),
        values=labels,
        captioned=columns.captioned,
        class_names=_class_names(data),
    )


def _kept_labels(data: Any) -> list[Any] | None:
    """The labels that torchvision's data sets keep beside their images, unless a transform changes
    them.
    """
    targets = getattr(data, "targets", None)
    if targets is None or len(targets) != len(data):
        return None
    if getattr(data, "target_transform", None) is not None:
        return None
    return list(targets)


def _class_names(data: Any) -> Names | None:
    """The class names of a data set, or of the one that it is a part of, as torch's `Subset` is."""
    while not hasattr(data, "classes") and hasattr(data, "dataset"):
        data = data.dataset
    names: list[str] = []
    for name in getattr(data, "classes", ()):
        # torchvision's ImageNet has several names of each class
        first = name[0] if isinstance(name, tuple) else name
        if not isinstance(first, str):
            return None
        names.append(first)
    return tuple(names) or None


def _image_of(item: Any) -> Any:
    if isinstance(item, Mapping):
        found = [name for name in _IMAGES if name in item]
        return item[found[0]] if found else None
    return item[0]


def _label_of(item: Any, columns: Columns) -> Any:
    """The label or the captions of an item; ``None`` if it has neither."""
    if isinstance(item, Mapping):
        wanted = columns.caption or columns.label
        names = (wanted,) if wanted else (*LABEL_NAMES, *CAPTION_NAMES)
        found = [name for name in names if name in item]
        return item[found[0]] if found else None
    is_pair = isinstance(item, (tuple, list)) and len(item) > 1
    return item[1] if is_pair else None


def _number(title: str, label: Any) -> Any:
    """A class index or a name."""
    if isinstance(label, str):
        return label
    values = np.asarray(label)
    if values.size == 1 and values.dtype.kind in "biuf":
        number = float(values.item())
        if number.is_integer():
            return int(number)
    raise DataError(
        f"{title}: {str(label)[:60]} is not a label; give a class index or a name for each image"
        " (of one-hot labels the argmax), or captions as texts"
    )


def _pictures(title: str, data: Any) -> Pictures:
    """Pictures by position. Floats are preprocessed already, unless all of some that are looked at
    are within [0, 1], which no normalised photograph is.
    """

    def name(at: int) -> str:
        return f"{title}, image {at}"

    def get(at: int) -> Any:
        return _image_of(data[at])

    def encoded(at: int) -> Encoded:
        return _encoded(name(at), get(at))

    positions = range(len(data))
    floats = 0
    normalised = 0
    black = 0
    for at in positions[:: max(1, len(data) // _SHOWN)]:
        image = get(at)
        values = _as_array(image) if hasattr(image, "dtype") else np.zeros(1, np.uint8)
        if values.dtype.kind == "f":
            floats += 1
            normalised += not _in_unit_interval(values)
            black += not values.any()  # or preprocessed and grey: it tells nothing
    if normalised or (floats and floats == black):
        return Pictures(get, name, positions, preprocessed=True)
    return Pictures(encoded, name, positions)


def _encoded(name: str, image: Any) -> Encoded:
    """The path of a picture, its content, or the picture."""
    from PIL import Image

    if isinstance(image, (bytes, Image.Image)):
        return image
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    values = _as_array(image)
    if values.dtype.kind == "f" and _in_unit_interval(values):
        values = np.rint(255 * values).astype(np.uint8)
    if values.ndim == 3 and values.shape[0] <= 4 < values.shape[2]:
        values = values.transpose(1, 2, 0)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.dtype != np.uint8 or values.ndim not in (2, 3):
        raise DataError(
            f"{name}: is {type(image).__name__} of {values.dtype}, shape {values.shape}; expected a"
            " path, a PIL image, or numbers of 0 to 255 or all of 0 to 1 (height, width, 3), or"
            " pixels normalised for the model, of every image"
        )
    return Image.fromarray(values)


def _as_array(image: Any) -> np.ndarray[Any, Any]:
    if hasattr(image, "detach"):  # a tensor, of any device
        image = image.detach().cpu()
        if image.is_floating_point():
            image = image.float()  # numpy lacks some types
    return np.asarray(image)


def _in_unit_interval(values: np.ndarray[Any, Any]) -> bool:
    return bool(values.min() >= 0 and values.max() <= 1)
