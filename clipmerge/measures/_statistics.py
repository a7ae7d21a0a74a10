"""Statistics of one value per batch and layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from clipmerge.errors import ClipmergeError
from clipmerge.learning.objective import Objective
from clipmerge.planning.measurements import Statistic


def by_layer(objective: Objective, values: dict[int, list[float]]) -> dict[str, tuple[float, ...]]:
    """Gather values per batch from all processes, by layer.

    Args:
        objective: The calibration loss.
        values: One value per layer, in the order of ``objective.path.layers``, by batch number;
            this process's batches.

    Returns:
        One value per batch, by layer, over all processes.
    """
    rows = objective.gather_by_batch(values)
    return {
        layer: tuple(row[column] for row in rows)
        for column, layer in enumerate(objective.path.layers)
    }


def statistic(
    objective: Objective, name: str, batches: Mapping[str, Sequence[float]], **reading: Any
) -> Statistic:
    """Average a statistic over images and attach its interpretation.

    Args:
        objective: The calibration loss that the batches belong to.
        name: Name of the statistic.
        batches: One value per batch, by layer; result of `by_layer`.
        **reading: Fields of `StatisticAbout`: ``signed``, ``unit``, ``title``, ``about``.

    Returns:
        The statistic; the value of each layer is the mean over images.
    """
    return Statistic(
        name=name,
        values={layer: objective.mean(values) for layer, values in batches.items()},
        batches={layer: tuple(values) for layer, values in batches.items()},
        **reading,
    )


def require_finite_loss(loss: float, place: str) -> None:
    """Refuse to go on from a calibration loss that is NaN or infinite."""
    if not math.isfinite(loss):
        raise ClipmergeError(
            f"the calibration loss at {place} is {loss}; check that the checkpoints work"
        )
