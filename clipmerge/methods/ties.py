"""TIES: trim each task vector, elect one sign per entry, and average the values that have it."""

from __future__ import annotations

from clipmerge.methods import Decision, Task
from clipmerge.plugins import Alpha, Density


def ties(task: Task, *, alpha: Alpha = 1.0, density: Density = 0.2) -> Decision:
    """Mask each task vector with ``magnitude``, and average the entries whose signs agree.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        alpha: Factor of the combined task vector.
        density: Share of each parameter's task vector kept, the largest by magnitude.

    Returns:
        One coefficient for every layer, and the mask of the task vectors.

    Source:
        TIES, Yadav et al. 2023, arXiv:2306.01708. Here, each parameter is trimmed by itself.
    """
    task.need_several_finetuned(
        "there is no election of signs, only trimming: use 'breadcrumbs' with method.outliers=0"
    )
    return task.combined(alpha, "magnitude", density, elect_signs=True)
