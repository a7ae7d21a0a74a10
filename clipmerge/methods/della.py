"""Drop random entries of each task vector, elect one sign per entry, and average the task vectors
that have it.
"""

from __future__ import annotations

from typing import Any

from clipmerge.combinations.della import check_chances
from clipmerge.combinations.della import della as combine
from clipmerge.methods import Decision, Task
from clipmerge.plugins import Alpha, options_of


@options_of(combine, without=("key", "thinned"))
def della(task: Task, *, alpha: Alpha = 1.0, **options: Any) -> Decision:
    """Combine task vectors by DELLA; with one fine-tuned checkpoint there is no election of signs.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        alpha: Factor of the combined task vector.
        **options: See `clipmerge.combinations.della`.

    Returns:
        One coefficient for every layer, and the combination.

    Raises:
        RecipeError: If density and window give no probabilities.

    Source:
        DELLA, Deep et al. 2024, arXiv:2406.11617.
    """
    check_chances(**options)
    return task.combined(
        alpha, "della", options, "thinned out at random by magnitude", "averaged where signs agree"
    )
