"""One coefficient for every layer."""

from __future__ import annotations

from clipmerge.methods import Decision, Task
from clipmerge.plugins import Alpha


def wise_ft(task: Task, *, alpha: Alpha = 0.5) -> Decision:
    """Interpolate all weights with one coefficient. Several fine-tuned checkpoints are averaged
    first.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        alpha: 0 = zero-shot, 1 = fine-tuned.

    Returns:
        The same coefficient for every layer.

    Source:
        WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903.
    """
    return Decision(task.everywhere(alpha), weights=task.uniform_weights)
