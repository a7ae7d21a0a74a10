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
from clipmerge.files.reading import parse_json, read_text, refusing
from clipmerge.finding import Finding
from clipmerge.images.registry import imagenet_names
from clipmerge.images.source import Source
from clipmerge.types import Json, Names, Shape

#: A file with class names, the names in the order of the classes, or ``None`` for the source's own.
ClassNames: TypeAlias = Path | Sequence[str] | None

#: More classes than any classifier from prompts has. A larger label is an id, and names for all
#: smaller numbers would fill memory.
_MAX_CLASSES = 1_000_000
#: A class name with a number in front, such as ``001.Black_footed_Albatross`` or ``0 - zero``.
_NUMBERED = re.compile(r"(?P<number>\d{1,18}) ?[._-]+ ?(?P<name>[^\W\d_].*)", re.ASCII | re.DOTALL)
_DIGITS = re.compile(r"-?\d{1,18}", re.ASCII)
# a line of ImageNet's lists, such as LOC_synset_mapping.txt: a WordNet id and its names
_SYNSET = re.compile(r"(n\d{8})\s+([^\s,][^,]*).*", re.ASCII)
# a line of a numbered list or of a table
_COUNTED = re.compile(r"(?P<number>\d{1,6})(?P<sign>[,;:.)\t ])\s*(?P<name>\D.*)")


def name_classes(
    source: Source, given_names: ClassNames
) -> tuple[Shape, Names, tuple[Finding, ...]]:
    """Name the classes of a source: labels, one name per class, and notes for the user.

    Names that are given in a list belong to numbers by their order. Where the source has names of
    its own, a list of the same names is matched by name, and a list in which some are at another
    class is refused; any other list is in the order of the source's classes.
    """
    labels, classes = number_classes(source)
    if given_names is not None:
        return _assign_given_names(labels, classes, given_names)
    if classes is None:
        last = max(labels)
        captions = source.unread_captions
        beside = f"; or take the captions with `caption_column` {captions}" if captions else ""
        ids = "; if they are ids, name the column of the labels with `label_column`"
        raise DataError(
            f"{source.title}: its labels are the numbers 0 to {last} without names; pass a file"
            f" with the names with `classes`, one per line{ids if last >= len(labels) else ''}"
            f"{beside}"
        )
    names = classes
    notes = tuple[Finding, ...]()
    if (of_imagenet := imagenet_names(classes)) is not None:
        names = of_imagenet
        notes = (
            Finding.of("wordnet-classes", source=source.title, example=classes[0], name=names[0]),
        )
    elif not (source.verbatim and classes is source.class_names):
        names = tuple(name.replace("_", " ") for name in classes)
        if are_numbered(classes):
            names = tuple(map(_without_number, names))
            notes = (
                Finding.of(
                    "numbered-classes", source=source.title, example=classes[0], name=names[0]
                ),
            )
    for name in names:
        if not is_utf8(name):
            raise DataError(
                f"{source.title}: class {name!a} has a name that is not UTF-8; rename it, or pass"
                " names with `classes`"
            )
    return labels, names, (*notes, *_note_shared_names(source.title, names))


def number_classes(source: Source) -> tuple[Shape, Names | None]:
    """The class of each image, its number or the order of its text; and the names of the classes,
    ``None`` for bare numbers.
    """
    where = source.title
    values = source.values
    if not values:
        raise DataError(f"{where}: holds no images")
    numbers = as_numbers(values)
    labels: Sequence[Any] = values if numbers is None else numbers
    if missing := sum(label is None or (isinstance(label, int) and label < 0) for label in labels):
        some = counted(missing, f"of {len(labels)} images has", f"of {len(labels)} images have")
        if missing == len(labels):
            raise NoLabelsError(
                f"{where}: no image has a label; give a labelled split, such as validation"
            )
        raise DataError(f"{where}: {some} no label; give a labelled split, such as validation")
    if numbers is None:
        classes = class_order(set(map(str, labels)))
        index = {name: number for number, name in enumerate(classes)}
        return tuple(index[str(label)] for label in labels), classes
    largest = max(numbers)
    names = source.class_names
    if names is None and largest >= _MAX_CLASSES:
        raise DataError(
            f"{where}: a label is {largest}, but there are {len(labels)} images; are the labels"
            " ids? Name the column of the labels with `label_column`"
        )
    if names is not None and largest >= len(names):
        raise DataError(f"{where}: label {largest} has no name; there are {len(names)} class names")
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
        ordered.sort(key=lambda name: int(_NUMBERED.fullmatch(name)["number"]))  # type: ignore[index]
    return tuple(ordered)


