"""Class names, prompt templates, and the class prompts written from them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from clipmerge.errors import DataError, UsageError, counted, did_you_mean, is_utf8, shorten
from clipmerge.files.limits import LONGEST_PROMPT, MOST_PROMPTS
from clipmerge.files.reading import parse_json, read_text, refusing
from clipmerge.images.store import OpenedSource

#: A file with class names, the names in the order of the classes, or ``None`` for the source's own.
ClassNames: TypeAlias = Path | Sequence[str] | None

_WORDNET = re.compile(r"n\d{8}")


def names_of(
    source: str, opened: OpenedSource, classes: ClassNames
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
            "; if they are ids, name the column of the labels with `label_column`" if beyond else ""
        )
        raise DataError(
            f"{source}: its labels are the numbers 0 to {len(opened.classes) - 1} without names;"
            f" pass a file with the names with `classes`, one per line{ids}"
        )
    names = tuple(name if opened.verbatim else name.replace("_", " ") for name in opened.classes)
    for name in names:
        if not is_utf8(name):
            raise DataError(
                f"{source}: class {name!a} has a name that is not UTF-8; rename it, or pass names"
                " with `classes`"
            )
    notes = _shared(source, names)
    if all(_WORDNET.fullmatch(name) for name in opened.classes):
        notes += (
            (
                f"{source}: the classes are WordNet ids, which CLIP does not know; pass their names"
                " with `classes`"
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
            " class, or name the column of the labels with `label_column`"
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


def template_set(name: str) -> tuple[str, ...]:
    """Templates of a set."""
    lines = (_SETS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if not line.startswith("#"))


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
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


def templates_for(given: Sequence[str], own: Sequence[str]) -> tuple[str, ...]:
    """Choose the templates for a source."""
    return tuple(given) or tuple(own) or (DEFAULT_TEMPLATE,)


def own_templates(given: Sequence[str], sources: Mapping[str, Any]) -> dict[str, list[str]]:
    """The templates of the sources that are evaluated with their own; for records."""
    return (
        {}
        if given
        else {name: list(images.templates) for name, images in sources.items() if images.templates}
    )


def class_prompts(class_names: tuple[str, ...], templates: tuple[str, ...]) -> list[str]:
    """Write the prompts, class by class: entry ``c * len(templates) + t``."""
    if len(class_names) * len(templates) > MOST_PROMPTS:
        raise DataError(
            f"{len(class_names)} classes in {len(templates)} templates make more than"
            f" {MOST_PROMPTS} prompts; give fewer with `template`"
        )
    name = max(class_names, key=len, default="")
    for template in templates:
        if len(template) + template.count("{}") * len(name) > LONGEST_PROMPT:
            raise DataError(
                f"the prompt of '{name[:40]}' in '{template[:40]}' is longer than {LONGEST_PROMPT}"
                " characters; give another `template`, or other names with `classes`"
            )
    return [template.replace("{}", name) for name in class_names for template in templates]
