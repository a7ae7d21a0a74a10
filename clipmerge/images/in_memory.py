"""Pictures in memory: a `datasets.Dataset`, a torch ``Dataset``, or a list of (image, label)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from clipmerge.errors import DataError
from clipmerge.images.image_set import Columns, OpenedSource, Pictures
from clipmerge.images.tables import load_dataset
from clipmerge.types import Names


def load_in_memory(data: Any, columns: Columns) -> OpenedSource:
    """Open a data set or a list of pictures in memory."""
    title = f"{type(data).__name__} in memory"
    if hasattr(data, "features") and hasattr(data, "num_rows"):
        return load_dataset(title, data, columns)
    is_sequence = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    is_table = isinstance(data, Mapping) or hasattr(data, "iloc")  # pandas has iloc
    if not is_sequence or is_table:
        raise DataError(
            f"data: {type(data).__name__} holds no labelled images; give a path, a datasets.Dataset"
            " (one split), a torch Dataset (the .dataset of a DataLoader) or a list of (image,"
            " label)"
        )
    items = range(len(data))
    name = f"{title}, image {{}}".format

    def pair(at: int) -> Any:
        if not isinstance(item := data[at], (tuple, list)) or len(item) < 2:
            raise DataError(f"{title}: its items are not (image, label) or (image, caption) pairs")
        return item

    labels = _stored_labels(data)
    if labels is None:
        labels = [pair(at)[1] for at in items]
    pictures = Pictures(lambda at: _as_picture(name(at), pair(at)[0]), name, items)
    return OpenedSource(title, pictures, labels, columns.captioned, _class_names(data))


def _stored_labels(data: Any) -> Any:
    """Return the labels that torchvision's data sets, and subsets of them, store in a list;
    ``None`` if labels come only with the images.
    """
    from torch.utils.data import Subset

    if type(data) is Subset:
        labels = _stored_labels(data.dataset)
        return None if labels is None else [labels[at] for at in data.indices]
    labels = getattr(data, "targets", None)
    is_changed = getattr(data, "target_transform", None) is not None
    return None if labels is None or is_changed or len(labels) != len(data) else labels


def _class_names(data: Any) -> Names | None:
    """Return the class names of a data set, or of the data set of a torch ``Subset``."""
    while not hasattr(data, "classes") and hasattr(data, "dataset"):
        data = data.dataset
    names = getattr(data, "classes", ())
    # torchvision's ImageNet has several names for each class
    return tuple(name[0] if isinstance(name, tuple) else name for name in names) or None


def _as_picture(name: str, image: Any) -> Any:
    """Return a picture or its path unchanged, and an array as a picture of eight bits."""
    from PIL import Image

    if isinstance(image, (bytes, Image.Image)):
        return image
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    if hasattr(image, "detach"):  # a tensor, of any device
        image = image.detach().cpu()
        if image.is_floating_point():
            image = image.float()  # numpy lacks some types
    values = np.asarray(image)
    kind, shape = values.dtype, values.shape
    if kind.kind == "f" and ((values >= 0) & (values <= 1)).all():  # false for NaN
        values = np.rint(values * 255).astype(np.uint8)
    if values.ndim == 3 and shape[0] <= 4 < shape[2]:
        values = values.transpose(1, 2, 0)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    try:
        if values.dtype != np.uint8 or values.ndim < 2 or not values.size:
            raise TypeError
        return Image.fromarray(values)
    except TypeError:  # Pillow raises it for other shapes
        raise DataError(
            f"{name}: is {type(image).__name__} of {kind}, shape {shape}; expected a path, a PIL"
            " image, whole numbers of 0 to 255 (uint8) or floats of 0 to 1; give a data set without"
            " the transform that normalises its pixels for a model"
        ) from None
