"""Turn the labels of a source into class numbers and names, and names into prompts."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from clipmerge.errors import DataError, counted, did_you_mean_path, shorten
from clipmerge.images.image_set import OpenedSource, lines_of, require_all
from clipmerge.images.registry import DEFAULT_TEMPLATE, imagenet_names
from clipmerge.types import Json, Names, Shape

#: A file of class names, class names in order, or ``None`` for the source's own names.
ClassNames: TypeAlias = Path | Sequence[str] | None

#: A class name with a number in front, such as ``001.Black_footed_Albatross`` or ``0 - zero``.
_NUMBERED = re.compile(r"(?P<number>\d{1,18}) ?[._-]+ ?(?P<name>[^\W\d_].*)", re.ASCII | re.DOTALL)
_DIGITS = re.compile(r"\d{1,18}", re.ASCII)
# A missing label: an empty text or a negative number.
_UNLABELLED = re.compile(r"(-\d{1,18})?", re.ASCII)


def name_classes(opened: OpenedSource, given: ClassNames) -> tuple[Shape, Names, Names]:
    """Return the class number of each image, the name of each class, and notes.

    The user's names are in the order of the class numbers or of the source's own class names. If
    they are the source's names in another order, they are matched by name.
    """
    labels, classes = _number_classes(opened)
    if given is not None:
        return _assign_names(labels, classes, given)
    title = opened.title
    if classes is None:
        raise DataError(
            f"{title}: its labels are the numbers 0 to {max(labels)}, without names; list the names"
            " in a file, one per line, and give it as `classes` (if the numbers are ids, name the"
            " label column with `label_column`)"
        )
    if opened.verbatim and classes is opened.class_names:
        return labels, classes, ()
    without_numbers = [name for _, name in _split_numbers(classes).values()]
    names = imagenet_names(classes) or tuple(map(_in_words, without_numbers or classes))
    if names[0] == _in_words(classes[0]):
        return labels, names, ()
    return labels, names, (f"{title}: class '{classes[0]}' is prompted as '{names[0]}'",)


def _assign_names(
    labels: Shape, classes: Names | None, given: Path | Sequence[str]
) -> tuple[Shape, Names, Names]:
    """Assign the user's names to the classes; ``classes`` is ``None`` if they only have numbers."""
    title, names = _read_names(given)
    notes: Names = ()
    if classes is None:
        if isinstance(names, list) and min(labels) == 1 and max(labels) == len(names):
            labels = tuple(label - 1 for label in labels)
            notes = (f"{title}: the labels are 1 to {len(names)}, so 1 is the first name",)
        classes = tuple(map(str, range(max(len(names), max(labels) + 1))))
    checked = _check_names(title, names, classes)
    if isinstance(names, list):
        checked = _sort_by_class(title, checked, classes)
    return labels, checked, notes


def _number_classes(opened: OpenedSource) -> tuple[Shape, Names | None]:
    """Return the class number of each image, and the class names, or ``None`` if the classes only
    have numbers. Words are numbered in sorted order.
    """
    title = opened.title
    texts = [_label_as_text(title, value) for value in opened.values]
    unlabelled = [at for at, text in enumerate(texts) if _UNLABELLED.fullmatch(text)]
    missing = list(map(opened.pictures.name_of, unlabelled))
    remedy = "label them, leave them out, or give a labelled split, such as validation"
    require_all(title, "label", missing, len(texts), remedy)
    if not all(map(_DIGITS.fullmatch, texts)):
        classes = sorted(set(texts))
        if numbered := _split_numbers(classes):
            classes.sort(key=numbered.__getitem__)
        index = {name: number for number, name in enumerate(classes)}
        return tuple(index[text] for text in texts), tuple(classes)
    labels = tuple(map(int, texts))
    names = opened.class_names
    if names is not None and max(labels) >= len(names):
        raise DataError(
            f"{title}: label {max(labels)} has no name; there are {len(names)} class names"
        )
    return labels, names


def _label_as_text(title: str, label: Any) -> str:
    """Write a label as text: a name, or the digits of a class number; empty if it is missing."""
    if label is None or isinstance(label, str):
        return label or ""
    try:
        value = np.asarray(label).item()  # also of a tensor, or of an array with one number
        number = int(value)
    except (TypeError, ValueError, OverflowError):  # several numbers, NaN or infinity
        value = number = None
    if number is None or number != value:
        raise DataError(
            f"{title}: {str(label)[:60]} is not a label; give a class index or a name for each"
            " image (of one-hot labels the argmax), or captions as texts"
        )
    return str(number)


