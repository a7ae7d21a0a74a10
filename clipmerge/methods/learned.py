"""Use coefficients learned by a measure."""

from __future__ import annotations

from clipmerge.errors import RecipeError
from clipmerge.finding import Finding
from clipmerge.layers import HEAD
from clipmerge.methods import Decision, Task
from clipmerge.planning.measurements import takes_learned
from clipmerge.planning.plan import LayerPlan
from clipmerge.plugins import Share


def learned(task: Task, *, alpha: Share = 1.0) -> Decision:
    """Merge with learned coefficients, or with a share of them.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        alpha: Factor of every coefficient: 1 uses the learned coefficients, 0 is zero-shot.

    Returns:
        Coefficients of the granularity in which they were learned.

    Source:
        See the measure; the factor is WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903, between the
        zero-shot and the learned model.
    """
    task.need_one_finetuned()
    measurements = task.need_measurements()
    if not measurements.coefficients:
        raise RecipeError(
            f"{measurements.measure} learns no coefficients; measure with learned-coefficients"
        )
    coefficients = {name: alpha * value for name, value in measurements.coefficients.items()}
    layers = task.everywhere(0.0, Finding.of("unchanged"))
    if HEAD in layers:  # measures classify by prompts
        layers[HEAD] = LayerPlan(alpha=alpha, reason=Finding.of("unmeasured-head"))
    choice = measurements.choice
    kind = "learned-layer"
    if not takes_learned(measurements.trace, choice):
        kind = "finetuned-layer" if choice is None or choice.alpha in (None, 1) else "one-alpha"
    for layer in measurements["at_zero"].values:
        layers[layer] = LayerPlan(alpha=0.0, reason=Finding.of(kind))
    count = sum(value.numel() for value in coefficients.values())
    return Decision(
        layers,
        finding=Finding.of("learned", coefficients=count, factor=alpha),
        coefficients=coefficients,
    )
