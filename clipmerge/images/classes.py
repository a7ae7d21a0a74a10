"""Turn the labels of a source into class numbers and names, and names into prompts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from clipmerge.errors import DataError, counted, did_you_mean_path, shorten
from clipmerge.images.image_set import OpenedSource
from clipmerge.images.registry import DEFAULT_TEMPLATE, imagenet_names
from clipmerge.types import Json, Names, Shape

#: A file of class names, class names in order, or ``None`` for the source's own names.
ClassNames: TypeAlias = Path | Sequence[str] | None

#: A class name with a number in front, such as ``001.Black_footed_Albatross`` or ``0 - zero``.
_NUMBERED = re.compile(r"(?P<number>\d{1,18}) ?[._-]+ ?(?P<name>[^\W\d_].*)", re.ASCII | re.DOTALL)
_WORDNET_ID = re.compile(r"n\d{8}", re.ASCII)
# Values that stand for a missing label; an empty cell or file gives the empty text.
_UNLABELLED = (-1, None, "")
_DIGITS = re.compile(r"-?\d{1,18}", re.ASCII)


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
    ids_only = all(map(_WORDNET_ID.fullmatch, classes))
    names = (imagenet_names(classes) if ids_only else None) or tuple(map(_name_in_words, classes))
    if _are_numbered(classes):
        names = tuple(map(_without_number, names))
    if names[0] == _name_in_words(classes[0]):
        return labels, names, ()
    return labels, names, (f"{title}: class '{classes[0]}' is prompted as '{names[0]}'",)


def _assign_names(
    labels: Shape, classes: Names | None, given: Path | Sequence[str]
) -> tuple[Shape, Names, Names]:
    """Give the classes the user's names; ``classes`` is ``None`` if they only have numbers."""
    title, names = _read_names(given)
    notes: Names = ()
    if classes is None:
        count = len(names)
        if isinstance(names, list) and min(labels) == 1 and max(labels) == count:
            labels = tuple(label - 1 for label in labels)
            notes = (f"{title}: the labels are 1 to {count}, so 1 is the first name",)
        if max(labels) >= count:
            have = counted(count, "class name", "class names")
            raise DataError(
                f"{title}: has {have}, and the labels go to {max(labels)}; give one name per class,"
                " or name the label column with `label_column`"
            )
        classes = tuple(map(str, range(count)))
    checked = _check_names(title, names, classes)
    if isinstance(names, list):
        checked = _sort_by_class(title, checked, classes)
    return labels, checked, notes


def _number_classes(opened: OpenedSource) -> tuple[Shape, Names | None]:
    """Return the class number of each image, and the class names; ``None`` if classes have numbers
    alone. Labels that are texts are numbered in sorted order.
    """
    where = opened.title
    values = [_as_label(where, value) for value in opened.values]
    texts = list(map(str, values))
    numbers = list(map(int, texts)) if all(map(_DIGITS.fullmatch, texts)) else None
    missing = [at for at, value in enumerate(numbers or values) if value in _UNLABELLED]
    if missing:
        count = len(values)
        have = counted(len(missing), f"of {count} images has", f"of {count} images have")
        raise DataError(
            f"{where}: {have} no label ({shorten(map(opened.pictures.name_of, missing), 3)}); label"
            " them, leave them out, or give a labelled split, such as validation"
        )
    if numbers is None:
        classes = sorted(set(texts))
        if _are_numbered(classes):
            classes.sort(key=lambda name: int(re.split(r"\D", name)[0]))
        index = {name: number for number, name in enumerate(classes)}
        return tuple(map(index.__getitem__, texts)), tuple(classes)
    names = opened.class_names
    if names is not None and max(numbers) >= len(names):
        raise DataError(
            f"{where}: label {max(numbers)} has no name; there are {len(names)} class names"
        )
    return tuple(numbers), names


