"""The JSON of `convert`, of `env`, and of commands that list or show what there is, as models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from clipmerge.planning.frozen import Frozen
from clipmerge.planning.provenance import SourceRecord


class ConversionRecord(Frozen):
    """What `convert` prints and writes as ``conversion.json``."""

    clipmerge: str
    output: str
    files: dict[str, str | None]
    to: str
    source: SourceRecord
    warnings: tuple[str, ...]
    command: str


class DataList(Frozen):
    """What `data` prints: titles of data sets, names of lists of classes, and what sets of
    templates are for.
    """

    data: dict[str, str]
    classes: tuple[str, ...]
    templates: dict[str, str]


class DataSet(Frozen):
    """What `data show` prints of a data set; class names and templates are empty where only its
    repository has them.
    """

    name: str
    title: str
    source: str
    config: str | None
    split: str
    splits: tuple[str, ...]
    kind: Literal["classification", "retrieval"]
    images: dict[str, int]
    texts: Literal["repository", "here"]
    note: str
    zeroshot: dict[str, float]
    recall: dict[str, dict[str, float]]
    address: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]


class TemplateSet(Frozen):
    """What `data show` prints of a set of templates."""

    name: str
    templates: tuple[str, ...]


class RecipeList(Frozen):
    """What `recipes` prints: by name, what a recipe does, and whether it needs images."""

    recipes: dict[str, str]
    needs_images: dict[str, bool]


class Environment(Frozen):
    """What `env` prints; ``defaults`` are those of flags, set by files and variables here."""

    clipmerge: str
    installed_in: str = Field(alias="installed in")
    python: str
    platform: str
    processors: int | None
    threads: int
    devices: str
    cache: str
    packages: dict[str, str | None]
    environment: dict[str, str]
    defaults: dict[str, str]


class CacheEntry(Frozen):
    """A part of the user's cache: what it holds, and how much."""

    about: str
    files: int
    bytes: int


class Cache(Frozen):
    """What `cache` prints: what is kept, by name, and what `cache clean` removed."""

    folder: str
    entries: dict[str, CacheEntry]
    removed: tuple[str, ...]
