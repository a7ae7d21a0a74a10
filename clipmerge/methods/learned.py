"""Use coefficients learned by a measure."""

from __future__ import annotations

from clipmerge.errors import RecipeError
from clipmerge.layers import HEAD
from clipmerge.methods import Decision, Task
from clipmerge.planning.layer_plan import LayerPlan
from clipmerge.planning.measurements import HeldBackChoice, takes_learned
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
    layers = task.everywhere(0.0, "fine-tuning did not change it")
    if HEAD in layers:  # measures classify by prompts
        layers[HEAD] = LayerPlan(
            alpha=alpha, reason="a classifier's head takes no part in measuring: fine-tuned"
        )
    choice = measurements.choice
    taken = takes_learned(measurements.trace, choice)
    reason = "learned" if taken else "fine-tuned"
    for layer in measurements["at_zero"].values:
        layers[layer] = LayerPlan(alpha=0.0, reason=reason)
    numbers = sum(value.numel() for value in coefficients.values())
    scaled = "" if alpha == 1 else f" times {alpha:g}"
    finding = _told(measurements.trace)
    if choice:
        finding += f"; {_chosen(choice)}"
    kind = "learned coefficients" if taken else "coefficients"
    return Decision(
        layers, f"{numbers:,} {kind}{scaled}; {finding}", finding=finding, coefficients=coefficients
    )


def _told(trace: dict[str, tuple[float, ...]]) -> str:
    """Describe the change of the losses from the first tenth of learning to the last."""
    parts = []
    for name, label in (
        ("cross_entropy", "loss"),
        ("distillation_loss", "divergence from zero-shot"),
    ):
        values = trace[name]
        length = max(1, len(values) // 10)
        first, last = sum(values[:length]) / length, sum(values[-length:]) / length
        if any(values):
            parts.append(f"{label} from {first:.3f} to {last:.3f}")
    return ", ".join(parts) + " nats while learning" if parts else "nothing was learned"


def _chosen(choice: HeldBackChoice) -> str:
    """Describe the choice of the held-back images."""
    images = f"{choice.images} images held back"
    # what is counted are slightly changed views, several of each image
    accuracy = (
        f"it recognises {choice.accuracy:.1%} of their views, the fine-tuned model"
        f" {choice.finetuned_accuracy:.1%}"
    )
    if choice.alpha is not None:
        return f"{images}: nothing that was learned surely keeps the accuracy, so it is fine-tuned"
    if not choice.extrapolation:
        return f"{images} chose what was learned; {accuracy}"
    return (
        f"{images} chose to go {choice.extrapolation:.0%} of the way from what was learned to"
        f" fine-tuned, to keep the accuracy; {accuracy}"
    )
