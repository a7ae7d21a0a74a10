"""Class names: the source's own, or read from a file, and checked."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from clipmerge.errors import DataError, counted, is_utf8, shorten
from clipmerge.files.reading import parse_json, read_text, refusing
from clipmerge.images.store import Labelled

#: A file with class names, the names in the order of the classes, or ``None`` for the source's own.
ClassNames: TypeAlias = Path | Sequence[str] | None

_WORDNET = re.compile(r"n\d{8}")


def names_of(
    source: str, opened: Labelled, classes: ClassNames
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """One name per class, given or the source's own with spaces for underscores; and notes for the
    user.
    """
    if classes is not None:
        names = read_class_names(classes, list(opened.classes), numbered=not opened.named)
        return names, _shared(_title(classes), names)
    if not opened.named:
        beyond = len(opened.classes) > len(opened.labels)
        ids = (
            "; if they are ids, name the column of the labels with --label-column" if beyond else ""
        )
        raise DataError(
            f"{source}: its labels are the numbers 0 to {len(opened.classes) - 1} without names;"
            f" pass a file with the names with --classes, one per line{ids}"
        )
    names = tuple(name if opened.verbatim else name.replace("_", " ") for name in opened.classes)
    for name in names:
        if not is_utf8(name):
            raise DataError(
                f"{source}: class {name!a} has a name that is not UTF-8; rename it, or pass names"
                " with --classes"
            )
    notes = _shared(source, names)
    if all(_WORDNET.fullmatch(name) for name in opened.classes):
        notes += (
            (
                f"{source}: the classes are WordNet ids, which CLIP does not know; pass their names"
                " with --classes"
            ),
        )
    return names, notes


def _shared(source: str, names: Iterable[str]) -> tuple[str, ...]:
    """Note names that several classes share; ImageNet lists in common use have some, so it is not
    an error.
    """
    shared = [name for name, count in Counter(name.strip() for name in names).items() if count > 1]
    if not shared:
        return ()
    names_shown = shorten(map(repr, shared))
    return (
        (
            f"{source}: gives several classes the same name {names_shown}; a model always predicts"
            " the first of them"
        ),
    )


def read_class_names(
    given: Path | Sequence[str], classes: list[str], *, numbered: bool = False
) -> tuple[str, ...]:
    """Read class names, in order or by class, or take those that were given."""
    path = _title(given)
    data: Any = list(given) if not isinstance(given, Path) else None
    if isinstance(given, Path):
        with refusing(DataError, f"{path}: cannot be read as class names"):
            text = read_text(
                given, encoding="utf-8-sig"
            )  # editors on Windows put a byte order mark in front
            lines = (line.strip() for line in text.splitlines())
            data = parse_json(text) if given.suffix == ".json" else list(filter(None, lines))
    if isinstance(data, dict):
        if missing := [name for name in classes if name not in data]:
            raise DataError(
                f"{path}: has no name for {counted(len(missing), 'class', 'classes')}:"
                f" {shorten(missing)}"
            )
        data = [data[name] for name in classes]
    names: list[Any] = data if isinstance(data, list) else []
    if numbered and 0 < len(names) < len(classes):
        raise DataError(
            f"{path}: label {len(classes) - 1} has no name, it has {len(names)}; give one name per"
            " class, or name the column of the labels with --label-column"
        )
    if len(names) < len(classes) or (len(names) > len(classes) and not numbered):
        raise DataError(
            f"{path}: has {len(names)} class names, there are {len(classes)} classes; give one name"
            " per class"
        )
    for name in names:
        if not (isinstance(name, str) and name.strip() and is_utf8(name)):
            raise DataError(
                f"{path}: {json.dumps(name)[:60]} is not a class name; write a text for each class"
            )
    return tuple(names)


def _title(given: Path | Sequence[str]) -> str:
    return str(given) if isinstance(given, Path) else "the class names given"