def _as_label(title: str, label: Any) -> str | int | None:
    """Convert a label to a class number or a name; ``None`` if the image has none."""
    if label is None or isinstance(label, str):
        return label
    values = np.asarray(label)
    is_number = values.size == 1 and values.dtype.kind in "biuf"
    if not is_number or values.item() % 1 != 0:  # true for NaN and infinity, too
        raise DataError(
            f"{title}: {str(label)[:60]} is not a label; give a class index or a name for each"
            " image (of one-hot labels the argmax), or captions as texts"
        )
    return int(values.item())


def _are_numbered(names: Sequence[str]) -> bool:
    """Whether all class names are a number and a name, and all numbers and names differ."""
    parts = [match.groups() for match in map(_NUMBERED.fullmatch, names) if match]
    numbers = {int(number) for number, _ in parts}
    texts = {text for _, text in parts}
    return 1 < len(names) == len(numbers) == len(texts)


def _sort_by_class(title: str, names: Names, classes: Names) -> Names:
    """Put names in the order of the classes that they match. Raise an error if a name belongs to a
    class at another position, because images would get wrong names.
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
    places = {_normalise(name): place for place, name in enumerate(among)}
    plain = list(map(_normalise, names))
    same = places.keys() == set(plain) and len(places) == len(plain) == len(among)
    return tuple(map(places.__getitem__, plain)) if same else ()


def first_misplaced(names: Names, among: Names) -> tuple[int, int] | None:
    """Find the first name that stands elsewhere in another list of the same length. Return both
    positions.
    """
    others = list(map(_normalise, among))
    for place, name in enumerate(map(_normalise, names)):
        if name in others and others[place] != name:
            return place, others.index(name)
    return None


def _normalise(name: str) -> str:
    """Remove a leading number, underscores and case, to compare spellings of a class name."""
    return _without_number(_name_in_words(name).strip()).casefold()


def _name_in_words(name: str) -> str:
    """Replace underscores by spaces."""
    return name.replace("_", " ")


def _without_number(name: str) -> str:
    """Remove a number in front of a class name."""
    match = _NUMBERED.fullmatch(name)
    return match["name"] if match else name


def read_class_names(given: Path | Sequence[str], classes: Sequence[str]) -> Names:
    """Read one name for each class, from a list in the order of the classes or from a mapping."""
    return _check_names(*_read_names(given), classes)


def _read_names(given: Path | Sequence[str]) -> tuple[str, list[Any] | Json]:
    """Read a list of names, one per line or in JSON, or a JSON mapping from class to name. Return
    its title for messages, and the names.
    """
    if not isinstance(given, Path):
        return "the class names given", list(given)
    try:
        text = given.read_text(encoding="utf-8-sig")
        if given.suffix != ".json":
            return str(given), list(filter(None, map(str.strip, text.splitlines())))
        data = json.loads(text)
    except FileNotFoundError:
        raise DataError(
            f"{given}: no such file of class names.{did_you_mean_path(given)}"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{given}: cannot be read as class names ({error})") from None
    return str(given), data if isinstance(data, (list, dict)) else []


def _check_names(title: str, names: list[Any] | Json, classes: Sequence[str]) -> Names:
    """Check that there is one name per class."""
    if isinstance(names, dict):
        missing = [name for name in classes if name not in names]
        if missing:
            which = counted(len(missing), "class", "classes")
            raise DataError(f"{title}: has no name for {which}: {shorten(missing)}")
        names = [names[name] for name in classes]
    if len(names) != len(classes):
        have = counted(len(names), "class name", "class names")
        raise DataError(
            f"{title}: has {have}, there are {len(classes)} classes; give one name per class"
        )
    for name in names:
        if not (isinstance(name, str) and name.strip()):
            raise DataError(
                f"{title}: {json.dumps(name)[:60]} is not a class name; write a text for each class"
            )
    return tuple(map(_name_in_words, names))  # as in the names of folders


def templates_for(from_user: Sequence[str], from_source: Sequence[str]) -> Names:
    """Return the user's templates, or else the source's own, or else the default."""
    return tuple(from_user or from_source or (DEFAULT_TEMPLATE,))


def class_prompts(class_names: Names, templates: Names) -> list[str]:
    """Write the prompts class by class: class c with template t is at
    ``c * len(templates) + t``.
    """
    return [template.replace("{}", name) for name in class_names for template in templates]
