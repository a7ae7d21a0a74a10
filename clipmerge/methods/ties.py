"""Trim each task vector, elect one sign per entry, and average the task vectors that have it."""

from __future__ import annotations

from typing import Any

from clipmerge.combinations.ties import ties as combine
from clipmerge.methods import Decision, Task
from clipmerge.plugins import Alpha, options_of


@options_of(combine, without=("thinned",))
def ties(task: Task, *, alpha: Alpha = 1.0, **options: Any) -> Decision:
    """Combine several task vectors by TIES, parameter by parameter.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        alpha: Factor of the combined task vector.
        **options: See `clipmerge.combinations.ties`.

    Returns:
        One coefficient for every layer, and the combination.

    Source:
        TIES, Yadav et al. 2023, arXiv:2306.01708.
    """
    task.need_several_finetuned(
        "there is no election of signs, only trimming: use 'breadcrumbs' with method.outliers=0"
    )
    return task.combined(
        alpha, "ties", options, "trimmed to its largest entries", "averaged where signs agree"
    )
