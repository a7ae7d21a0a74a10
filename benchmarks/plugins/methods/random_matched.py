"""The control for straggler-outlier: the same edit on random layers that moved equally far."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from clipmerge.errors import RecipeError
from clipmerge.finding import Finding
from clipmerge.methods import Decision, Task
from clipmerge.methods.straggler_outlier import mask_scores, straggler_outlier
from clipmerge.plugins import Count, options_of


@options_of(straggler_outlier)
def random_matched(task: Task, *, pool: Count = 3, **options: Any) -> Decision:
    """Find stragglers, leave them unchanged, and in place of each edit another layer that moved
    about equally far.

    If this works as well as straggler-outlier, the choice of layers does not matter.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        pool: A stand-in is drawn from this many layers with the most similar norm of the task
            vector; 1 takes the most similar layer, a large number ignores the norm.
        **options: See `straggler-outlier`.

    Returns:
        The decision of ``straggler-outlier``, with each straggler's settings given to its stand-in.

    Raises:
        RecipeError: If there are more stragglers than other layers.

    Source:
        Ours: a control that could falsify the claim.
    """
    decision = straggler_outlier(task, **options)
    layers = dict(decision.layers)
    norms = {
        layer: math.sqrt(sum(float(task.task_vectors(name)[0].square().sum()) for name in names))
        for layer, names in task.layers.items()
    }
    rng = np.random.default_rng(task.seed)
    free = [layer for layer in task.layers if layer not in decision.stragglers and norms[layer] > 0]
    if len(free) < len(decision.stragglers):
        raise RecipeError(
            f"{len(decision.stragglers)} stragglers and only {len(free)} other layers that "
            "fine-tuning moved; raise method.threshold"
        )
    edits = []
    for straggler in decision.stragglers:
        distance = {layer: abs(math.log(norms[layer] / norms[straggler])) for layer in free}
        nearest = sorted(free, key=lambda layer: distance[layer])[:pool]
        stand_in = nearest[int(rng.integers(len(nearest)))]
        free.remove(stand_in)
        reason = Finding.note(
            f"stands in for {straggler}, with {norms[stand_in] / norms[straggler]:.2f} times its"
            " change"
        )
        layers[straggler] = layers[stand_in].model_copy(
            update={"reason": Finding.note(f"base alpha: {stand_in} stands in for it")}
        )
        layers[stand_in] = decision.layers[straggler].model_copy(update={"reason": reason})
        edits.append(f"{stand_in} for {straggler}")
    found = decision.finding
    if edits:
        found = f"{found}; edited instead: {', '.join(edits)}"
    return replace(decision, layers=layers, finding=found, scores=mask_scores(task, layers))
