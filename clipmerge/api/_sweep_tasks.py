"""Scores of a sweep's points on tasks that the model was not fine-tuned for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from clipmerge.api._merge_effect import settings_for
from clipmerge.checkpoint import Inputs
from clipmerge.evaluation.points import Point
from clipmerge.progress import Progress
from clipmerge.request import SweepRequest

if TYPE_CHECKING:
    from clipmerge.evaluation.other_tasks import Task


def score_other_tasks(
    request: SweepRequest,
    record: dict[str, Any],
    inputs: Inputs,
    points: Sequence[Point],
    tasks: dict[str, Task],
    progress: Progress,
) -> None:
    """Score every point on every task, and enter the scores.

    Args:
        request: The request.
        record: The record. It gets ``kept``, a description of each task; each of its points gets ``kept``, scores by
            task.
        inputs: The checkpoints.
        points: The distinct points.
        tasks: The tasks by name.
        progress: Receiver of progress reports.

    Raises:
        DataError: If images cannot be used.
        CheckpointError: If a point cannot be evaluated.
    """
    if not tasks:
        return
    from clipmerge.evaluation.other_tasks import facts_of, score_tasks

    progress.stage("kept")
    moves = [point.move for point in points]
    settings = replace(settings_for(request.calibration, request.dtype), templates=())  # a task has its own
    scores = score_tasks(inputs, moves, tasks, settings, progress)
    record["kept"] = [facts_of(name, task) for name, task in tasks.items()]
    for number, row in enumerate(record["curve"]):
        row["kept"] = _at(scores, number)
    for row in (*record["recipes"], *record.get("points", [])):
        row["kept"] = _at(scores, row["point"])


def _at(scores: dict[str, Any], point: int) -> dict[str, Any]:
    return {name: by_point[point].model_dump(mode="json", exclude_none=True) for name, by_point in scores.items()}
