"""Give outlier layers a smaller coefficient and a mask."""

from __future__ import annotations

from clipmerge.errors import UsageError
from clipmerge.methods import Decision, Task
from clipmerge.planning.plan import LayerPlan
from clipmerge.planning.stragglers import find_stragglers
from clipmerge.plugins import (
    Alpha,
    Count,
    Density,
    NonNegative,
    Positive,
    Share,
    needs_score,
    plugin_options,
)
from clipmerge.types import Json, Tensors


def straggler_outlier(
    task: Task,
    *,
    alpha: Alpha = 0.5,
    straggler_alpha: Alpha = 0.25,
    density: Density = 0.5,
    mask: str | None = "saliency",
    mask_options: Json | None = None,
    statistic: str = "barrier",
    threshold: Positive = 3.5,
    mirror: NonNegative = 2.5,
    stability: Share = 0.9,
    bootstraps: Count = 200,
) -> Decision:
    """Merge ordinary layers with one alpha, and straggler layers with a smaller alpha and a mask.

    Args:
        task: The checkpoints and the measurements.
        alpha: Coefficient of the layers that are not stragglers.
        straggler_alpha: Coefficient of the stragglers.
        density: Share of the stragglers' task vector that is kept, if the mask has a density.
        mask: The mask that selects this share; ``None`` keeps everything.
        mask_options: The mask's own options, such as ``{n: 2, m: 4}``.
        statistic: Statistic that identifies stragglers.
        threshold: Robust z-score that a straggler exceeds.
        mirror: How many times as far above zero the z-score of a straggler is as the lowest z-score
            is below zero; 0 turns this limit off.
        stability: Share of the bootstrap resamples in which a straggler exceeds both limits.
        bootstraps: Number of bootstrap resamples of the calibration batches.

    Returns:
        One setting for stragglers, and one for all other layers.

    Raises:
        UsageError: If the measure lacks the statistic or the gradients.

    Source:
        Inspired by Abdollahpoorrostam 2024, arXiv:2410.16476; the definitions are ours.
    """
    measurements = task.need_measured("a statistic", "path-barrier", lambda found: found.statistics)
    stragglers = find_stragglers(
        measurements,
        task.sizes,
        statistic=statistic,
        threshold=threshold,
        mirror=mirror,
        stability=stability,
        bootstraps=bootstraps,
        seed=task.seed,
    )
    scores: Tensors = {}
    if mask and needs_score(mask):
        if not measurements.gradients:
            raise UsageError(
                f"the {mask} mask needs gradients, which {measurements.measure} does not keep; "
                "measure with path-barrier, or set method.mask=magnitude"
            )
        held = {name for layer in stragglers.names for name in task.layers[layer]}
        scores = {name: value for name, value in measurements.gradients.items() if name in held}
    has_density = mask is not None and "density" in plugin_options("masks", mask)
    straggler = LayerPlan(
        alpha=straggler_alpha,
        density=density if has_density else 1.0,
        mask=mask,
        mask_options=mask_options or {},
    )
    layers = task.everywhere(alpha) | dict.fromkeys(stragglers.names, straggler)
    reasons = {}
    for layer in stragglers.names:
        z, share = (stragglers.scores[layer][score] for score in ("z", "stability"))
        reasons[layer] = f"straggler: {statistic} z {z:.1f}, in {share:.0%} of the resamples"
    return Decision(
        layers,
        found=stragglers.found,
        reasons=reasons,
        stragglers=stragglers.names,
        straggler_statistic=statistic,
        straggler_scores=stragglers.scores,
        scores=scores,
    )
