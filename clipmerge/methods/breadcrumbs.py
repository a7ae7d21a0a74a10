"""Model Breadcrumbs: keep the entries of medium magnitude of each task vector, and add the task
vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clipmerge.files.safetensors import Array
from clipmerge.merging import weighted_sum
from clipmerge.merging.selection import keep_top_k, zero_others
from clipmerge.methods import Decision, Task
from clipmerge.plugins import Alpha, Density, Share, with_options_of


def combine(
    task_vectors: Array,
    weights: Sequence[float],
    *,
    sparsify: bool = True,
    density: Density = 0.15,
    outliers: Share = 0.01,
) -> Array:
    """Drop the largest entries, keep the next largest, drop the rest.

    Args:
        task_vectors: (checkpoints, ...).
        weights: Factor of each checkpoint.
        sparsify: Whether entries may be dropped; otherwise all are combined.
        density: Share of each parameter's task vector kept; at least one entry is kept.
        outliers: Share of the largest entries dropped; 0 only trims small entries.

    Returns:
        (...).

    Example:
        >>> import numpy as np
        >>> combine(np.array([[9.0, 1.0, 4.0, 2.0]]), (1.0,), density=0.5, outliers=0.25)
        array([0., 0., 4., 2.])
    """
    if not sparsify:
        return weighted_sum(task_vectors, weights)
    size = task_vectors[0].size
    dropped = min(round(outliers * size), size - 1)
    count = max(1, round(density * size))
    for task_vector in task_vectors:
        is_outlier = keep_top_k(task_vector, dropped)
        zero_others(task_vector, keep_top_k(task_vector, dropped + count) & ~is_outlier)
    return weighted_sum(task_vectors, weights)


@with_options_of(combine, without=("sparsify",))
def breadcrumbs(task: Task, *, alpha: Alpha = 0.3, **options: Any) -> Decision:
    """Combine task vectors by Model Breadcrumbs, which drops the largest outliers and the small
    entries.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        alpha: Factor of the combined task vector.
        **options: See `combine`.

    Returns:
        One coefficient for every layer, and the combination.

    Source:
        Model Breadcrumbs, Davari and Belilovsky 2023, arXiv:2312.06795; sorted per parameter.
    """
    return task.combined(alpha, "breadcrumbs", options)
