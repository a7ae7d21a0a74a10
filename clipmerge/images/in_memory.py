"""Pictures in memory: a `datasets.Dataset`, a torch ``Dataset``, or a list of (image, label)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from clipmerge.errors import DataError
from clipmerge.images.image_set import TEXT_NAMES, Columns, OpenedSource, Pictures, first_named
from clipmerge.images.tables import load_dataset, load_files
from clipmerge.types import Names

_IMAGES = ("pixel_values", "image", "images", "pixels")
# The range of floats is found from so many items; reading all would take too long.
_SHOWN = 8
# Pixels normalised for a model are smaller; of pixels from 0 to 255 some are larger.
_LARGEST_NORMALISED = 8


def load_in_memory(data: Any, columns: Columns) -> OpenedSource:
    """Open pictures in memory, or a list of files."""
    title = f"{type(data).__name__} in memory"
    if hasattr(data, "features") and hasattr(data, "num_rows"):
        return load_dataset(title, data, columns)
    is_sequence = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    is_table = isinstance(data, Mapping) or hasattr(data, "iloc")  # pandas has iloc
    if not is_sequence or is_table:
        raise DataError(
            f"data: {type(data).__name__} holds no labelled images; give a path, a datasets.Dataset"
            " (one split), a torch Dataset (of a DataLoader its .dataset) or a list of (image,"
            " label)"
        )
    if len(data) and isinstance(data[0], (str, os.PathLike)):
        files = list(map(os.fspath, data))
        return load_files(files[0], files, columns)
    labels = _labels_beside(data)
    if labels is None:
        labels = [_pair_of(title, data[at], columns)[1] for at in range(len(data))]
    pictures = _pictures_of_items(title, data, columns)
    return OpenedSource(title, pictures, labels, columns.captioned, _class_names(data))


def _labels_beside(data: Any) -> Any:
    """The labels that torchvision keeps beside its images, also for a subset; ``None`` if only the
    items have labels.
    """
    from torch.utils.data import Subset

    if type(data) is Subset:
        labels = _labels_beside(data.dataset)
        return None if labels is None else [labels[at] for at in data.indices]
    labels = getattr(data, "targets", None)
    is_changed = getattr(data, "target_transform", None) is not None
    return None if labels is None or is_changed or len(labels) != len(data) else labels


def _class_names(data: Any) -> Names | None:
    """The class names of a data set, or of the data set of a torch ``Subset``."""
    while not hasattr(data, "classes") and hasattr(data, "dataset"):
        data = data.dataset
    names = getattr(data, "classes", ())
    # torchvision's ImageNet has several names for each class
    return tuple(name[0] if isinstance(name, tuple) else name for name in names) or None


def _pair_of(title: str, item: Any, columns: Columns) -> tuple[Any, Any]:
    """The image of an item, and its label or captions."""
    if isinstance(item, Mapping):
        wanted = columns.caption or columns.label
        text = first_named(item, [wanted] if wanted else TEXT_NAMES)
        return first_named(item, [columns.image] if columns.image else _IMAGES), text
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise DataError(
            f"{title}: its items are not (image, label) or (image, caption) pairs, or mappings of"
            " these names"
        )
    return item[0], item[1]


def _pictures_of_items(title: str, data: Any, columns: Columns) -> Pictures:
    """Pictures by position. A few of them show whether floats are from 0 to 1, from 0 to 255, or
    preprocessed.
    """

    def name(at: int) -> str:
        return f"{title}, image {at}"

    def image_of(at: int) -> Any:
        return _pair_of(title, data[at], columns)[0]

    positions = range(len(data))
    shown = {at: image_of(at) for at in positions[:: max(1, len(data) // _SHOWN)]}
    arrays = [_as_array(image) for image in shown.values() if hasattr(image, "dtype")]
    floats = [values for values in arrays if values.dtype.kind == "f" and values.size]
    pixels = np.concatenate([values.ravel() for values in floats] or [np.arange(2.0)])
    lowest, highest = np.fmin.reduce(pixels), np.fmax.reduce(pixels)  # without NaN
    # all zeros are preprocessed grey, or black, which looks the same to every model
    preprocessed = bool(lowest < 0 or 1 < highest <= _LARGEST_NORMALISED or highest == 0)
    white = 255 if highest > 1 else 1

    def read(at: int, image: Any) -> Any:
        if preprocessed:
            shape = np.shape(image)
            is_like_others = shape == floats[0].shape and len(shape) == 3 == shape[0]
            found = image if is_like_others else None
        else:
            found = _as_picture(image, white)
        if found is None:
            values = _as_array(image)
            raise DataError(
                f"{name(at)}: is {type(image).__name__} of {values.dtype}, shape {values.shape};"
                " expected a path, a PIL image, numbers of 0 to 255 or all of 0 to 1 (height,"
                " width, 3), or pixels normalised for the model (3, height, width), the same of"
                " every image"
            )
        return found

    for at, image in shown.items():
        read(at, image)
    return Pictures(lambda at: read(at, image_of(at)), name, positions, preprocessed)


def _as_picture(image: Any, white: int) -> Any:
    """The path of a picture, its content, or the picture; ``None`` if an array is none. ``white``
    is the largest float.
    """
    from PIL import Image

    if isinstance(image, (bytes, Image.Image)):
        return image
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    values = _as_array(image)
    if values.dtype.kind == "f" and ((values >= 0) & (values <= white)).all():  # NaN is not
        values = np.rint(values * (255 / white)).astype(np.uint8)
    if values.ndim == 3 and values.shape[0] <= 4 < values.shape[2]:
        values = values.transpose(1, 2, 0)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    is_picture = values.ndim == 2 or (values.ndim == 3 and values.shape[2] <= 4)
    if values.dtype != np.uint8 or not values.size or not is_picture:
        return None
    return Image.fromarray(values)


def _as_array(image: Any) -> np.ndarray[Any, Any]:
    if hasattr(image, "detach"):  # a tensor, of any device
        image = image.detach().cpu()
        if image.is_floating_point():
            image = image.float()  # numpy lacks some types
    return np.asarray(image)
