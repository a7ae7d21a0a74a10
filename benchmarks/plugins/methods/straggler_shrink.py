"""Hold straggler layers back only by their coefficient."""

from __future__ import annotations

from typing import Any

from clipmerge.methods import Decision, Task
from clipmerge.methods.straggler_outlier import straggler_outlier
from clipmerge.plugins import options_of


@options_of(straggler_outlier, without=("density", "mask", "mask_options"))
def straggler_shrink(task: Task, **options: Any) -> Decision:
    """Merge with one alpha, and a smaller one in straggler layers; the control for
    ``straggler-outlier``.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        **options: See `straggler-outlier`.

    Returns:
        Two coefficients; one if no straggler is found.

    Source:
        Inspired by Abdollahpoorrostam 2024, arXiv:2410.16476; the definitions are ours.
    """
    return straggler_outlier(task, mask=None, **options)
