"""Pictures in memory: a `datasets.Dataset`, a torch ``Dataset``, or a list of (image, label)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from clipmerge.errors import DataError, NoLabelsError
from clipmerge.images.decoding import Encoded
from clipmerge.images.source import CAPTION_NAMES, LABEL_NAMES, Columns, Opened, Pictures
from clipmerge.images.tables import load_files, load_table
from clipmerge.types import Names

_IMAGES = ("pixel_values", "image", "images", "pixels")
# Items that are looked at to see whether floats are normalised.
_SHOWN = 8


def load_in_memory(data: Any, columns: Columns) -> Opened:
    """Open pictures in memory, or a list of files."""
    title = f"{type(data).__name__} in memory"
    if hasattr(data, "features") and hasattr(data, "num_rows"):
        return load_table(title, data, columns)
    is_sequence = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    # an item of a table of pandas is a column
    if not is_sequence or isinstance(data, Mapping) or hasattr(data, "iloc"):
        raise DataError(
            f"data: {type(data).__name__} holds no labelled images; give a path, a datasets.Dataset"
            " (one split), a torch Dataset (of a DataLoader its .dataset) or a list of (image,"
            " label)"
        )
    if not len(data):
        raise DataError(f"{title}: holds no images")
    if isinstance(data, (list, tuple)) and isinstance(data[0], (str, os.PathLike)):
        files = list(map(os.fspath, data))
        return load_files(files[0], files, columns)
    if _pair(data[0], columns)[1] is None:
        raise NoLabelsError(
            f"{title}: its items are not (image, label) or (image, caption) pairs, or mappings of"
            " these names"
        )
    labels = _kept_labels(data) or [_pair(data[at], columns)[1] for at in range(len(data))]
    is_texts = all(isinstance(label, (str, list, tuple)) for label in labels)
    return Opened(
        title,
        _pictures(title, lambda at: _pair(data[at], columns)[0], len(data)),
        labels if is_texts else [_number(title, label) for label in labels],
        captioned=columns.captioned,
        class_names=_class_names(data),
    )


def _kept_labels(data: Any) -> list[Any]:
    """The labels that torchvision's data sets keep beside their images, unless a transform changes
    them.
    """
    targets = getattr(data, "targets", ())
    if getattr(data, "target_transform", None) is not None or len(targets) != len(data):
        return []
    return list(targets)


def _class_names(data: Any) -> Names | None:
    """The class names of a data set, or of the one that it is a part of, as torch's `Subset` is."""
    while not hasattr(data, "classes") and hasattr(data, "dataset"):
        data = data.dataset
    listed = getattr(data, "classes", None) or ()
    # torchvision's ImageNet has several names of each class
    names = tuple(name[0] if isinstance(name, tuple) and name else name for name in listed)
    return names if names and all(isinstance(name, str) for name in names) else None


def _pair(item: Any, columns: Columns) -> tuple[Any, Any]:
    """The image of an item, and its label or captions; ``None`` if it has neither."""
    if isinstance(item, Mapping):
        wanted = columns.caption or columns.label
        names = (wanted,) if wanted else (*LABEL_NAMES, *CAPTION_NAMES)
        image, label = (next((item[n] for n in of if n in item), None) for of in (_IMAGES, names))
        return image, label
    return (item[0], item[1]) if isinstance(item, (tuple, list)) and len(item) > 1 else (item, None)


def _number(title: str, label: Any) -> Any:
    """A class index or a name."""
    if isinstance(label, str):
        return label
    values = np.asarray(label)
    if values.size == 1 and values.dtype.kind in "biuf" and float(values.item()).is_integer():
        return int(values.item())
    raise DataError(
        f"{title}: {str(label)[:60]} is not a label; give a class index or a name for each image"
        " (of one-hot labels the argmax), or captions as texts"
    )


def _pictures(title: str, get: Callable[[int], Any], count: int) -> Pictures:
    """Pictures by position. Floats are preprocessed already, unless all of some that are looked at
    are within [0, 1], which no normalised photograph is.
    """

    def name(at: int) -> str:
        return f"{title}, image {at}"

    shown = map(get, range(0, count, max(1, count // _SHOWN)))
    arrays = [_as_array(image) for image in shown if hasattr(image, "dtype")]
    floats = [array for array in arrays if array.dtype.kind == "f"]
    # zeros are black, or preprocessed and grey: they tell nothing
    telling = [array for array in floats if array.any()]
    if floats and not (telling and all(map(_in_unit_interval, telling))):
        return Pictures(get, name, range(count), preprocessed=True)
    return Pictures(lambda at: _encoded(name(at), get(at)), name, range(count))


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
    if values.dtype != np.uint8 or values.ndim not in (2, 3):
        raise DataError(
            f"{name}: is {type(image).__name__} of {values.dtype}, shape {values.shape}; expected a"
            " path, a PIL image, or numbers of 0 to 255 or all of 0 to 1 (height, width, 3), or"
            " pixels normalised for the model, of every image"
        )
    return Image.fromarray(values[:, :, 0] if values.shape[2:] == (1,) else values)


def _as_array(image: Any) -> np.ndarray[Any, Any]:
    if hasattr(image, "detach"):  # a tensor, of any device, or of a type that numpy lacks
        image = image.detach().cpu()
        image = image.float() if image.is_floating_point() else image
    return np.asarray(image)


def _in_unit_interval(values: np.ndarray[Any, Any]) -> bool:
    return bool(values.min() >= 0 and values.max() <= 1)
