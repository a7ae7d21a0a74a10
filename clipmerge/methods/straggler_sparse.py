"""Hold straggler layers back: a smaller coefficient, and a mask on what is left of their change."""

from __future__ import annotations

from typing import Any, Literal

from clipmerge.errors import RecipeError
from clipmerge.methods import Decision, Task
from clipmerge.methods._stragglers import Stragglers, find_stragglers
from clipmerge.planning.layer_plan import LayerPlan
from clipmerge.plugins import Alpha, Count, Density, NonNegative, Positive, Share

Mask = Literal["saliency", "magnitude", "random", "random-rescale", "n-m", "weights-random"]


def straggler_sparse(
    task: Task,
    *,
    alpha: Alpha = 0.5,
    straggler_alpha: Alpha = 0.25,
    density: Density = 0.5,
    mask: Mask | None = "saliency",
    mask_options: dict[str, Any] | None = None,
    statistic: str = "barrier",
    threshold: Positive = 3.5,
    mirror: NonNegative = 2.5,
    stability: Share = 0.9,
    bootstraps: Count = 200,
) -> Decision:
    """Merge with one alpha, except in straggler layers.

    Args:
        task: What to decide on.
        alpha: Coefficient of the layers that are not stragglers.
        straggler_alpha: Coefficient of the stragglers.
        density: Share of the stragglers' task vector that is kept.
        mask: What picks it; ``None`` keeps everything.
        mask_options: The mask's own options, such as ``{n: 2, m: 4}``.
        statistic: Statistic that tells stragglers.
        threshold: Robust z-score above which a layer is flagged.
        mirror: How many times further above the others than any layer lies below them; 0 does not ask for it.
        stability: Share of the bootstraps that must flag it.
        bootstraps: Resamples of the calibration batches.

    Returns:
        Two kinds of layers; all of one kind when no straggler is found.

    Source:
        Inspired by Abdollahpoorrostam 2024, arXiv:2410.16476; the definitions are ours.
    """
    task.need_one_finetuned("straggler-sparse")
    measurements = task.need_measurements("straggler-sparse")
    found = find_stragglers(
        measurements,
        task.sizes,
        statistic=statistic,
        threshold=threshold,
        mirror=mirror,
        stability=stability,
        bootstraps=bootstraps,
        seed=task.seed,
    )
    if mask == "saliency" and not measurements.gradients:
        raise RecipeError(
            f"method straggler-sparse: the saliency mask needs gradients, which {measurements.measure} does not keep; "
            "measure with path-barrier, or set method.mask=magnitude"
        )
    layers = {layer: LayerPlan(alpha=alpha, reason="base alpha") for layer in task.layers}
    for layer in found.names:
        layers[layer] = LayerPlan(
            alpha=straggler_alpha,
            density=density if mask and mask != "n-m" else 1.0,
            mask=mask,
            mask_options=mask_options or {},
            reason=_reason(found, layer, statistic),
        )
    scores = {}
    if mask == "saliency":
        names = [name for layer in found.names for name in task.layers[layer]]
        scores = {name: measurements.gradients[name] for name in names if name in measurements.gradients}
    edit = f"alpha {straggler_alpha:g}" + (f" and the {mask} mask" if mask else "")
    rest = f"they get {edit}, the rest alpha {alpha:g}" if found.names else f"every layer gets alpha {alpha:g}"
    return Decision(
        layers,
        f"{found.verdict}; {rest}",
        stragglers=found.names,
        straggler_scores=found.scores,
        scores=scores,
    )


def _reason(found: Stragglers, layer: str, statistic: str) -> str:
    scores = found.scores[layer]
    return f"straggler: {statistic} z {scores['z']:.1f}, in {scores['stability']:.0%} of the resamples"
