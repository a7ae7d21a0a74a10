"""Classes of images: from the labels of a source to a number for each image, and a name and prompts
for each class.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from clipmerge.errors import DataError, counted, shorten
from clipmerge.images.image_set import OpenedSource
from clipmerge.images.registry import DEFAULT_TEMPLATE, imagenet_names
from clipmerge.types import Json, Names, Shape

#: A file with class names, the names in the order of the classes, or ``None`` for the source's own.
ClassNames: TypeAlias = Path | Sequence[str] | None

#: A class name with a number in front, such as ``001.Black_footed_Albatross`` or ``0 - zero``.
_NUMBERED = re.compile(r"(?P<number>\d{1,18}) ?[._-]+ ?(?P<name>[^\W\d_].*)", re.ASCII | re.DOTALL)
# What data sets give for images without a label; texts may be an empty cell, file or folder name.
_UNLABELLED = (-1, None, "")
_DIGITS = re.compile(r"-?\d{1,18}", re.ASCII)


def name_classes(opened: OpenedSource, given_names: ClassNames) -> tuple[Shape, Names, Names]:
    """Name the classes of a source: labels, one name per class, and notes for the user.

    Names that are given in a list belong to numbers by their order. Where the source has names of
    its own, a list of the same names is matched by name; any other list is in the order of the
    source's classes.
    """
    labels, classes = _number_classes(opened)
    if given_names is not None:
        return _assign_given_names(labels, classes, given_names)
    title = opened.title
    if classes is None:
        raise DataError(
            f"{title}: its labels are the numbers 0 to {max(labels)} without names; pass a file"
            " with the names with `classes`, one per line (if they are ids, name the column of the"
            " labels with `label_column`)"
        )
    if opened.verbatim and classes is opened.class_names:
        return labels, classes, ()
    names = imagenet_names(classes) or tuple(map(_name_in_words, classes))
    if _are_numbered(classes):
        names = tuple(map(_without_number, names))
    if names[0] == _name_in_words(classes[0]):
        return labels, names, ()
    return labels, names, (f"{title}: class '{classes[0]}' is prompted as '{names[0]}'",)


def _assign_given_names(
    labels: Shape, classes: Names | None, given_names: Path | Sequence[str]
) -> tuple[Shape, Names, Names]:
    """Assign names that the user gave to the classes of a source."""
    title = _title_of(given_names)
    data = _read_names(given_names)
    if classes is not None:
        names = _check_names(title, data, classes)
        if isinstance(data, list):
            names = _sort_by_class(title, names, classes)
        return labels, names, ()
    notes: Names = ()
    count = len(data)
    counts_from_one = min(labels) == 1 and max(labels) == count
    if counts_from_one and isinstance(data, list):
        labels = tuple(label - 1 for label in labels)
        notes = (f"{title}: the labels are 1 to {count}, so 1 is the first name",)
    if max(labels) >= count:
        have = counted(count, "class name", "class names")
        raise DataError(
            f"{title}: has {have}, and the labels go to {max(labels)}; give one name per class, or"
            " name the column of the labels with `label_column`"
        )
    numbers = list(map(str, range(count)))
    return labels, _check_names(title, data, numbers), notes


def _number_classes(opened: OpenedSource) -> tuple[Shape, Names | None]:
    """The class of each image, its number or the order of its text; and the names of the classes,
    ``None`` for bare numbers.
    """
    where = opened.title
    values = [_as_label(where, value) for value in opened.values]
    texts = list(map(str, values))
    numbers = list(map(int, texts)) if all(map(_DIGITS.fullmatch, texts)) else None
    count = len(values)
    missing = [at for at, value in enumerate(numbers or values) if value in _UNLABELLED]
    if missing:
        have = counted(len(missing), f"of {count} images has", f"of {count} images have")
        raise DataError(
            f"{where}: {have} no label ({shorten(map(opened.pictures.name_of, missing), 3)}); label"
            " them, leave them out, or give a labelled split, such as validation"
        )
    if numbers is None:
        classes = _sort_class_names(set(texts))
        index = {name: number for number, name in enumerate(classes)}
        return tuple(index[text] for text in texts), classes
    names = opened.class_names
    largest = max(numbers)
    if names is not None and largest >= len(names):
        raise DataError(f"{where}: label {largest} has no name; there are {len(names)} class names")
    return tuple(numbers), names


def _as_label(title: str, label: Any) -> str | int | None:
    """A class index, a name, or nothing."""
    if label is None or isinstance(label, str):
        return label
    values = np.asarray(label)
    is_number = values.size == 1 and values.dtype.kind in "biuf"
    if not is_number or values.item() % 1 != 0:  # nor are NaN and infinity whole
        raise DataError(
            f"{title}: {str(label)[:60]} is not a label; give a class index or a name for each"
            " image (of one-hot labels the argmax), or captions as texts"
        )
    return int(values.item())


def _are_numbered(names: Sequence[str]) -> bool:
    """Whether all classes have a number in front of their names, and differ in both."""
    numbers: set[int] = set()
    texts: set[str] = set()
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match is None:
            return False
        numbers.add(int(match["number"]))
        texts.add(match["name"])
    return 1 < len(names) == len(numbers) == len(texts)


def _sort_class_names(names: Iterable[str]) -> Names:
    """Sort class names: by the numbers in front if all have one, otherwise by text."""
    ordered = sorted(names)
    if _are_numbered(ordered):
        ordered.sort(key=lambda name: int(re.split(r"\D", name)[0]))
    return tuple(ordered)


def _sort_by_class(title: str, names: Names, classes: Names) -> Names:
    """Sort names by the classes that they equal, if they are the same; where some are and stand
    elsewhere, the list has another order, by which every image would get a wrong name.
    """
    places = places_of(classes, names)
    if places:
        return tuple(names[place] for place in places)
    if moved := misplaced(names, classes):
        number, place = moved
        raise DataError(
            f"{title}: '{names[number]}' is name {number + 1}, but class {place + 1} of the images;"
            " write the names in the order of the classes, or JSON with a name for each class"
        )
    return names


def places_of(names: Names, among: Names) -> Shape:
    """The place of each name among others, if they are the same names, each once; else nothing."""
    places = {normalise_name(name): place for place, name in enumerate(among)}
    plain = list(map(normalise_name, names))
    same = places.keys() == set(plain) and len(places) == len(plain) == len(among)
    return tuple(map(places.__getitem__, plain)) if same else ()


def misplaced(names: Names, among: Names) -> tuple[int, int] | None:
    """The place of the first name that stands elsewhere among as many others, and its place
    there.
    """
    others = list(map(normalise_name, among))
    for place, name in enumerate(map(normalise_name, names)):
        if name in others and others[place] != name:
            return place, others.index(name)
    return None


def normalise_name(name: str) -> str:
    """A class name without what its spellings differ in: a number in front, underscores, case."""
    return _without_number(_name_in_words(name).strip()).casefold()


def _name_in_words(name: str) -> str:
    return name.replace("_", " ")


def _without_number(name: str) -> str:
    match = _NUMBERED.fullmatch(name)
    return match["name"] if match else name


def read_class_names(given_names: Path | Sequence[str], classes: Sequence[str]) -> Names:
    """Read the names of classes, in their order or by class."""
    names = _read_names(given_names)
    return _check_names(_title_of(given_names), names, classes)


def _title_of(given_names: Path | Sequence[str]) -> str:
    return str(given_names) if isinstance(given_names, Path) else "the class names given"


def _read_names(given_names: Path | Sequence[str]) -> list[Any] | Json:
    """Names in order, one per line or in JSON, or by class in JSON."""
    if not isinstance(given_names, Path):
        return list(given_names)
    try:
        text = given_names.read_text(encoding="utf-8-sig")
        if given_names.suffix != ".json":
            lines = map(str.strip, text.splitlines())
            return list(filter(None, lines))
        data = json.loads(text)
    except (OSError, ValueError) as error:
        raise DataError(f"{given_names}: cannot be read as class names ({error})") from None
    return data if isinstance(data, (list, dict)) else []


def _check_names(title: str, data: list[Any] | Json, classes: Sequence[str]) -> Names:
    """One name per class."""
    if isinstance(data, dict):
        missing = [name for name in classes if name not in data]
        if missing:
            which = counted(len(missing), "class", "classes")
            raise DataError(f"{title}: has no name for {which}: {shorten(missing)}")
        data = [data[name] for name in classes]
    if len(data) != len(classes):
        have = counted(len(data), "class name", "class names")
        raise DataError(
            f"{title}: has {have}, there are {len(classes)} classes; give one name per class"
        )
    for name in data:
        is_text = isinstance(name, str) and name.strip()
        if not is_text:
            raise DataError(
                f"{title}: {json.dumps(name)[:60]} is not a class name; write a text for each class"
            )
    # as in the names of folders
    return tuple(map(_name_in_words, data))


def templates_for(from_user: Sequence[str], from_source: Sequence[str]) -> Names:
    """Choose the templates for a source."""
    return tuple(from_user or from_source or (DEFAULT_TEMPLATE,))


def class_prompts(class_names: Names, templates: Names) -> list[str]:
    """Write the prompts, class by class: entry ``c * len(templates) + t``."""
    return [template.replace("{}", name) for name in class_names for template in templates]
