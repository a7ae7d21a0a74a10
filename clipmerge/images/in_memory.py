"""Pictures in memory: a `datasets.Dataset`, a torch ``Dataset``, or a list of (image, label)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
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
# Items that are looked at to see in what range floats are; all would take too long.
_SHOWN = 8
# No normalised pixel is as large, and of floats of 0 to 255 some are larger.
_LARGEST_NORMALISED = 8


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
    labels = _labels_beside(data)
    if labels is None:
        labels = [_label_of(data[at], columns) for at in range(len(data))]
    if labels[0] is None:
        raise DataError(
            f"{title}: its items are not (image, label) or (image, caption) pairs, or mappings of"
            " these names"
        )
    return OpenedSource(
        title=title,
        pictures=_pictures_of_items(title, data),
        values=labels,
        captioned=columns.captioned,
        class_names=_class_names(data),
    )


def _labels_beside(data: Any) -> Any:
    """The labels that torchvision keeps beside its images, also of a part of a data set; ``None``
    where only the items have them.
    """
    from torch.utils.data import Subset

    if type(data) is Subset:
        labels = _labels_beside(data.dataset)
        return None if labels is None else [labels[at] for at in data.indices]
    labels = getattr(data, "targets", None)
    is_changed = getattr(data, "target_transform", None) is not None
    return None if labels is None or is_changed or len(labels) != len(data) else labels


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


def _pictures_of_items(title: str, data: Any) -> Pictures:
    """Pictures by position. Of floats, some that are looked at tell whether they reach from 0 to 1,
    from 0 to 255, or are preprocessed already.
    """

    def name(at: int) -> str:
        return f"{title}, image {at}"

    def get(at: int) -> Any:
        return read(name(at), _image_of(data[at]))

    positions = range(len(data))
    looked_at = positions[:: max(1, len(data) // _SHOWN)]
    shown = [_image_of(data[at]) for at in looked_at]
    arrays = [_as_array(image) for image in shown if hasattr(image, "dtype")]
    floats = [values for values in arrays if values.dtype.kind == "f" and values.size]
    lowest = min(map(np.min, floats), default=0)
    highest = max(map(np.max, floats), default=1)
    # all black is preprocessed and grey, or tells nothing
    preprocessed = bool(lowest < 0 or 1 < highest <= _LARGEST_NORMALISED or highest == 0)
    if preprocessed:
        read: Callable[[str, Any], Any] = partial(_require_pixels, shape=floats[0].shape)
    else:
        read = partial(_encode, white=255 if highest > 1 else 1)
    for at, image in zip(looked_at, shown, strict=True):
        read(name(at), image)
    return Pictures(get, name, positions, preprocessed)


def _require_pixels(name: str, image: Any, shape: tuple[int, ...]) -> Any:
    """Refuse pixels of another shape than those of the other images."""
    if np.shape(image) != shape or len(shape) != 3 or shape[0] != 3:
        raise _refusal(name, image)
    return image


def _encode(name: str, image: Any, white: int) -> Encoded:
    """The path of a picture, its content, or the picture; ``white`` is the largest float."""
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
        raise _refusal(name, image)
    return Image.fromarray(values)


def _refusal(name: str, image: Any) -> DataError:
    values = _as_array(image)
    return DataError(
        f"{name}: is {type(image).__name__} of {values.dtype}, shape {values.shape}; expected a"
        " path, a PIL image, numbers of 0 to 255 or all of 0 to 1 (height, width, 3), or pixels"
        " normalised for the model (3, height, width), the same of every image"
    )


def _as_array(image: Any) -> np.ndarray[Any, Any]:
    if hasattr(image, "detach"):  # a tensor, of any device
        image = image.detach().cpu()
        if image.is_floating_point():
            image = image.float()  # numpy lacks some types
    return np.asarray(image)
