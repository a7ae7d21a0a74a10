"""Classes of images: from the labels of a source to a number for each image and a name for each
class.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from clipmerge.errors import DataError, NoLabelsError, counted, is_utf8, shorten
from clipmerge.images.registry import imagenet_names
from clipmerge.images.source import Opened
from clipmerge.types import Json, Names, Shape

#: A file with class names, the names in the order of the classes, or ``None`` for the source's own.
ClassNames: TypeAlias = Path | Sequence[str] | None

#: More classes than any classifier from prompts has. A larger label is an id, and names for all
#: smaller numbers would fill memory.
_MAX_CLASSES = 1_000_000
#: A class name with a number in front, such as ``001.Black_footed_Albatross`` or ``0 - zero``.
_NUMBERED = re.compile(r"(?P<number>\d{1,18}) ?[._-]+ ?(?P<name>[^\W\d_].*)", re.ASCII | re.DOTALL)
_DIGITS = re.compile(r"-?\d{1,18}", re.ASCII)


def name_classes(opened: Opened, given_names: ClassNames) -> tuple[Shape, Names, Names]:
    """Name the classes of a source: labels, one name per class, and notes for the user.

    Names that are given in a list belong to numbers by their order. Where the source has names of
    its own, a list of the same names is matched by name, and a list in which some are at another
    class is refused; any other list is in the order of the source's classes.
    """
    labels, classes = number_classes(opened)
    if given_names is not None:
        return _assign_given_names(labels, classes, given_names)
    title = opened.title
    if classes is None:
        captions = opened.unread_captions
        beside = f"; or take the captions with `caption_column` {captions}" if captions else ""
        raise DataError(
            f"{title}: its labels are the numbers 0 to {max(labels)} without names; pass a file"
            " with the names with `classes`, one per line (if they are ids, name the column of the"
            f" labels with `label_column`){beside}"
        )
    names = classes
    notes: Names = ()
    if (of_imagenet := imagenet_names(classes)) is not None:
        names = of_imagenet
        notes = (
            f"{title}: its classes are WordNet ids, named as in ImageNet: {classes[0]} is"
            f" '{names[0]}'",
        )
    elif not (opened.verbatim and classes is opened.class_names):
        names = tuple(name.replace("_", " ") for name in classes)
        if are_numbered(classes):
            names = tuple(map(_without_number, names))
            notes = (
                f"{title}: the numbers in front of its class names are left out:"
                f" '{classes[0]}' is '{names[0]}'",
            )
    for name in names:
        if not is_utf8(name):
            raise DataError(
                f"{title}: class {name!a} has a name that is not UTF-8; rename it, or pass names"
                " with `classes`"
            )
    return labels, names, (*notes, *_note_shared_names(title, names))


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
    if names is None and max(numbers) >= _MAX_CLASSES:
        raise DataError(
            f"{where}: a label is {max(numbers)}, but there are {len(labels)} images; are the"
            " labels ids? Name the column of the labels with `label_column`"
        )
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


def _assign_given_names(
    labels: Shape, classes: Names | None, given_names: Path | Sequence[str]
) -> tuple[Shape, Names, Names]:
    """Assign names that the user gave to the classes of a source."""
    title = _names_title(given_names)
    data = _read_names(given_names)
    notes: Names = ()
    if classes is not None:
        names = _check_names(title, data, classes)
        if isinstance(data, list):
            names = _sort_by_class(title, names, classes)
    else:
        numbers = list(range(max(labels) + 1))
        if isinstance(data, dict):
            data = {str(int(key)) if key.isdecimal() else key: name for key, name in data.items()}
            numbers = sorted(set(labels) | {int(key) for key in data if key.isdecimal()})
        elif len(data) == max(labels) and min(labels) == 1:
            # the largest number is the number of names, so they cannot be counted from 0
            numbers = numbers[1:]
            notes = (f"{title}: the labels are 1 to {len(data)}, so 1 is the first name",)
        elif len(data) > len(numbers):  # of the last classes there are no images
            numbers = list(range(len(data)))
        index = {number: at for at, number in enumerate(numbers)}
        labels = tuple(index[label] for label in labels)
        names = _check_names(title, data, list(map(str, numbers)))
    return labels, names, (*notes, *_note_shared_names(title, names))


def _sort_by_class(title: str, names: Names, classes: Names) -> Names:
    """Sort names by the classes that they equal, if they are the same; refuse a different order."""
    index = {_normalise_name(name): at for at, name in enumerate(names)}
    wanted = list(map(_normalise_name, classes))
    if len(index) == len(classes) and set(index) == set(wanted):
        return tuple(names[index[name]] for name in wanted)
    for at, name in enumerate(wanted):
        if index.get(name, at) != at:
            raise DataError(
                f"{title}: '{classes[at]}' is class {at + 1} of the images, but name"
                f" {index[name] + 1} of {len(names)}, and other names are not names of classes;"
                " write the names in the order of the classes, or JSON with a name for each class"
            )
    return names


def _normalise_name(name: str) -> str:
    return _without_number(name.replace("_", " ").strip()).casefold()


def _without_number(name: str) -> str:
    match = _NUMBERED.fullmatch(name)
    return match["name"] if match else name


def _note_shared_names(source: str, names: Iterable[str]) -> Names:
    """Note names that several classes share; ImageNet lists in common use have some, so it is not
    an error.
    """
    alike: dict[str, list[str]] = {}
    for name in map(str.strip, names):
        alike.setdefault(name.casefold(), []).append(name)  # CLIP's tokenizer reads no capitals
    shared = [
        " or ".join(map(repr, sorted(set(group)))) for group in alike.values() if len(group) > 1
    ]
    if not shared:
        return ()
    return (
        f"{source}: several classes have the same name, so no model can tell them apart:"
        f" {shorten(shared)}",
    )


def read_class_names(given_names: Path | Sequence[str], classes: Sequence[str]) -> Names:
    """Read the names of classes, in their order or by class."""
    return _check_names(_names_title(given_names), _read_names(given_names), classes)


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
        if not (isinstance(name, str) and name.strip() and is_utf8(name)):
            raise DataError(
                f"{title}: {json.dumps(name)[:60]} is not a class name; write a text for each class"
            )
    # as in the names of folders
    return tuple(name.replace("_", " ") for name in data)


def _names_title(given_names: Path | Sequence[str]) -> str:
    return str(given_names) if isinstance(given_names, Path) else "the class names given"
