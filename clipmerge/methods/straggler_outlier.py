"""Hold outlier layers back with a smaller coefficient and a mask."""

from __future__ import annotations

from typing import Any

from clipmerge.methods import Decision, Task
from clipmerge.methods._hold_back import hold_back
from clipmerge.plugins import options_of


@options_of(hold_back)
def straggler_outlier(task: Task, **options: Any) -> Decision:
    """Merge with one alpha; straggler layers get a smaller alpha and a mask.

    Args:
        task: The checkpoints and the measurements.
        **options: See `clipmerge.methods._hold_back.hold_back`.

    Returns:
        Two kinds of layers; only one kind if no straggler is found.

    Source:
        Inspired by Abdollahpoorrostam 2024, arXiv:2410.16476; the definitions are ours.
    """
    return hold_back(task, "straggler-outlier", **options)
