"""Results of the API: frozen, with a short repr, an HTML table for notebooks, and a pandas
DataFrame on request.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clipmerge.planning.table import Rows, Tabular
from clipmerge.types import Json, Names

if TYPE_CHECKING:
    from clipmerge.config import Recommendation
    from clipmerge.evaluation.tradeoff import Correct
    from clipmerge.output.record import Record
    from clipmerge.planning.plan import Plan
    from clipmerge.planning.verdict import Verdict
    from clipmerge.publish.push import Published


@dataclass(frozen=True, repr=False)
class MergeResult(Tabular):
    """Result of `merge` and `apply`; only the main process of several has more than the plan.

    Attributes:
        path: The folder written; ``None`` if nothing was written.
        plan: The settings of each layer.
        record: The content of ``clipmerge.json``; ``None`` if this process wrote nothing.
        warnings: Warnings, one line each.
        published: The place that the output was pushed to, if it was.
    """

    path: Path | None
    plan: Plan
    record: Record | None
    warnings: Names = ()
    published: Published | None = None

    @property
    def verdict(self) -> Verdict | None:
        """Whether to use the merge, and the accuracies behind it; ``None`` without images."""
        return self.record.verdict if self.record else None

    @property
    def recommendation(self) -> Recommendation | None:
        """The verdict in a word, such as ``use`` or ``too-few-images``."""
        return self.verdict.recommendation if self.verdict else None

    def _rows(self) -> Rows:
        measured = self.record.measurements if self.record else {}
        return [row | measured.get(row["layer"], {}) for row in self.plan._rows()]

    def _caption(self) -> str:
        return self.verdict.sentence if self.verdict else f"{self.path}: {self.plan._caption()}"


@dataclass(frozen=True, repr=False)
class EvaluateResult(Tabular):
    """Result of `evaluate`.

    Attributes:
        accuracy: Share of the images recognised, 0 to 1, by source with classes.
        images: Number of images by source.
        record: The output of ``clipmerge evaluate --json``.
    """

    accuracy: dict[str, float]
    images: dict[str, int]
    record: Json

    @property
    def recall(self) -> dict[str, dict[str, dict[str, float]]]:
        """Recall at K, 0 to 1, by source with captions: ``image_to_text`` and ``text_to_image``, by
        K as text.
        """
        return dict(self.record.get("recall", {}))

    def _rows(self) -> Rows:
        rows: Rows = [
            {"source": name, "images": self.images[name], "accuracy": value}
            for name, value in self.accuracy.items()
        ]
        for name, recall in self.recall.items():
            values = {
                f"{way} R@{rank}": value
                for way, by_rank in recall.items()
                for rank, value in by_rank.items()
            }
            rows.append({"source": name, "images": self.images[name], **values})
        return rows

    def _caption(self) -> str:
        parts = [f"{name} {value:.1%}" for name, value in self.accuracy.items()]
        parts += [f"{name} R@1 {of['image_to_text']['1']:.1%}" for name, of in self.recall.items()]
        return ", ".join(parts)


@dataclass(frozen=True, repr=False)
class SweepResult(Tabular):
    """Result of `sweep`.

    Attributes:
        path: The folder written; ``None`` if nothing was written.
        record: The content of ``sweep.json``.
        correct: Whether each image was recognised, by source: shape (points, images), bool; the
            curve's points first.
        warnings: Warnings, one line each.
    """

    path: Path | None
    record: Json
    correct: dict[str, Correct]
    warnings: Names = ()

    def _rows(self) -> Rows:
        curve = [(f"alpha {row['alpha']:g}", row) for row in self.record["curve"]]
        others = [(row["name"], row) for row in (*self.record["recipes"], *self.record["points"])]
        return [
            {"point": name, **row["accuracy"], **{key: row[key] for key in ("id", "ood", "gain")}}
            for name, row in curve + others
        ]

    def _caption(self) -> str:
        return str(self.record["answer"])


@dataclass(frozen=True, repr=False)
class InspectResult(Tabular):
    """Result of `inspect`.

    Attributes:
        family: Name of the model family.
        layers: Number of tensors, number of entries, shapes and relative change by layer, in
            network order.
        mismatches: Obstacles to a merge, one line each; empty if the checkpoints match.
        record: The output of ``clipmerge inspect --json``.
    """

    family: str
    layers: dict[str, Json]
    mismatches: Names
    record: Json

    def _rows(self) -> Rows:
        keys = ("parameters", "size", "change")
        return [
            {"layer": name, **{key: layer[key] for key in keys if key in layer}}
            for name, layer in self.layers.items()
        ]

    def _caption(self) -> str:
        return f"{self.family}, {len(self.layers)} layers, {len(self.mismatches)} mismatches"
