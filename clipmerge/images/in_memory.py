"""Images in memory: a `datasets.Dataset`, or a ``Dataset`` or ``DataLoader`` of torch."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clipmerge.errors import DataError, NoLabelsError
from clipmerge.images.columns import (
    CAPTION_NAMES,
    Columns,
    caption_lists,
    find_columns,
    look_like_captions,
    number_classes,
)
from clipmerge.images.decoding import Encoded
from clipmerge.images.store import OpenedSource, Pixels, Store
from clipmerge.types import Names

_IMAGES = ("pixel_values", "image", "images", "pixels")
_LABELS = ("labels", "label", "target", "targets")
# Images that are looked at to see whether floats are normalised.
_SHOWN = 8


def open_in_memory(data: Any, columns: Columns, most: int | None) -> tuple[str, OpenedSource]:
    """Open images in memory."""
    title = f"{type(data).__name__} in memory"
    if hasattr(data, "features") and hasattr(data, "cast_column"):
        return title, _open_table(title, data, columns)
    if hasattr(data, "batch_size") and hasattr(data, "dataset"):
        return title, _open_loader(title, data, most, columns)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, Mapping):
        return title, _open_items(title, data, columns)
    raise DataError(
        f"data: {type(data).__name__} holds no labelled images; give a path, a datasets.Dataset"
        " (one split), or torch's Dataset or DataLoader"
    )


@dataclass(frozen=True)
class _Items(Store):
    """Images by position, encoded when they are read."""

    get: Callable[[int], Encoded]
    title: str

    def read(self, positions: Sequence[int]) -> list[Encoded]:
        """Read images."""
        return [self.get(at) for at in positions]

    def name(self, position: int) -> str:
        """Data set and position."""
        return f"{self.title}, image {position}"


def _open_table(title: str, data: Any, columns: Columns) -> OpenedSource:
    import datasets

    if not hasattr(data, "num_rows") or data.features is None:
        raise DataError(
            f"{title}: is a stream, from which no sample can be drawn; load the whole split"
        )
    table = data.with_format(None)
    chosen = find_columns(title, table.features.arrow_schema, columns)
    if isinstance(table.features[chosen.image], datasets.Image):
        table = table.cast_column(chosen.image, datasets.Image(decode=False))
    values = [0] * len(table) if chosen.texts is None else list(table[chosen.texts])

    def encoded(row: int) -> Encoded:
        value = table[row][chosen.image]
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        return value if isinstance(value, bytes) else str(value)

    return chosen.opened(title, _Items(encoded, title), values)


def _picture(item: Any) -> Any:
    """The image, or the images, of an item or a batch that may also have labels."""
    if isinstance(item, Mapping):
        return next((item[name] for name in _IMAGES if name in item), None)
    return item[0] if isinstance(item, (tuple, list)) else item


def _target(item: Any, columns: Columns) -> Any:
    """The label or the captions of an item or a batch; ``None`` if it has neither."""
    if not isinstance(item, Mapping):
        return item[1] if isinstance(item, (tuple, list)) and len(item) > 1 else None
    wanted = columns.caption or columns.label
    names = (wanted,) if wanted else (*_LABELS, *CAPTION_NAMES)
    return next((item[name] for name in names if name in item), None)


def _open_items(title: str, data: Any, columns: Columns) -> OpenedSource:
    """Open (image, label) or (image, captions) pairs or mappings; without labels also images, or
    tuples that begin with an image.
    """
    if not len(data):
        raise DataError(f"{title}: holds no images")
    first = data[0]
    if not columns.labelled:
        store, notes = _store_and_notes(lambda at: _picture(data[at]), len(data), title)
        return OpenedSource(store, (0,) * len(data), ("0",), named=False, notes=notes)
    if _target(first, columns) is None:
        raise NoLabelsError(
            f"{title}: its items are not (image, label) or (image, caption) pairs, or mappings of"
            " these names"
        )
    targets = getattr(data, "targets", None)  # the list that torchvision's data sets keep
    if targets is None or isinstance(targets, Mapping) or len(targets) != len(data):
        targets = [_target(data[at], columns) for at in range(len(data))]
    store, notes = _store_and_notes(lambda at: _picture(data[at]), len(data), title)
    return _with_targets(title, store, targets, columns, _names_of(data), notes)


def _with_targets(
    title: str,
    store: Store,
    targets: Sequence[Any],
    columns: Columns,
    names: Names | None,
    notes: Names,
) -> OpenedSource:
    """Images with labels, or with captions: lists of texts, or texts that look like captions."""
    are_captions = columns.caption is not None or (
        columns.label is None
        and names is None
        and (
            look_like_captions(targets)
            or all(
                isinstance(target, (list, tuple))
                and target
                and all(isinstance(text, str) for text in target)
                for target in targets
            )
        )
    )
    if are_captions:
        captions = caption_lists(title, targets, store.name)
        said = f"{title}: images with captions"
        return OpenedSource.with_captions(store, captions, notes=(*notes, said))
    labels = [_label(title, label) for label in targets]
    return OpenedSource(store, *number_classes(title, labels, names), notes=notes)


def _store_and_notes(get: Callable[[int], Any], count: int, title: str) -> tuple[Store, Names]:
    """Images by position, and notes for the user.

    Arrays or tensors of floats are preprocessed already, unless all values of some of them are
    within [0, 1], which no normalised photograph is; all others are encoded losslessly.
    """
    is_float = bool(count) and "float" in str(getattr(get(0), "dtype", ""))
    shown = sorted({at * (count - 1) // max(1, _SHOWN - 1) for at in range(_SHOWN)})
    if is_float and not all(_within_unit_interval(get(at)) for at in shown):
        return Pixels(get, tuple(range(count)), title), ()
    note = (
        f"{title}: its floats lie within [0, 1], as ToTensor() leaves them, so they are taken as"
        " images and preprocessed for the model"
    )
    store = _Items(lambda at: _png(f"{title}, image {at}", get(at)), title)
    return store, (note,) if is_float else ()


def _within_unit_interval(pixels: Any) -> bool:
    values = np.asarray(pixels)
    return values.ndim == 3 and bool(values.min() >= 0 and values.max() <= 1 and values.any())


def _names_of(data: Any) -> Names | None:
    names = getattr(data, "classes", None)
    is_list = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    return tuple(names) if names and is_list else None


def _label(title: str, label: Any) -> int | str:
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


def _png(name: str, image: Any) -> bytes:
    """Encode an image losslessly."""
    from PIL import Image

    if not isinstance(image, Image.Image):
        values = np.asarray(image)
        if values.dtype.kind == "f":
            if not _within_unit_interval(values) and values.any():
                raise DataError(
                    f"{name}: has values outside [0, 1], unlike the first images; give all images"
                    " normalised for the model, or none"
                )
            values = np.rint(255 * values.astype(np.float32)).astype(np.uint8)
        if values.ndim == 3 and values.shape[0] in (1, 3) and values.shape[2] not in (1, 3):
            values = values.transpose(1, 2, 0)
        if values.ndim == 3 and values.shape[2] == 1:
            values = values[:, :, 0]
        if values.dtype != np.uint8 or values.ndim not in (2, 3):
            raise DataError(
                f"{name}: is {type(image).__name__} of {values.dtype}, shape {values.shape};"
                " expected a PIL image, uint8 values, or float pixels (3, height, width)"
            )
        image = Image.fromarray(values)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _open_loader(title: str, loader: Any, most: int | None, columns: Columns) -> OpenedSource:
    pixels: list[Any] = []
    targets: list[Any] = []
    for batch in loader:
        images = _picture(batch)
        of_batch: Any = _target(batch, columns) if columns.labelled else None
        if images is None or (columns.labelled and of_batch is None):
            wanted = "(images, labels) and do not hold 'pixel_values' and 'labels'"
            wanted = wanted if columns.labelled else "images and do not hold 'pixel_values'"
            error = DataError if images is None else NoLabelsError
            raise error(f"{title}: its batches are not {wanted}")
        pixels += list(images)
        targets += list(of_batch) if columns.labelled else [0] * len(images)
        if most is not None and len(targets) >= most:
            break
    pixels, targets = pixels[:most], targets[:most]
    store, notes = _store_and_notes(pixels.__getitem__, len(pixels), title)
    opened = _with_targets(title, store, targets, columns, _names_of(loader.dataset), notes)
    seen = len(set(opened.labels))
    if seen < len(opened.classes):
        note = (
            f"{title}: its first {len(targets)} images show {seen} of {len(opened.classes)}"
            " classes; shuffle it"
        )
        return replace(opened, notes=(*notes, note))
    return opened
