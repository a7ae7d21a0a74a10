"""Public data sets by a short name: their sources, class names and prompt templates.

Each family of sets is one file in ``sets/``, each list of class names one file in ``classes/``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import yaml

from clipmerge.files.paths import local_path
from clipmerge.images.prompts import check_templates
from clipmerge.images.source import Opened
from clipmerge.types import Names, Shape

_HERE = Path(__file__).parent
_NAMED = re.compile(r"(?P<name>[a-z0-9][a-z0-9-]*)(?P<revision>@[^:\s@]+)?(?::(?P<split>[^:\s]+))?")
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
        templates: The set of templates, or templates; empty if only the repository has them.
        rows: For each class its index, or indices, among ImageNet's 1000; ``all`` for all of them
            in order.
    """

    title: str
    source: str
    split: str = "test"
    texts: Literal["repository", "here"] = "repository"
    classes: str = ""
    templates: str | Names = ()
    rows: Literal["all"] | tuple[int | Shape, ...] = ()

    @property
    def class_names(self) -> Names:
        """Class names, if they are known without the repository."""
        if self.classes:
            return class_list(self.classes)
        return tuple(class_list("imagenet")[rows[0]] for rows in self.imagenet_rows)

    @property
    def prompts(self) -> Names:
        """Templates, if they are known without the repository."""
        if isinstance(self.templates, str):
            return check_templates([self.templates])
        return check_templates(self.templates)

    @property
    def imagenet_rows(self) -> tuple[Shape, ...]:
        """For each class its rows in a head of ImageNet's 1000 classes; empty if it has none."""
        rows = range(IMAGENET_CLASSES) if self.rows == "all" else self.rows
        return tuple((row,) if isinstance(row, int) else tuple(row) for row in rows)

    def describe(self, opened: Opened) -> Opened:
        """Replace the opened set's class names and templates by those known here, if these are
        used.
        """
        has_names = opened.verbatim and opened.class_names is not None
        if self.texts == "repository" and (has_names or not self.class_names):
            return opened
        return replace(
            opened,
            class_names=self.class_names,
            verbatim=True,
            templates=self.prompts,
        )


def find_known(source: str) -> tuple[KnownSet | None, str]:
    """Read ``NAME[@REVISION][:SPLIT]``: the public set of that name and its source on the Hub, or
    no set and the source as it is.
    """
    match = _NAMED.fullmatch(source)
    known = known_sets().get(match["name"]) if match else None
    if match is None or known is None or local_path(source).exists():
        return None, source
    return known, f"{known.source}{match['revision'] or ''}:{match['split'] or known.split}"


@functools.cache
def known_sets() -> Mapping[str, KnownSet]:
    """All sets by name, family by family."""
    files = sorted((_HERE / "sets").glob("*.yaml"))
    families = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in files]
    return {name: KnownSet(**data) for family in families for name, data in family.items()}


def class_lists() -> Names:
    """Names of the lists of class names, sorted."""
    return tuple(sorted(file.stem for file in (_HERE / "classes").glob("*.txt")))


@functools.cache
def class_list(name: str) -> Names:
    """Class names by the name of their list."""
    return tuple((_HERE / "classes" / f"{name}.txt").read_text(encoding="utf-8").splitlines())


def imagenet_names(ids: Names) -> Names | None:
    """ImageNet's names for WordNet ids; ``None`` if not all of them are ids of its classes."""
    # the file lists the ids in the classes' order
    listed = (_HERE / "imagenet_ids.txt").read_text(encoding="utf-8").split()
    by_id = dict(zip(listed, class_list("imagenet"), strict=True))
    return tuple(by_id[name] for name in ids) if ids and set(ids) <= set(by_id) else None