def _assign_given_names(
    labels: Shape, classes: Names | None, given_names: Path | Sequence[str]
) -> tuple[Shape, Names, tuple[Finding, ...]]:
    """Assign names that the user gave to the classes of a source."""
    title = _names_title(given_names)
    data = _read_names(given_names, classes or ())
    notes: tuple[Finding, ...] = ()
    if classes is not None:
        names = _check_names(title, data, classes, numbered=False)
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
            notes = (Finding.of("labels-from-one", source=title, names=len(data)),)
        index = {number: at for at, number in enumerate(numbers)}
        labels = tuple(index[label] for label in labels)
        names = _check_names(title, data, list(map(str, numbers)), numbered=True)
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


def _note_shared_names(source: str, names: Iterable[str]) -> tuple[Finding, ...]:
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
    return (Finding.of("shared-names", source=source, examples=shorten(shared)),)


def read_class_names(
    given_names: Path | Sequence[str], classes: Sequence[str] | None = None
) -> Names:
    """Read the names of classes, in order or by class, or take those that were given; without
    ``classes`` all names, in order.
    """
    title = _names_title(given_names)
    data = _read_names(given_names, classes or ())
    if classes is None:
        data = list(data.values()) if isinstance(data, dict) else data
        classes = list(map(str, range(len(data))))
    return _check_names(title, data, classes, numbered=False)


def _read_names(given_names: Path | Sequence[str], classes: Sequence[str]) -> list[Any] | Json:
    """Names in order, or by class; by WordNet id where some of the classes are such ids."""
    if not isinstance(given_names, Path):
        return list(given_names)
    with refusing(DataError, f"{given_names}: cannot be read as class names"):
        text = read_text(given_names)
        if given_names.suffix == ".json":
            data = parse_json(text)
            lines = _lines_of_class_index(data)
        else:
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            data = plain_names(lines)
        if by_synset := _names_by_synset(lines):
            return by_synset if set(classes) & set(by_synset) else list(by_synset.values())
        return data if isinstance(data, list | dict) else []


def _lines_of_class_index(data: Any) -> list[str]:
    """Lines of a WordNet id and a name from ImageNet's `imagenet_class_index.json`, which maps
    numbers to such pairs.
    """
    if not isinstance(data, dict):
        return []
    return [" ".join(map(str, pair)) if isinstance(pair, list) else "" for pair in data.values()]


def _names_by_synset(lines: list[str]) -> Json | None:
    """The first name of each WordNet id, if there is an id in front of every line."""
    matches = [_SYNSET.fullmatch(line) for line in lines]
    names = {match[1]: match[2].rstrip().replace("_", " ") for match in matches if match}
    return names if 0 < len(names) == len(lines) else None


def plain_names(lines: list[str]) -> list[str]:
    """Names without what code, numbered lists and tables put around them, if it is around all: a
    comma at the end, quotes, a number that counts the lines, a heading above such numbers.

    Example:
        >>> plain_names(["'cat',", "'dog'"]), plain_names(["id,name", "0,cat", "1,tench, Tinca"])
        (['cat', 'dog'], ['cat', 'tench, Tinca'])
    """
    if len(lines) > 1 and all(line.endswith(",") for line in lines[:-1]):
        lines = [line.removesuffix(",").rstrip() for line in lines]
    if all(len(line) > 2 and line[0] == line[-1] and line[0] in "\"'" for line in lines):
        lines = [line[1:-1] for line in lines]
    counted_lines = [_COUNTED.fullmatch(line) for line in lines]
    matches = [match for match in counted_lines if match]
    has_heading = len(matches) == len(lines) - 1 and not counted_lines[0]
    if has_heading and not all(match["sign"] in lines[0] for match in matches):
        return lines
    numbers = [int(match["number"]) for match in matches]
    names = [match["name"] for match in matches]
    counts = numbers in (list(range(len(names))), list(range(1, 1 + len(names))))
    # "1 person", "2 persons", "3 persons" are names
    is_sure = len(names) >= max(2, len(lines) - 1) and len(set(names)) == len(names)
    return names if counts and is_sure else lines


def _check_names(
    title: str, data: list[Any] | Json, classes: Sequence[str], *, numbered: bool
) -> Names:
    """One name per class; where classes are numbers there may be more names than classes."""
    if isinstance(data, dict):
        if missing := [name for name in classes if name not in data]:
            raise DataError(
                f"{title}: has no name for {counted(len(missing), 'class', 'classes')}:"
                f" {shorten(missing)}"
            )
        data = [data[name] for name in classes]
    if len(data) < len(classes) or (len(data) > len(classes) and not numbered):
        ids = ", or name the column of the labels with `label_column`" if numbered and data else ""
        raise DataError(
            f"{title}: has {counted(len(data), 'class name', 'class names')}, there are"
            f" {len(classes)} classes; give one name per class{ids}"
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
