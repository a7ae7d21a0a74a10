"""What comes with clipmerge: public data sets by a short name, and lists of class names and of
prompt templates.

Each family of sets is one file in ``sets/``, each list of class names one file in ``classes/``,
each set of templates one file in ``templates/``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import yaml

from clipmerge.errors import UsageError, did_you_mean
from clipmerge.files import local_path
from clipmerge.images.image_set import OpenedSource
from clipmerge.types import Names, Shape

_HERE = Path(__file__).parent
_NAMED = re.compile(r"(?P<name>[a-z0-9][a-z0-9-]*)(?P<revision>@[^:\s@]+)?(?::(?P<split>[^:\s]+))?")
#: The template of sources that have none, if the user names none.
DEFAULT_TEMPLATE = "a photo of a {}."
#: Classes of ImageNet, whose indices are used in `KnownSet.rows`.
IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class KnownSet:
    """A public data set.

    Attributes:
        title: A few words about it.
        source: ``hf://datasets/ORG/NAME``.
        split: The split that is read if none is named, or ``CONFIG/SPLIT``.
        texts: Where class names and templates come from: ``repository``, or only ``here``.
        classes: The list of class names in ``classes/``, if there is one.
        templates: Templates, or names of sets of them; empty if only the repository has them.
        rows: For each class its index, or indices, among ImageNet's 1000; ``all`` for all of them
            in order.
    """

    title: str
    source: str
    split: str = "test"
    texts: Literal["repository", "here"] = "repository"
    classes: str = ""
    templates: Names = ()
    rows: Literal["all"] | tuple[int | Shape, ...] = ()

    @property
    def class_names(self) -> Names:
        """Class names, if they are known without the repository."""
        if self.classes:
            return class_list(self.classes)
        names = class_list("imagenet")
        return tuple(names[rows[0]] for rows in self.imagenet_rows)

    @property
    def prompts(self) -> Names:
        """Templates, if they are known without the repository."""
        return check_templates(self.templates)

    @property
    def imagenet_rows(self) -> tuple[Shape, ...]:
        """For each class its rows in a head of ImageNet's 1000 classes; empty if it has none."""
        if self.rows == "all":
            return tuple((row,) for row in range(IMAGENET_CLASSES))
        return tuple((row,) if isinstance(row, int) else tuple(row) for row in self.rows)

    def describe(self, opened: OpenedSource) -> OpenedSource:
        """Replace the opened set's class names and templates by those known here, if these are
        used.
        """
        has_names = opened.verbatim and opened.class_names is not None
        if self.texts == "repository" and (has_names or not self.class_names):
            return opened
        return replace(opened, class_names=self.class_names, verbatim=True, templates=self.prompts)


def find_known(source: str) -> tuple[KnownSet | None, str]:
    """Read ``NAME[@REVISION][:SPLIT]``: the public set of that name and its source on the Hub, or
    no set and the source as it is.
    """
    match = _NAMED.fullmatch(source)
    if match is None or local_path(source).exists():
        return None, source
    known = known_sets().get(match["name"])
    if known is None:
        return None, source
    revision = match["revision"] or ""
    split = match["split"] or known.split
    return known, f"{known.source}{revision}:{split}"


@functools.cache
def known_sets() -> Mapping[str, KnownSet]:
    """All sets by name, family by family."""
    sets: dict[str, KnownSet] = {}
    for file in sorted((_HERE / "sets").glob("*.yaml")):
        family = yaml.safe_load(file.read_text(encoding="utf-8"))
        sets |= {name: KnownSet(**data) for name, data in family.items()}
    return sets


def class_lists() -> Names:
    """Names of the lists of class names, sorted."""
    return _list_names("classes")


@functools.cache
def class_list(name: str) -> Names:
    """Class names by the name of their list."""
    return _read_lines(f"classes/{name}.txt")


def imagenet_names(ids: Names) -> Names | None:
    """ImageNet's names for WordNet ids; ``None`` if not all of them are ids of its classes."""
    known = _read_lines("imagenet_ids.txt")  # in the order of the classes
    by_id = dict(zip(known, class_list("imagenet"), strict=True))
    if set(ids) <= by_id.keys():
        return tuple(by_id[name] for name in ids)
    return None


def template_set(name: str) -> Names:
    """Templates of a set, without the comments after ``#``."""
    lines = _read_lines(f"templates/{name}.txt")
    return tuple(line for line in lines if not line.startswith("#"))


def check_templates(templates: Sequence[str]) -> Names:
    """Check the prompt templates that the user named, and spell out sets of templates."""
    checked: list[str] = []
    sets = _list_names("templates")
    for text in templates:
        template = text.replace("{c}", "{}")
        if "{}" in template:
            checked.append(template)
        elif text in sets:
            checked += template_set(text)
        else:
            raise UsageError(
                f"`template` '{text}': has no {{}} for the class name, as in '{DEFAULT_TEMPLATE}',"
                f" and is not a template set ({', '.join(sets)}).{did_you_mean(text, sets)}"
            )
    return tuple(checked)


def _list_names(folder: str) -> Names:
    return tuple(sorted(file.stem for file in (_HERE / folder).glob("*.txt")))


def _read_lines(file: str) -> Names:
    return tuple((_HERE / file).read_text(encoding="utf-8").splitlines())
