"""Class names, prompt templates, and the class prompts written from them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from clipmerge.errors import DataError, UsageError, counted, did_you_mean, is_utf8, shorten
from clipmerge.files.limits import MAX_PROMPT_LENGTH, MAX_PROMPTS
from clipmerge.files.reading import parse_json, read_text, refusing
from clipmerge.images.columns import NUMBERED, are_numbered
from clipmerge.images.store import OpenedSource
from clipmerge.types import Json, Names, Shape

#: A file with class names, the names in the order of the classes, or ``None`` for the source's own.
ClassNames: TypeAlias = Path | Sequence[str] | None

_WORDNET = re.compile(r"n\d{8}")
# a line of a numbered list or of a table
_COUNTED = re.compile(r"(?P<number>\d{1,6})(?P<sign>[,;:.)\t ])\s*(?P<name>\D.*)")


def name_classes(
    source: str, opened: OpenedSource, classes: ClassNames
) -> tuple[Shape, Names, Names]:
    """Name the classes of a source: labels, one name per class, and notes for the user.

    Names that are given in a list belong to numbers by their order. Where the source has names of
    its own, a list of the same names is matched by name, and a list in which some are at another
    class is refused; any other list is in the order of the source's classes.
    """
    if classes is not None:
        return _given_names(opened, classes)
    if not opened.named:
        beyond = len(opened.classes) > len(opened.labels)
        ids = (
            "; if they are ids, name the column of the labels with `label_column`" if beyond else ""
        )
        raise DataError(
            f"{source}: its labels are the numbers 0 to {len(opened.classes) - 1} without names;"
            f" pass a file with the names with `classes`, one per line{ids}"
        )
    names, notes = opened.classes, Names()
    if not opened.verbatim:
        names = tuple(name.replace("_", " ") for name in opened.classes)
        if are_numbered(opened.classes):
            names = tuple(_without_number(name) for name in names)
            notes = (
                f"{source}: its classes are numbered, such as '{opened.classes[0]}'; prompts have"
                f" the name without the number, '{names[0]}'",
            )
    for name in names:
        if not is_utf8(name):
            raise DataError(
                f"{source}: class {name!a} has a name that is not UTF-8; rename it, or pass names"
                " with `classes`"
            )
    notes += _shared(source, names)
    if all(_WORDNET.fullmatch(name) for name in opened.classes):
        notes += (
            f"{source}: the classes are WordNet ids, which CLIP does not know; pass their names"
            " with `classes`",
        )
    if all(name.strip().isdecimal() for name in names):
        notes += (
            f"{source}: the classes are named by bare numbers, which say little to CLIP; pass their"
            " names with `classes`",
        )
    return opened.labels, names, notes


def _given_names(opened: OpenedSource, given: Path | Sequence[str]) -> tuple[Shape, Names, Names]:
    """Assign names that the user gave to the classes of a source."""
    title, data = _title(given), _read_names(given)
    labels, classes = opened.labels, list(opened.classes)
    notes: Names = ()
    if not opened.named and isinstance(data, dict):
        data = {str(int(key)) if key.isdecimal() else key: name for key, name in data.items()}
        numbers = sorted(set(labels) | {int(key) for key in data if key.isdecimal()})
        index = {number: at for at, number in enumerate(numbers)}
        labels, classes = tuple(index[label] for label in labels), list(map(str, numbers))
    elif not opened.named and len(data) == len(classes) - 1 and min(labels) == 1:
        # the largest number is the number of names, so they cannot be counted from 0
        labels, classes = tuple(label - 1 for label in labels), classes[1:]
        notes = (f"{title}: the labels are 1 to {len(data)}, so the first name is that of 1",)
    names = _checked_names(title, data, classes, numbered=not opened.named)
    if opened.named and isinstance(data, list):
        names = _matched(title, names, opened.classes)
    return labels, names, (*notes, *_shared(title, names))


def _matched(title: str, names: Names, classes: Names) -> Names:
    """Sort names by the classes that they equal, if they are the same; refuse a different order."""
    places = {_comparable(name): at for at, name in enumerate(names)}
    wanted = [_comparable(name) for name in classes]
    if len(places) == len(classes) and set(places) == set(wanted):
        return tuple(names[places[name]] for name in wanted)
    elsewhere = [at for at, name in enumerate(wanted) if places.get(name, at) != at]
    if elsewhere:
        at = elsewhere[0]
        raise DataError(
            f"{title}: '{classes[at]}' is class {at + 1} of the images, but name"
            f" {places[wanted[at]] + 1} of {len(names)}, and other names are not names of classes;"
            " write the names in the order of the classes, or JSON with a name for each class"
        )
    return names


def _comparable(name: str) -> str:
    return _without_number(name.replace("_", " ").strip()).casefold()


def _without_number(name: str) -> str:
    match = NUMBERED.fullmatch(name)
    return match["name"] if match else name


def _shared(source: str, names: Iterable[str]) -> Names:
    """Note names that several classes share; ImageNet lists in common use have some, so it is not
    an error.
    """
    alike: dict[str, list[str]] = {}
    for name in map(str.strip, names):
        alike.setdefault(name.casefold(), []).append(name)  # CLIP's tokenizer reads no capitals
    shared = [sorted(set(group)) for group in alike.values() if len(group) > 1]
    if not shared:
        return ()
    names_shown = shorten(" or ".join(map(repr, group)) for group in shared)
    return (
        f"{source}: gives several classes the same name {names_shown}; a model always predicts the"
        " first of them",
    )


def read_class_names(
    given: Path | Sequence[str], classes: list[str], *, numbered: bool = False
) -> Names:
    """Read class names, in order or by class, or take those that were given."""
    return _checked_names(_title(given), _read_names(given), classes, numbered=numbered)


def listed_names(given: Path | Sequence[str]) -> Names:
    """Class names in the order in which they are given, of images that have no labels."""
    data = _read_names(given)
    names = list(data.values()) if isinstance(data, dict) else data
    return _checked_names(_title(given), names, list(map(str, range(len(names)))), numbered=False)


def _read_names(given: Path | Sequence[str]) -> list[Any] | Json:
    """Names in order, or by class."""
    if not isinstance(given, Path):
        return list(given)
    with refusing(DataError, f"{given}: cannot be read as class names"):
        # editors on Windows put a byte order mark in front
        text = read_text(given, encoding="utf-8-sig")
        if given.suffix != ".json":
            return plain_names([line.strip() for line in text.splitlines() if line.strip()])
        data = parse_json(text)
        return data if isinstance(data, list | dict) else []


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


def _checked_names(
    title: str, data: list[Any] | Json, classes: list[str], *, numbered: bool
) -> Names:
    """One name per class; where classes are numbers there may be more names than classes."""
    if isinstance(data, dict):
        if missing := [name for name in classes if name not in data]:
            raise DataError(
                f"{title}: has no name for {counted(len(missing), 'class', 'classes')}:"
                f" {shorten(missing)}"
            )
        data = [data[name] for name in classes]
    if numbered and 0 < len(data) < len(classes):
        raise DataError(
            f"{title}: label {len(classes) - 1} has no name, it has {len(data)}; give one name per"
            " class, or name the column of the labels with `label_column`"
        )
    if len(data) < len(classes) or (len(data) > len(classes) and not numbered):
        raise DataError(
            f"{title}: has {len(data)} class names, there are {len(classes)} classes; give one name"
            " per class"
        )
    for name in data:
        if not (isinstance(name, str) and name.strip() and is_utf8(name)):
            raise DataError(
                f"{title}: {json.dumps(name)[:60]} is not a class name; write a text for each class"
            )
    return tuple(data)


def _title(given: Path | Sequence[str]) -> str:
    return str(given) if isinstance(given, Path) else "the class names given"


DEFAULT_TEMPLATE = "a photo of a {}."


_SETS = Path(__file__).parent / "templates"


def template_sets() -> dict[str, str]:
    """What is said of each template set, by name: one text file per set, ``#`` in front of
    comments.
    """
    files = sorted(_SETS.glob("*.txt"))
    return {
        file.stem: file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        for file in files
    }


def template_set(name: str) -> Names:
    """Templates of a set."""
    lines = (_SETS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if not line.startswith("#"))


def check_templates(templates: Sequence[str]) -> Names:
    """Check the prompt templates that the user named, and spell out sets of templates."""
    checked: list[str] = []
    for given in templates:
        template = given.replace("{c}", "{}")
        names = {} if "{}" in template else template_sets()
        if not is_utf8(given):
            raise UsageError(
                f"`template` {given!a}: is not UTF-8, which tokenizers need; write it in UTF-8"
            )
        if "{}" not in template and given not in names:
            raise UsageError(
                f"`template` '{given}': has no {{}} for the class name, as in '{DEFAULT_TEMPLATE}',"
                f" and is not a template set ({', '.join(names)}).{did_you_mean(given, names)}"
            )
        checked += [template] if "{}" in template else template_set(given)
    return tuple(checked)


def templates_for(given: Sequence[str], own: Sequence[str]) -> Names:
    """Choose the templates for a source."""
    return tuple(given) or tuple(own) or (DEFAULT_TEMPLATE,)


def own_templates(given: Sequence[str], sources: Mapping[str, Any]) -> dict[str, list[str]]:
    """The templates of the sources that are evaluated with their own; for records."""
    return (
        {}
        if given
        else {name: list(images.templates) for name, images in sources.items() if images.templates}
    )


def class_prompts(class_names: Names, templates: Names) -> list[str]:
    """Write the prompts, class by class: entry ``c * len(templates) + t``."""
    if len(class_names) * len(templates) > MAX_PROMPTS:
        raise DataError(
            f"{len(class_names)} classes in {len(templates)} templates make more than"
            f" {MAX_PROMPTS} prompts; give fewer with `template`"
        )
    name = max(class_names, key=len, default="")
    for template in templates:
        if len(template) + template.count("{}") * len(name) > MAX_PROMPT_LENGTH:
            raise DataError(
                f"the prompt of '{name[:40]}' in '{template[:40]}' is longer than"
                f" {MAX_PROMPT_LENGTH} characters; give another `template`, or other names with"
                " `classes`"
            )
    return [template.replace("{}", name) for name in class_names for template in templates]
