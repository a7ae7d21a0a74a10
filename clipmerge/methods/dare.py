"""Thin each task vector out at random, rescale, add up."""

from __future__ import annotations

from typing import Any

from clipmerge.combinations.dare import dare as combine
from clipmerge.methods import Decision, Task
from clipmerge.planning.layer_plan import Combination
from clipmerge.plugins import Alpha, options_of


@options_of(combine, without=("key", "thinned"))
def dare(task: Task, *, alpha: Alpha = 0.3, **options: Any) -> Decision:
    """Combine task vectors by DARE and task arithmetic; with one fine-tuned checkpoint it is the random-rescale mask.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        alpha: Factor of the combined task vector.
        **options: As in `clipmerge.combinations.dare`.

    Returns:
        One coefficient for every layer, and the combination.

    Source:
        DARE, Yu et al. 2023, arXiv:2311.03099.
    """
    count = len(task.inputs.finetuned)
    return Decision(
        task.everywhere(alpha, "one alpha for all layers"),
        f"the sum of {count} task vectors, each thinned out at random and rescaled, times {alpha:g}",
        weights=(1.0,) * count,
        combine=Combination(rule="dare", options=options),
    )
