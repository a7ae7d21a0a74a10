"""Classes of images: from the labels of a source to a number for each image and a name for each
class.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from clipmerge.errors import DataError, NoLabelsError, counted, shorten
from clipmerge.images.registry import imagenet_names
from clipmerge.images.source import Opened
from clipmerge.types import Json, Names, Shape

#: A file with class names, the names in the order of the classes, or ``None`` for the source's own.
ClassNames: TypeAlias = Path | Sequence[str] | None

#: A class name with a number in front, such as ``001.Black_footed_Albatross`` or ``0 - zero``.
_NUMBERED = re.compile(r"(?P<number>\d{1,18}) ?[._-]+ ?(?P<name>[^\W\d_].*)", re.ASCII | re.DOTALL)
_DIGITS = re.compile(r"-?\d{1,18}", re.ASCII)


def name_classes(opened: Opened, given_names: ClassNames) -> tuple[Shape, Names, Names]:
    """Name the classes of a source: labels, one name per class, and notes for the user.

    Names that are given in a list belong to numbers by their order. Where the source has names of
    its own, a list of the same names is matched by name; any other list is in the order of the
    source's classes.
    """
    title = opened.title
    labels, classes = number_classes(opened)
    notes: list[str] = []
    if given_names is not None:
        title = str(given_names) if isinstance(given_names, Path) else "the class names given"
        data = _read_names(given_names)
        if (
            classes is None
            and isinstance(data, list)
            and (min(labels), max(labels)) == (1, len(data))
        ):
            # the largest number is the number of names, so they are not counted from 0
            labels = tuple(label - 1 for label in labels)
            notes.append(f"{title}: the labels are 1 to {len(data)}, so 1 is the first name")
        if classes is None and max(labels) >= len(data):
            raise DataError(
                f"{title}: has {counted(len(data), 'class name', 'class names')}, and the labels go"
                f" to {max(labels)}; give one name per class, or name the column of the labels with"
                " `label_column`"
            )
        names = _check_names(title, data, classes or list(map(str, range(len(data)))))
        if classes is not None and isinstance(data, list):
            names = _sort_by_class(names, classes)
    elif classes is None:
        captions = opened.unread_captions
        beside = f"; or take the captions with `caption_column` {captions}" if captions else ""
        raise DataError(
            f"{title}: its labels are the numbers 0 to {max(labels)} without names; pass a file"
            " with the names with `classes`, one per line (if they are ids, name the column of the"
            f" labels with `label_column`){beside}"
        )
    else:
        names = imagenet_names(classes) or classes
        if names is classes and not (opened.verbatim and classes is opened.class_names):
            plain = _without_number if are_numbered(classes) else str
            names = tuple(plain(name.replace("_", " ")) for name in classes)
        if names[0] != classes[0].replace("_", " "):
            notes.append(f"{title}: class '{classes[0]}' is prompted as '{names[0]}'")
    return labels, names, tuple(notes)


def number_classes(opened: Opened) -> tuple[Shape, Names | None]:
    """The class of each image, its number or the order of its text; and the names of the classes,
    ``None`` for bare numbers.
    """
    where = opened.title
    numbers = as_numbers(opened.values)
    labels: Sequence[Any] = opened.values if numbers is None else numbers
    if missing := sum(label is None or (isinstance(label, int) and label < 0) for label in labels):
        some = counted(missing, f"of {len(labels)} images has", f"of {len(labels)} images have")
        raise (NoLabelsError if missing == len(labels) else DataError)(
            f"{where}: {some} no label; give a labelled split, such as validation"
        )
    if numbers is None:
        classes = class_order(set(map(str, labels)))
        index = {name: number for number, name in enumerate(classes)}
        return tuple(index[str(label)] for label in labels), classes
    names = opened.class_names
    if names is not None and max(numbers) >= len(names):
        raise DataError(
            f"{where}: label {max(numbers)} has no name; there are {len(names)} class names"
        )
    return tuple(numbers), names


def as_numbers(labels: Sequence[Any]) -> list[int] | None:
    """Labels as numbers, if all are numbers or texts of digits; otherwise ``None``."""
    if not all(
        isinstance(label, int) or (isinstance(label, str) and _DIGITS.fullmatch(label))
        for label in labels
    ):
        return None
    return list(map(int, labels))


def are_numbered(names: Iterable[str]) -> bool:
    """Whether all classes have a number in front of their names, and differ in both."""
    matches = [_NUMBERED.fullmatch(name) for name in names]
    numbers = {int(match["number"]) for match in matches if match}
    texts = {match["name"] for match in matches if match}
    return len(matches) > 1 and len(numbers) == len(texts) == len(matches)


def class_order(names: Iterable[str]) -> Names:
    """Sort class names: by the numbers in front if all have one, otherwise by text."""
    ordered = sorted(names)
    if are_numbered(ordered):
        ordered.sort(key=lambda name: int(re.split(r"\D", name)[0]))
    return tuple(ordered)


def _sort_by_class(names: Names, classes: Names) -> Names:
    """Sort names by the classes that they equal, if they are the same."""
    index = {_normalise_name(name): name for name in names}
    wanted = list(map(_normalise_name, classes))
    return tuple(index[name] for name in wanted) if set(index) == set(wanted) else names


def _normalise_name(name: str) -> str:
    return _without_number(name.replace("_", " ").strip()).casefold()


def _without_number(name: str) -> str:
    match = _NUMBERED.fullmatch(name)
    return match["name"] if match else name


def read_class_names(given_names: Path | Sequence[str], classes: Sequence[str]) -> Names:
    """Read the names of classes, in their order or by class."""
    title = str(given_names) if isinstance(given_names, Path) else "the class names given"
    return _check_names(title, _read_names(given_names), classes)


def _read_names(given_names: Path | Sequence[str]) -> list[Any] | Json:
    """Names in order, one per line or in JSON, or by class in JSON."""
    if not isinstance(given_names, Path):
        return list(given_names)
    try:
        text = given_names.read_text(encoding="utf-8-sig")
        if given_names.suffix != ".json":
            return [line.strip() for line in text.splitlines() if line.strip()]
        data = json.loads(text)
    except (OSError, ValueError) as error:
        raise DataError(f"{given_names}: cannot be read as class names ({error})") from None
    return data if isinstance(data, (list, dict)) else []


def _check_names(title: str, data: list[Any] | Json, classes: Sequence[str]) -> Names:
    """One name per class."""
    if isinstance(data, dict):
        if missing := [name for name in classes if name not in data]:
            raise DataError(
                f"{title}: has no name for {counted(len(missing), 'class', 'classes')}:"
                f" {shorten(missing)}"
            )
        data = [data[name] for name in classes]
    if len(data) != len(classes):
        raise DataError(
            f"{title}: has {counted(len(data), 'class name', 'class names')}, there are"
            f" {len(classes)} classes; give one name per class"
        )
    for name in data:
        if not (isinstance(name, str) and name.strip()):
            raise DataError(
                f"{title}: {json.dumps(name)[:60]} is not a class name; write a text for each class"
            )
    # as in the names of folders
    return tuple(name.replace("_", " ") for name in data)
