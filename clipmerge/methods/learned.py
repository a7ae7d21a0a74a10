"""Take the coefficients that a measure learned."""

from __future__ import annotations

from clipmerge.errors import RecipeError
from clipmerge.layers import HEAD
from clipmerge.methods import Decision, Task
from clipmerge.planning.layer_plan import LayerPlan
from clipmerge.plugins import Share


def learned(task: Task, *, alpha: Share = 1.0) -> Decision:
    """Merge with learned coefficients, or with a share of them.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        alpha: Factor of every coefficient: 1 takes them as they were learned, 0 is zero-shot.

    Returns:
        Coefficients as fine as they were learned.

    Source:
        The measure's; the factor is WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903, between the zero-shot model and
        what was learned.
    """
    task.need_one_finetuned("learned")
    measurements = task.need_measurements("learned")
    if not measurements.coefficients:
        raise RecipeError(
            f"method learned: {measurements.measure} learns no coefficients; measure with learned-coefficients"
        )
    coefficients = {name: alpha * value for name, value in measurements.coefficients.items()}
    layers = {layer: LayerPlan(alpha=0.0, reason="fine-tuning did not change it") for layer in task.layers}
    if HEAD in layers:  # what is measured classifies by prompts
        layers[HEAD] = LayerPlan(alpha=alpha, reason="a classifier's head takes no part in measuring: fine-tuned")
    at_one = measurements["at_one"].values
    for layer, at_zero in measurements["at_zero"].values.items():
        reason = f"learned: {at_zero:.0%} held at zero-shot, {at_one[layer]:.0%} at fine-tuned"
        layers[layer] = LayerPlan(alpha=0.0, reason=reason)
    numbers = sum(value.numel() for value in coefficients.values())
    scaled = "" if alpha == 1 else f" times {alpha:g}"
    losses = _told(measurements.trace)
    return Decision(
        layers, f"{numbers:,} learned coefficients{scaled}; {losses}", finding=losses, coefficients=coefficients
    )


def _told(trace: dict[str, tuple[float, ...]]) -> str:
    """Change of the losses from the first tenth of learning to the last."""
    parts = []
    for name, told in (("calibration", "loss"), ("divergence", "divergence from zero-shot")):
        values = trace[name]
        length = max(1, len(values) // 10)
        first, last = sum(values[:length]) / length, sum(values[-length:]) / length
        if any(values):
            parts.append(f"{told} {first:.3f} to {last:.3f}")
    return ", ".join(parts) + " nats while learning"
