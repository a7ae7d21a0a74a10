"""Public data sets by a short name: their sources, class names, prompt templates and published
figures.

Each family of sets is one file in ``sets/``, each list of class names one file in ``classes/``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from clipmerge.errors import DataError, UsageError, did_you_mean, shorten
from clipmerge.files.paths import local_path
from clipmerge.images.prompts import check_templates
from clipmerge.images.source import Source
from clipmerge.types import Names, Shape

_HERE = Path(__file__).parent
_NAMED = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9-]*)(?:@(?P<revision>[^:\s@]+))?(?::(?P<split>[^:\s]+))?"
)
#: Classes of ImageNet, whose indices are used in `KnownSet.rows`.
IMAGENET_CLASSES = 1000
_ImagenetIndex = Annotated[int, Field(ge=0, lt=IMAGENET_CLASSES)]


class KnownSet(BaseModel):
    """A public data set.

    Attributes:
        title: A few words about it.
        source: ``hf://datasets/ORG/NAME``.
        config: Configuration on the Hub, if it is not the default one.
        split: The split that is read if none is named.
        splits: All splits.
        kind: Whether its images have classes or captions.
        images: Number of images by split, if known.
        texts: Where class names and templates come from: ``repository``, or only ``here``.
        classes: The list of class names in ``classes/``, if there is one.
        templates: The set of templates, or templates; empty if only the repository has them.
        rows: For each class its indices among ImageNet's 1000; ``all`` for all of them in order.
        note: A convention that users should know.
        zeroshot: Published zero-shot accuracy of OpenAI's CLIP in per cent, by architecture.
        recall: The same for retrieval: recall at 5 in per cent.
    """

    # built on first use, because every start imports this module
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    title: str
    source: str
    config: str | None = None
    split: str = "test"
    splits: Names = ("test",)
    kind: Literal["classification", "retrieval"] = "classification"
    images: Mapping[str, int] = {}
    texts: Literal["repository", "here"] = "repository"
    classes: str | None = None
    templates: str | Names = ()
    rows: Literal["all"] | tuple[_ImagenetIndex | tuple[_ImagenetIndex, ...], ...] = ()
    note: str = ""
    zeroshot: Mapping[str, float] = {}
    recall: Mapping[str, Mapping[str, float]] = {}

    @property
    def class_names(self) -> Names:
        """Class names, if they are known without the repository."""
        if self.classes is not None:
            return class_list(self.classes)
        return tuple(class_list("imagenet")[rows[0]] for rows in self.imagenet_rows)

    @property
    def prompts(self) -> Names:
        """Templates, if they are known without the repository."""
        return check_templates(
            [self.templates] if isinstance(self.templates, str) else self.templates
        )

    @property
    def imagenet_rows(self) -> tuple[Shape, ...]:
        """For each class its rows in a head of ImageNet's 1000 classes; empty if it has none."""
        if self.rows == "all":
            return tuple((row,) for row in range(IMAGENET_CLASSES))
        return tuple((row,) if isinstance(row, int) else row for row in self.rows)

    def address(self, revision: str | None = None, split: str | None = None) -> str:
        """The set as a source: ``hf://datasets/ORG/NAME[@REVISION]:SPLIT``."""
        part = split or self.split
        config = f"{self.config}/" if self.config and "/" not in part else ""
        return f"{self.source}{'@' + revision if revision else ''}:{config}{part}"

    def describe(self, opened: Source) -> Source:
        """Replace the opened set's class names and templates by those known here, if these are
        used.
        """
        has_names = opened.verbatim and opened.class_names is not None
        if self.texts == "repository" and (has_names or not self.class_names):
            return opened
        return replace(opened, class_names=self.class_names, verbatim=True, templates=self.prompts)


@dataclass(frozen=True)
class RegistryRef:
    """A known set named by a source, and the full source."""

    known: KnownSet
    address: str

    def __str__(self) -> str:
        return self.address


def find_known(source: str, *, on_disk: bool = True) -> RegistryRef | None:
    """Read ``NAME[@REVISION][:SPLIT]``."""
    match = _NAMED.fullmatch(source)
    if (
        match is None
        or match["name"] not in known_sets()
        or (on_disk and local_path(source).exists())
    ):
        return None
    known = known_sets()[match["name"]]
    split = match["split"]
    if split is not None and split.rpartition("/")[2] not in known.splits:
        hint = did_you_mean(split, known.splits)
        raise DataError(
            f"{source}: no split '{split}' (splits: {shorten(known.splits, 12)}).{hint}"
        )
    return RegistryRef(known, known.address(match["revision"], split))


@functools.cache
def known_sets() -> dict[str, KnownSet]:
    """All sets by name, family by family."""
    files = sorted((_HERE / "sets").glob("*.yaml"))
    families = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in files]
    return {
        name: KnownSet.model_validate(data) for family in families for name, data in family.items()
    }


def known_set(name: str) -> KnownSet:
    """Find a set by its name."""
    sets = known_sets()
    if name not in sets:
        raise UsageError(
            f"no data set '{name}'; sets: {', '.join(sets)}.{did_you_mean(name, sets)}"
        )
    return sets[name]


def class_lists() -> Names:
    """Names of the lists of class names, sorted."""
    return tuple(sorted(file.stem for file in (_HERE / "classes").glob("*.txt")))


@functools.cache
def class_list(name: str) -> Names:
    """Class names by the name of their list."""
    return tuple((_HERE / "classes" / f"{name}.txt").read_text(encoding="utf-8").splitlines())


def imagenet_names(ids: Names) -> Names | None:
    """ImageNet's names for WordNet ids; ``None`` if not all of them are ids of its classes."""
    rows = _imagenet_rows_by_id()
    if not ids or not rows.keys() >= set(ids):
        return None
    names = class_list("imagenet")
    return tuple(names[rows[wordnet_id]] for wordnet_id in ids)


@functools.cache
def _imagenet_rows_by_id() -> Mapping[str, int]:
    """The index of each class by its WordNet id; the file lists the ids in the classes' order."""
    ids = (_HERE / "imagenet_ids.txt").read_text(encoding="utf-8").split()
    return {wordnet_id: row for row, wordnet_id in enumerate(ids)}
