"""Keep the entries of medium magnitude of each task vector, and add the task vectors."""

from __future__ import annotations

from typing import Any

from clipmerge.combinations.breadcrumbs import breadcrumbs as combine
from clipmerge.methods import Decision, Task
from clipmerge.plugins import Alpha, options_of


@options_of(combine, without=("thinned",))
def breadcrumbs(task: Task, *, alpha: Alpha = 0.3, **options: Any) -> Decision:
    """Combine task vectors by Model Breadcrumbs, which drops the largest outliers and the small
    entries.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        alpha: Factor of the combined task vector.
        **options: See `clipmerge.combinations.breadcrumbs`.

    Returns:
        One coefficient for every layer, and the combination.

    Source:
        Model Breadcrumbs, Davari and Belilovsky 2023, arXiv:2312.06795.
    """
    return task.combined(
        alpha, "breadcrumbs", options, "without its outliers and its small entries", "added up"
    )
