"""Model Breadcrumbs: keep the entries of medium magnitude of each task vector, and add the task
vectors.
"""

from __future__ import annotations

from clipmerge.methods import Decision, Task
from clipmerge.plugins import Alpha, Density, Share


def breadcrumbs(
    task: Task, *, alpha: Alpha = 0.3, density: Density = 0.15, outliers: Share = 0.01
) -> Decision:
    """Add the task vectors, each under the ``breadcrumbs`` mask.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        alpha: Factor of the sum.
        density: Share of each parameter's task vector kept; at least one entry is kept.
        outliers: Share of the largest entries dropped; 0 drops small entries alone.

    Returns:
        One coefficient for every layer, and the combination.

    Source:
        Model Breadcrumbs, Davari and Belilovsky 2023, arXiv:2312.06795; sorted per parameter.
    """
    return task.combined(alpha, "breadcrumbs", density, {"outliers": outliers})
