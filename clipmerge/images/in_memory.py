"""Pictures in memory: a `datasets.Dataset`, a torch ``Dataset``, or a list of (image, label)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from clipmerge.errors import DataError
from clipmerge.images.decoding import Encoded
from clipmerge.images.image_set import (
    CAPTION_NAMES,
    LABEL_NAMES,
    Columns,
    OpenedSource,
    Pictures,
    first_named,
)
from clipmerge.images.tables import load_dataset, load_files
from clipmerge.types import Names

_IMAGES = ("pixel_values", "image", "images", "pixels")
# Items that are looked at to see whether floats are normalised; all would take too long.
_SHOWN = 8


def load_in_memory(data: Any, columns: Columns) -> OpenedSource:
    """Open pictures in memory, or a list of files."""
    title = f"{type(data).__name__} in memory"
    if hasattr(data, "features") and hasattr(data, "num_rows"):
        return load_dataset(title, data, columns)
    is_sequence = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    is_table = isinstance(data, Mapping) or hasattr(data, "iloc")  # iloc is of pandas
    if not is_sequence or is_table:
        raise DataError(
            f"data: {type(data).__name__} holds no labelled images; give a path, a datasets.Dataset"
            " (one split), a torch Dataset (of a DataLoader its .dataset) or a list of (image,"
            " label)"
        )
    if not len(data):
        raise DataError(f"{title}: holds no images")
    if isinstance(data[0], (str, os.PathLike)):
        files = list(map(os.fspath, data))
        return load_files(files[0], files, columns)
    labels = getattr(data, "targets", None)  # torchvision keeps them beside its images
    is_changed = getattr(data, "target_transform", None) is not None
    if labels is None or is_changed or len(labels) != len(data):
        labels = [_label_of(data[at], columns) for at in range(len(data))]
    if labels[0] is None:
        raise DataError(
            f"{title}: its items are not (image, label) or (image, caption) pairs, or mappings of"
            " these names"
        )
    return OpenedSource(
        title=title,
        pictures=_pictures_of_items(title, data),
        values=[_as_label(title, label) for label in labels],
        captioned=columns.captioned,
        class_names=_class_names(data),
    )


def _class_names(data: Any) -> Names | None:
    """The class names of a data set, or of the one that it is a part of, as torch's `Subset` is."""
    while not hasattr(data, "classes") and hasattr(data, "dataset"):
        data = data.dataset
    names = getattr(data, "classes", ())
    # torchvision's ImageNet has several names of each class
    first = tuple(name[0] if isinstance(name, tuple) else name for name in names)
    return first or None


def _image_of(item: Any) -> Any:
    return first_named(item, _IMAGES) if isinstance(item, Mapping) else item[0]


def _label_of(item: Any, columns: Columns) -> Any:
    """The label or the captions of an item; ``None`` if it has neither."""
    if isinstance(item, Mapping):
        wanted = columns.caption or columns.label
        return first_named(item, [wanted] if wanted else [*LABEL_NAMES, *CAPTION_NAMES])
    is_pair = isinstance(item, (tuple, list)) and len(item) > 1
    return item[1] if is_pair else None


def _as_label(title: str, label: Any) -> Any:
    """A class index, a name, or captions."""
    if isinstance(label, (str, list, tuple)):
        return label
    values = np.asarray(label)
    is_number = values.size == 1 and values.dtype.kind in "biuf"
    if not is_number or values.item() != int(values.item()):
        raise DataError(
            f"{title}: {str(label)[:60]} is not a label; give a class index or a name for each"
            " image (of one-hot labels the argmax), or captions as texts"
        )
    return int(values.item())


def _pictures_of_items(title: str, data: Any) -> Pictures:
    """Pictures by position. Floats are preprocessed already, unless all of some that are looked at
    are within [0, 1], which no normalised photograph is.
    """

    def name(at: int) -> str:
        return f"{title}, image {at}"

    def get(at: int) -> Any:
        return _image_of(data[at])

    def encode_image(at: int) -> Encoded:
        return _encode(name(at), get(at))

    positions = range(len(data))
    shown = [get(at) for at in positions[:: max(1, len(data) // _SHOWN)]]
    arrays = [_as_array(image) for image in shown if hasattr(image, "dtype")]
    floats = [values for values in arrays if values.dtype.kind == "f"]
    is_normalised = any(not _is_in_unit_interval(values) for values in floats)
    # all black is preprocessed and grey, or tells nothing
    is_black = bool(floats) and not any(values.any() for values in floats)
    if is_normalised or is_black:
        return Pictures(get, name, positions, preprocessed=True)
    return Pictures(encode_image, name, positions)


def _encode(name: str, image: Any) -> Encoded:
    """The path of a picture, its content, or the picture."""
    from PIL import Image

    if isinstance(image, (bytes, Image.Image)):
        return image
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    values = _as_array(image)
    if values.dtype.kind == "f" and _is_in_unit_interval(values):
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


def _is_in_unit_interval(values: np.ndarray[Any, Any]) -> bool:
    return bool(values.min() >= 0 and values.max() <= 1)
