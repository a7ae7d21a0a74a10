"""Model Breadcrumbs: keep the entries of medium magnitude of each task vector, and add the task
vectors.
"""

from __future__ import annotations

from clipmerge.methods import Decision, Task
from clipmerge.plugins import Alpha, Density, Share


def breadcrumbs(
    task: Task, *, alpha: Alpha = 0.3, density: Density = 0.15, outliers: Share = 0.01
) -> Decision:
    """Mask each task vector with ``breadcrumbs``, and add up the results.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        alpha: Factor of the sum.
        density: Share of each parameter's task vector kept; at least one entry is kept.
        outliers: Share of the entries dropped because they are the largest; 0 drops only small
            entries.

    Returns:
        One coefficient for every layer, and the mask of the task vectors.

    Source:
        Model Breadcrumbs, Davari and Belilovsky 2023, arXiv:2312.06795. Here, entries are sorted
        within each parameter.
    """
    return task.combined(alpha, "breadcrumbs", density, {"outliers": outliers})