def _split_numbers(names: Collection[str]) -> dict[str, tuple[int, str]]:
    """Split class names such as ``001.cat`` into number and name. The result is empty unless all
    names have this form, and all numbers and names differ.
    """
    matches = filter(None, map(_NUMBERED.fullmatch, names))
    split = {match[0]: (int(match["number"]), match["name"]) for match in matches}
    numbers = {number for number, _ in split.values()}
    texts = {text for _, text in split.values()}
    return split if 1 < len(names) == len(numbers) == len(texts) else {}


def _sort_by_class(title: str, names: Names, classes: Names) -> Names:
    """Put names in the order of the classes, if both are the same names. Otherwise, raise an error
    if a name has another position among the classes, because images would get wrong names.
    """
    if places := positions_among(classes, names):
        return tuple(names[place] for place in places)
    if moved := first_misplaced(names, classes):
        number, place = moved
        raise DataError(
            f"{title}: '{names[number]}' is name {number + 1}, but class {place + 1} of the images;"
            " write the names in the order of the classes, or a JSON file with a name for each"
        )
    return names


def positions_among(names: Names, among: Names) -> Shape:
    """Return the position of each name in another list; empty unless both lists have the same
    names.
    """
    places = tuple(_find_names(names, among))
    return places if sorted(places) == list(range(len(among))) else ()


def first_misplaced(names: Names, among: Names) -> tuple[int, int] | None:
    """Find the first name that has another position in another list. Return both positions."""
    found = enumerate(_find_names(names, among))
    return next(((at, place) for at, place in found if place not in (at, -1)), None)


def _find_names(names: Names, among: Names) -> Iterator[int]:
    """Yield the position of each name in another list, or -1. If the other list has the name twice,
    its position in ``names`` is preferred.
    """
    others = list(map(_normalise, among))
    places = {name: place for place, name in enumerate(others)}
    for at, name in enumerate(map(_normalise, names)):
        yield at if others[at : at + 1] == [name] else places.get(name, -1)


def _normalise(name: str) -> str:
    """Remove a leading number, underscores and case, to compare spellings of a class name."""
    words = _in_words(name).strip()
    match = _NUMBERED.fullmatch(words)
    return (match["name"] if match else words).casefold()


def _in_words(name: str) -> str:
    """Replace underscores by spaces."""
    return name.replace("_", " ")


def read_class_names(given: Path | Sequence[str], classes: Sequence[str]) -> Names:
    """Read one name for each class, from a list in the order of the classes or from a mapping."""
    return _check_names(*_read_names(given), classes)


def _read_names(given: Path | Sequence[str]) -> tuple[str, list[Any] | Json]:
    """Read a list of names, one per line or in JSON, or a JSON mapping from class to name. Return
    a title for messages, and the names.
    """
    if not isinstance(given, Path):
        return "the class names given", list(given)
    try:
        text = given.read_text(encoding="utf-8-sig")
        names = json.loads(text) if given.suffix == ".json" else lines_of(text)
    except FileNotFoundError:
        raise DataError(
            f"{given}: no such file of class names.{did_you_mean_path(given)}"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{given}: cannot be read as class names ({error})") from None
    return str(given), names if isinstance(names, (list, dict)) else []


def _check_names(title: str, names: list[Any] | Json, classes: Sequence[str]) -> Names:
    """Check that there is one name per class, and return the names in the order of the classes."""
    if isinstance(names, dict):
        missing = [name for name in classes if name not in names]
        if missing:
            raise DataError(f"{title}: has no name for {shorten(missing)}; give one per class")
        names = [names[name] for name in classes]
    if len(names) != len(classes):
        have = counted(len(names), "class name", "class names")
        raise DataError(
            f"{title}: has {have}, there are {len(classes)} classes; give one name per class"
        )
    for name in names:
        if not (isinstance(name, str) and name.strip()):
            raise DataError(f"{title}: {name!r} is not a class name; write a text for each class")
    return tuple(map(_in_words, names))  # as in the names of folders


def templates_for(from_user: Sequence[str], from_source: Sequence[str]) -> Names:
    """Return the user's templates, or else the source's own, or else the default."""
    return tuple(from_user or from_source or (DEFAULT_TEMPLATE,))


def class_prompts(class_names: Names, templates: Names) -> list[str]:
    """Write the prompts class by class: class c with template t is at
    ``c * len(templates) + t``.
    """
    return [template.replace("{}", name) for name in class_names for template in templates]
