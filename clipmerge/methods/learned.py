"""Use coefficients learned by a measure."""

from __future__ import annotations

from clipmerge.layers import HEAD
from clipmerge.methods import Decision, Task
from clipmerge.planning.plan import LayerPlan
from clipmerge.plugins import Share

#: The reason of a layer that is the same in both models.
UNCHANGED = "fine-tuning did not change it"


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
    measurements = task.need_measured(
        "learned coefficients", "learned-coefficients", lambda found: found.coefficients
    )
    coefficients = {name: alpha * value for name, value in measurements.coefficients.items()}
    layers = task.everywhere(0.0)
    reasons = {}
    if HEAD in layers:  # measures classify by prompts
        layers[HEAD] = LayerPlan(alpha=alpha)
        reasons[HEAD] = "a classifier's head takes no part in measuring"
    changed = measurements["at_zero"].values
    for layer in layers.keys() - changed.keys() - {HEAD}:
        reasons[layer] = UNCHANGED
    count = sum(value.numel() for value in coefficients.values())
    factor = "" if alpha == 1 else f", multiplied by {alpha:g}"
    return Decision(
        layers, found=f"{count:,} coefficients{factor}", reasons=reasons, coefficients=coefficients
    )
