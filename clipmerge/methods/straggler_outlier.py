"""Hold outlier layers back: a smaller coefficient, and a mask on what is left of their change."""

from __future__ import annotations

from typing import Any

from clipmerge.methods import Decision, Task
from clipmerge.methods._hold_back import hold_back
from clipmerge.plugins import options_of


@options_of(hold_back)
def straggler_outlier(task: Task, **options: Any) -> Decision:
    """Merge with one alpha; in straggler layers with a smaller one, and with a mask.

    Args:
        task: What to decide on.
        **options: As in `clipmerge.methods._hold_back.hold_back`.

    Returns:
        Two kinds of layers; all of one kind when no straggler is found.

    Source:
        Inspired by Abdollahpoorrostam 2024, arXiv:2410.16476; the definitions are ours.
    """
    return hold_back(task, "straggler-outlier", **options)
