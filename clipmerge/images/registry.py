"""Public data sets by short name, and the lists of class names and templates that come with
clipmerge.

``sets/`` has one file per family of data sets, ``classes/`` one per list of class names, and
``templates/`` one per set of templates.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from clipmerge.errors import UsageError, did_you_mean
from clipmerge.files import local_path
from clipmerge.images.image_set import OpenedSource
from clipmerge.types import Names, Shape

_HERE = Path(__file__).parent
_NAMED = re.compile(r"(?P<name>[a-z0-9][a-z0-9-]*)(?P<revision>@[^:\s@]+)?(?::(?P<split>[^:\s]+))?")
#: The template if neither the user nor the source has one.
DEFAULT_TEMPLATE = "a photo of a {}."
#: Number of ImageNet's classes, to whose indices `PublicSet.rows` refers.
IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class PublicSet:
    """A public data set.

    Attributes:
        title: A short description.
        source: Its address, ``hf://datasets/ORG/NAME``.
        split: The default split, or ``CONFIG/SPLIT``.
        classes: The list of class names in ``classes/``, if there is one.
        templates: Templates or names of template sets; empty if only the repository has them.
        rows: Each class's number or numbers among ImageNet's 1000 classes. With ImageNet's own
            classes, this is empty.
    """

    title: str
    source: str
    split: str = "test"
    classes: str = ""
    templates: Names = ()
    rows: tuple[int | Shape, ...] = ()

    @property
    def imagenet_rows(self) -> tuple[Shape, ...]:
        """Each class's rows in a head for ImageNet's 1000 classes; empty if unknown."""
        rows = range(IMAGENET_CLASSES) if self.classes == "imagenet" else self.rows
        return tuple((row,) if isinstance(row, int) else tuple(row) for row in rows)

    @property
    def class_names(self) -> Names:
        """The class names; empty if the set has neither a list nor rows."""
        if self.classes:
            return class_list(self.classes)
        names = class_list("imagenet")
        return tuple(names[rows[0]] for rows in self.imagenet_rows)

    def describe(self, opened: OpenedSource) -> OpenedSource:
        """Add class names and templates to an opened set, unless its repository has its own, as
        CLIP_benchmark's have.
        """
        names = self.class_names
        if not names or (opened.verbatim and opened.class_names is not None):
            return opened
        templates = check_templates(self.templates)
        return replace(opened, class_names=names, verbatim=True, templates=templates)


def find_public_set(source: str) -> tuple[PublicSet | None, str]:
    """Find the public set that ``NAME[@REVISION][:SPLIT]`` names. Return the set and its source on
    the Hub, or ``None`` and the unchanged source.
    """
    match = _NAMED.fullmatch(source)
    if match is None or local_path(source).exists():
        return None, source
    known = public_sets().get(match["name"])
    if known is None:
        return None, source
    revision = match["revision"] or ""
    split = match["split"] or known.split
    return known, f"{known.source}{revision}:{split}"


@functools.cache
def public_sets() -> Mapping[str, PublicSet]:
    """Read the entries of all public sets, by name."""
    sets: dict[str, PublicSet] = {}
    for file in sorted((_HERE / "sets").glob("*.yaml")):
        family = yaml.safe_load(file.read_text(encoding="utf-8"))
        sets |= {name: PublicSet(**data) for name, data in family.items()}
    return sets


def class_lists() -> Names:
    """List the names of the lists of class names, sorted."""
    return _list_names("classes")


@functools.cache
def class_list(name: str) -> Names:
    """Read a list of class names."""
    return _read_lines(f"classes/{name}.txt")


def imagenet_names(ids: Names) -> Names | None:
    """Return ImageNet's class names for WordNet ids, or ``None`` if some are not ImageNet's."""
    known = _read_lines("imagenet_ids.txt")  # in the order of the classes
    by_id = dict(zip(known, class_list("imagenet"), strict=True))
    return tuple(by_id[name] for name in ids) if set(ids) <= by_id.keys() else None


def check_templates(templates: Sequence[str]) -> Names:
    """Check that templates have a place for the class, and replace names of template sets by their
    templates.
    """
    checked: list[str] = []
    sets = _list_names("templates")
    for text in templates:
        template = text.replace("{c}", "{}")
        if "{}" in template:
            checked.append(template)
        elif text in sets:
            lines = _read_lines(f"templates/{text}.txt")
            checked += [line for line in lines if not line.startswith("#")]
        else:
            raise UsageError(
                f"`template` '{text}': has no {{}} for the class name, as in '{DEFAULT_TEMPLATE}',"
                f" and is not a template set ({', '.join(sets)}).{did_you_mean(text, sets)}"
            )
    return tuple(checked)


def _list_names(folder: str) -> Names:
    """List the files of a folder of this package by name, without suffix."""
    return tuple(sorted(file.stem for file in (_HERE / folder).glob("*.txt")))


def _read_lines(file: str) -> Names:
    """Read a text file of this package."""
    return tuple((_HERE / file).read_text(encoding="utf-8").splitlines())
