"""The section of a sweep's page that shows tasks that the model was not fine-tuned for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clipmerge.planning.other_tasks import Score, measures_of
from clipmerge.report.sweep_table import heads_of


def sweep_other_tasks_section(record: dict[str, Any]) -> dict[str, Any]:
    """Values of the template ``sweep_kept``: one column per number, one row per point.

    Args:
        record: Result of `clipmerge.api.sweep.sweep`.
    """
    tasks = [task["name"] for task in record.get("kept", [])]
    points = [*record["curve"], *record["recipes"], *record.get("points", [])]
    cells = [_numbers(point.get("kept", {}), tasks) for point in points]
    return {
        "kept_columns": list(cells[0]) if tasks else [],
        "kept_rows": [
            {"head": head, "is_mark": is_mark, "cells": [f"{100 * value:.1f}" for value in row.values()]}
            for (head, is_mark), row in zip(heads_of(record), cells, strict=True)
        ],
    }


def _numbers(scores: dict[str, Any], tasks: Sequence[str]) -> dict[str, float]:
    return {
        f"{task}: {measure}": value
        for task in tasks
        for measure, value in measures_of(Score.model_validate(scores[task])).items()
    }
