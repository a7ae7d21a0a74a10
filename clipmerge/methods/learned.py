"""Use coefficients learned by a measure."""

from __future__ import annotations

from clipmerge.methods import Decision, Task
from clipmerge.plugins import Share


def learned(task: Task, *, alpha: Share = 1.0) -> Decision:
    """Merge with learned coefficients, times alpha.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        alpha: Factor of every coefficient: 1 uses the learned coefficients, 0 is zero-shot.

    Returns:
        The coefficients, in the granularity in which they were learned.

    Source:
        See the measure. The factor interpolates between the zero-shot and the learned model, as in
        WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903.
    """
    measurements = task.need_measured(
        "learned coefficients", "learned-coefficients", lambda found: found.coefficients
    )
    coefficients = {name: alpha * value for name, value in measurements.coefficients.items()}
    layers = task.everywhere(0.0)
    unchanged = layers.keys() - measurements["at_zero"].values.keys()
    reasons = dict.fromkeys(unchanged, "fine-tuning did not change it")
    count = sum(value.numel() for value in coefficients.values())
    factor = "" if alpha == 1 else f", multiplied by {alpha:g}"
    return Decision(
        layers, found=f"{count:,} coefficients{factor}", reasons=reasons, coefficients=coefficients
    )
