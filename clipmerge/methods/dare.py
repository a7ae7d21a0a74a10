"""DARE: drop random entries of each task vector, scale the others up, and add the task vectors."""

from __future__ import annotations

from clipmerge.methods import Decision, Task
from clipmerge.plugins import Alpha, Density


def dare(task: Task, *, alpha: Alpha = 0.3, density: Density = 0.5) -> Decision:
    """Mask each task vector with ``random-rescale`` and its own draws, and add up the results.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        alpha: Factor of the sum.
        density: Probability that an entry is kept.

    Returns:
        One coefficient for every layer, and the mask of the task vectors.

    Source:
        DARE, Yu et al. 2023, arXiv:2311.03099.
    """
    return task.combined(alpha, "random-rescale", density)
