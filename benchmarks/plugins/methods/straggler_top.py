"""Take the layers with the largest statistic as stragglers, and make them sparse."""

from __future__ import annotations

from typing import Any

from clipmerge.errors import RecipeError
from clipmerge.finding import Finding
from clipmerge.methods import Decision, Task
from clipmerge.methods.straggler_outlier import mask_scores
from clipmerge.planning.plan import LayerPlan
from clipmerge.plugins import Alpha, Count, Density, MaskName, plugin_options


def straggler_top(
    task: Task,
    *,
    statistic: str = "instability",
    count: Count = 3,
    alpha: Alpha = 0.5,
    straggler_alpha: Alpha = 0.5,
    density: Density = 0.9,
    mask: MaskName = "weights-random",
    mask_options: dict[str, Any] | None = None,
) -> Decision:
    """Merge with one alpha, except in the layers with the largest statistic, even if it is not an
    outlier.

    Args:
        task: The checkpoints and the measurements.
        statistic: Statistic that identifies stragglers; larger is worse.
        count: Number of stragglers.
        alpha: Coefficient of the other layers.
        straggler_alpha: Coefficient of the stragglers.
        density: Share of the stragglers' task vector (or weights) that is kept, by masks that have
            a density.
        mask: The mask that selects this share; ``weights-random`` zeroes weights, the others zero
            the task vector.
        mask_options: The mask's own options.

    Returns:
        Two kinds of layers.

    Raises:
        RecipeError: If there are several fine-tuned checkpoints, or the measure lacks the
            statistic.

    Source:
        Our reading of Abdollahpoorrostam 2024, arXiv:2410.16476, as reviews describe it: sparsity
        in the layers with the largest interpolation instability. Its definitions are not public.
    """
    task.need_one_finetuned()
    known = {each.name: each for each in task.need_measurements().statistics}
    if statistic not in known:
        raise RecipeError(
            f"the measure has no statistic '{statistic}' (statistics: {', '.join(known)})"
        )
    values, title = known[statistic].values, known[statistic].title or statistic
    chosen = set(sorted(values, key=values.__getitem__, reverse=True)[:count])
    layers = task.everywhere(alpha, Finding.of("base-alpha"))
    for layer in chosen:
        layers[layer] = LayerPlan(
            alpha=straggler_alpha,
            density=density if "density" in plugin_options("masks", mask) else 1.0,
            mask=mask,
            mask_options=mask_options or {},
            reason=Finding.note(
                f"straggler: {title} {values[layer]:.3g}, one of the {len(chosen)} largest"
            ),
        )
    finding = f"the {len(chosen)} layers with the largest {title} are the stragglers"
    if len(chosen) == 1:
        finding = f"the layer with the largest {title} is the straggler"
    return Decision(
        layers,
        finding=finding,
        stragglers=tuple(layer for layer in task.layers if layer in chosen),
        straggler_statistic=statistic,
        straggler_scores={layer: {statistic: value} for layer, value in values.items()},
        scores=mask_scores(task, layers),
    )
