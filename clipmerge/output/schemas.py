"""The JSON that commands print and write, as models, and their JSON Schemas, which `scripts/schemas` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field
from pydantic.json_schema import model_json_schema

from clipmerge.checkpoint.ancestry import Ancestry
from clipmerge.output.record import DataSource, MergeRecord, Published
from clipmerge.planning.frozen import Frozen
from clipmerge.planning.merge_effect import DifferenceOfShares, ShareOfImages
from clipmerge.planning.other_tasks import OtherTask, Score
from clipmerge.planning.plan import Plan
from clipmerge.planning.provenance import CalibrationRecord, SourceRecord
from clipmerge.planning.recipe import Recipe

Interval = tuple[float, float]


class PrintedRecord(MergeRecord):
    """What `merge`, `plan`, `apply` and `report` print: the record, and the place that the output was pushed to."""

    published: Published | None = None


class ScoredTask(OtherTask):
    """A task, and the score of one model."""

    score: Score


class EvaluationRecord(Frozen):
    """What `evaluate` prints: accuracies from 0 to 1 by name of the images."""

    checkpoint: SourceRecord
    accuracy: dict[str, ShareOfImages]
    images: dict[str, int]
    sources: dict[str, DataSource]
    templates: tuple[str, ...]
    own_templates: dict[str, tuple[str, ...]]
    kept: tuple[ScoredTask, ...] = ()


class SweepPoint(Frozen):
    """The numbers of one point: accuracies by source and their means, the gain at equal ID accuracy, other tasks.

    ``loses`` says whether it has lost more ID accuracy than ``--max-loss`` allows; ``None`` if the curve lacks alpha 1.
    """

    alpha: float | None
    accuracy: dict[str, ShareOfImages]
    id: ShareOfImages
    id_interval: Interval
    ood: ShareOfImages | None
    ood_interval: Interval | None
    gain: DifferenceOfShares | None
    gain_interval: Interval | None
    gain_note: str
    loses: bool | None = None
    kept: dict[str, Score] = Field(default_factory=dict)


class RecipePoint(SweepPoint):
    """A recipe: its row in ``correct.safetensors``, its plan's verdict, and the images that it measured on."""

    name: str
    point: int
    verdict: str
    calibration: CalibrationRecord | None
    recipe: dict[str, Any]


class PlacedPoint(SweepPoint):
    """A checkpoint that is shown beside the curve as it is."""

    name: str
    point: int
    checkpoint: SourceRecord


class Bootstrap(Frozen):
    """How intervals are drawn: the number of resamples, and the share of intervals that hold the true value."""

    resamples: int
    level: float


class _Sweep(Frozen):
    format: Literal["clipmerge-sweep/2"]
    clipmerge: str
    output: str | None
    command: str
    id: tuple[str, ...]
    ood: tuple[str, ...]
    calibration_source: str | None
    templates: tuple[str, ...]
    own_templates: dict[str, tuple[str, ...]]
    ood_checked: bool
    seed: int
    bootstrap: Bootstrap
    warnings: tuple[str, ...]
    curve: tuple[SweepPoint, ...]
    recipes: tuple[RecipePoint, ...]
    points: tuple[PlacedPoint, ...] = ()
    kept: tuple[OtherTask, ...] = ()
    seconds: dict[str, float]
    headline: str


class SweepRecord(_Sweep):
    """What `sweep` prints and writes as ``sweep.json``."""

    zeroshot: SourceRecord
    finetuned: tuple[SourceRecord, ...]
    sources: dict[str, str]
    images: dict[str, int]
    revisions: dict[str, str]


class BenchCheckpoint(SourceRecord):
    """A checkpoint of a public pair; ``verified`` says whether its hash is published, ``None`` on the Hub."""

    verified: bool | None


class BenchData(DataSource):
    """One set of images, and how many."""

    images: int


class BenchCheck(Frozen):
    """The zero-shot accuracy on one set against the published one, in per cent."""

    source: str
    found: float
    published: float
    allowed: float
    passed: bool


class BenchPair(Frozen):
    """A pair of a suite: its sweep beside the published figures."""

    name: str
    zeroshot: BenchCheckpoint
    finetuned: BenchCheckpoint
    data: dict[str, BenchData]
    checks: tuple[BenchCheck, ...]
    published: tuple[dict[str, Any], ...]
    sweep: _Sweep


class BenchRecord(Frozen):
    """What `bench` prints and writes as ``bench.json``."""

    clipmerge: str
    torch: str
    device: str
    suite: str
    title: str
    model: str
    limit: int | None
    seed: int
    command: str
    notes: tuple[str, ...]
    pairs: tuple[BenchPair, ...]


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


class DemoRecord(Frozen):
    """What `demo` prints: the models' folders, their accuracies by name of the images, and the verdict on `auto`."""

    folder: str
    models: dict[str, str]
    accuracy: dict[str, dict[str, ShareOfImages]]
    verdict: str
    report: str
    command: str


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


#: Models by name of the schema.
SCHEMAS: dict[str, type[BaseModel]] = {
    "record": PrintedRecord,
    "plan": Plan,
    "evaluate": EvaluationRecord,
    "sweep": SweepRecord,
    "bench": BenchRecord,
    "bench-cost": BenchCost,
    "bench-list": SuiteList,
    "inspect": Inspection,
    "convert": ConversionRecord,
    "push": Published,
    "data-list": DataList,
    "data-set": DataSet,
    "templates": TemplateSet,
    "recipe-list": RecipeList,
    "recipe": Recipe,
    "env": Environment,
    "demo": DemoRecord,
}


def json_text(kind: str, record: Mapping[str, Any]) -> str:
    """Write a record as JSON through the model of its schema, which refuses what the schema does not name."""
    model = SCHEMAS[kind].model_validate(record)
    data = model.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def schema_text(name: str) -> str:
    """The JSON Schema of one kind of JSON, as it is published."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model_json_schema(SCHEMAS[name])}
    return json.dumps(schema, indent=1) + "\n"
