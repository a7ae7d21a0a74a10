"""The JSON of merges, evaluations and sweeps, as models."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from clipmerge.output.record import DataSource, MergeRecord, Published
from clipmerge.planning.finding import Finding
from clipmerge.planning.frozen import Frozen
from clipmerge.planning.merge_effect import DifferenceOfShares, ShareOfImages
from clipmerge.planning.other_tasks import OtherTask, Recall, Score
from clipmerge.planning.provenance import CalibrationRecord, SourceRecord


class PrintedRecord(MergeRecord):
    """What `merge`, `plan`, `apply` and `report` print: the record, and the place that the output
    was pushed to.
    """

    published: Published | None = None


class ScoredTask(OtherTask):
    """A task, and the score of one model."""

    score: Score


class EvaluationRecord(Frozen):
    """What `evaluate` prints: accuracies from 0 to 1 by name of the images, for images with
    captions recalls.
    """

    checkpoint: SourceRecord
    accuracy: dict[str, ShareOfImages]
    images: dict[str, int]
    sources: dict[str, DataSource]
    templates: tuple[str, ...]
    source_templates: dict[str, tuple[str, ...]]
    recall: dict[str, Recall] = Field(default_factory=dict)
    captions: dict[str, int] = Field(default_factory=dict)
    other_tasks: tuple[ScoredTask, ...] = ()
    warnings: tuple[Finding, ...] = ()


class SweepPoint(Frozen):
    """The numbers of one point: accuracies by source and their means, the gain at equal ID
    accuracy, other tasks.

    ``exceeds_max_loss`` says whether it has lost more ID accuracy than ``--max-loss`` allows;
    ``None`` if the curve lacks alpha 1.
    """

    alpha: float | None
    accuracy: dict[str, ShareOfImages]
    id: ShareOfImages
    id_interval: tuple[float, float]
    ood: ShareOfImages | None
    ood_interval: tuple[float, float] | None
    gain: DifferenceOfShares | None
    gain_interval: tuple[float, float] | None
    gain_note: Finding | None
    exceeds_max_loss: bool | None = None
    other_tasks: dict[str, Score] = Field(default_factory=dict)


class RecipePoint(SweepPoint):
    """A recipe: its row in ``correct.safetensors``, its plan's decision, and the images that it
    measured on.
    """

    name: str
    point: int
    decision: Finding
    calibration: CalibrationRecord | None
    recipe: dict[str, Any]


class PlacedPoint(SweepPoint):
    """A checkpoint that is shown beside the curve as it is."""

    name: str
    point: int
    checkpoint: SourceRecord


class Bootstrap(Frozen):
    """How intervals are drawn: the number of resamples, and the share of intervals that hold the
    true value.
    """

    resamples: int
    level: float


class SweepRecord(Frozen):
    """What `sweep` prints and writes as ``sweep.json``."""

    format: Literal["clipmerge-sweep/3"]
    clipmerge: str
    output: str | None
    command: str
    id: tuple[str, ...]
    ood: tuple[str, ...]
    calibration_source: str | None
    templates: tuple[str, ...]
    source_templates: dict[str, tuple[str, ...]]
    ood_checked: bool
    seed: int
    bootstrap: Bootstrap
    warnings: tuple[Finding, ...]
    curve: tuple[SweepPoint, ...]
    recipes: tuple[RecipePoint, ...]
    points: tuple[PlacedPoint, ...] = ()
    other_tasks: tuple[OtherTask, ...] = ()
    seconds: dict[str, float]
    headline: str
    zeroshot: SourceRecord
    finetuned: tuple[SourceRecord, ...]
    sources: dict[str, str]
    images: dict[str, int]
    revisions: dict[str, str]


class DemoRecord(Frozen):
    """What `demo` prints: the models' folders, their accuracies by name of the images, and what
    `auto` kept and got back.
    """

    folder: str
    models: dict[str, str]
    accuracy: dict[str, dict[str, ShareOfImages]]
    headline: str
    report: str
    command: str
