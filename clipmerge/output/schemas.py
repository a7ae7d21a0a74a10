"""The JSON that commands print and write, as models; `scripts/schemas` writes their JSON Schemas."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from clipmerge.checkpoint.ancestry import Ancestry
from clipmerge.planning.frozen import Frozen
from clipmerge.planning.provenance import SourceRecord


class Origin(Frozen):
    """A checkpoint that is inspected, and the names of its weight files."""

    source: str
    revision: str | None
    files: tuple[str, ...]


class InspectedLayer(Frozen):
    """A layer: its number of tensors and of entries, its shapes, and how far fine-tuning moved it."""

    parameters: int
    size: int
    shapes: dict[str, tuple[int, ...]]
    change: float | None = None


class InspectedTotal(Frozen):
    """Tensors, entries, bytes and dtypes of the zero-shot checkpoint."""

    parameters: int
    size: int
    bytes: int
    dtypes: tuple[str, ...]


class Inspection(Frozen):
    """What `inspect` prints."""

    family: str
    zeroshot: Origin
    finetuned: Origin | None
    layers: dict[str, InspectedLayer]
    mismatches: tuple[str, ...]
    ancestry: Ancestry | None
    total: InspectedTotal


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
    """What `data` prints: titles of data sets, names of lists of classes, and what sets of templates are for."""

    data: dict[str, str]
    classes: tuple[str, ...]
    templates: dict[str, str]


class DataSet(Frozen):
    """What `data show` prints of a data set; class names and templates are empty where only its repository has them."""

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


class SuiteAbout(Frozen):
    """What a suite is, and the model that it evaluates."""

    title: str
    model: str


class SuiteList(Frozen):
    """What `bench list` prints: the suites by name."""

    suites: dict[str, SuiteAbout]


class Download(Frozen):
    """A checkpoint or split: its size in bytes at most, its number of images, or why the size is unknown."""

    what: str
    bytes: int | None = None
    cached: bool = False
    images: int | None = None
    problem: str | None = None


class BenchCost(Frozen):
    """What `bench --dry-run` prints; ``None`` is not known. Recipes that learn take longer than ``seconds``."""

    suite: str
    title: str
    notes: tuple[str, ...]
    downloads: tuple[Download, ...]
    bytes: int | None
    forward_passes: int | None
    flops_per_second: float
    seconds: float | None


#: Models by name of the schema, without those of `results`.
LIGHT: dict[str, type[BaseModel]] = {
    "bench-cost": BenchCost,
    "bench-list": SuiteList,
    "inspect": Inspection,
    "convert": ConversionRecord,
    "data-list": DataList,
    "data-set": DataSet,
    "templates": TemplateSet,
    "recipe-list": RecipeList,
    "env": Environment,
}


def model_of(kind: str) -> type[BaseModel]:
    """The model of a schema; those of `results` are imported if they are needed, which takes 30 ms."""
    if kind in LIGHT:
        return LIGHT[kind]
    from clipmerge.output.results import RESULTS

    return RESULTS[kind]


def json_text(kind: str, record: Mapping[str, Any]) -> str:
    """Write a record as JSON through the model of its schema, which refuses what the schema does not name."""
    data = model_of(kind).model_validate(record).model_dump(mode="json", by_alias=True, exclude_unset=True)
    return json.dumps(data, indent=2, allow_nan=False) + "\n"
