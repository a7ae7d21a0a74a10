"""Drop random entries of each task vector, rescale it, and add the task vectors."""

from __future__ import annotations

from typing import Any

from clipmerge.combinations.dare import dare as combine
from clipmerge.methods import Decision, Task
from clipmerge.plugins import Alpha, options_of


@options_of(combine, without=("key", "thinned"))
def dare(task: Task, *, alpha: Alpha = 0.3, **options: Any) -> Decision:
    """Combine task vectors by DARE and task arithmetic; one fine-tuned checkpoint gets the
    random-rescale mask.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        alpha: Factor of the combined task vector.
        **options: See `clipmerge.combinations.dare`.

    Returns:
        One coefficient for every layer, and the combination.

    Source:
        DARE, Yu et al. 2023, arXiv:2311.03099.
    """
    return task.combined(alpha, "dare", options, "thinned out at random and rescaled", "added up")
