"""DELLA: drop random entries of each task vector, the large ones less often; then elect signs and
average as in TIES.
"""

from __future__ import annotations

from clipmerge.masks.mag_prune import require_probabilities
from clipmerge.methods import Decision, Task
from clipmerge.plugins import Alpha, Density, Share


def della(
    task: Task, *, alpha: Alpha = 1.0, density: Density = 0.5, window: Share = 0.2
) -> Decision:
    """Mask each task vector with ``mag-prune``, and average the entries whose signs agree.

    With one fine-tuned checkpoint, no signs are elected, and the result is the masked task vector.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        alpha: Factor of the combined task vector.
        density: Mean probability that an entry is kept.
        window: Difference between the probabilities of a row's largest and smallest entry.

    Returns:
        One coefficient for every layer, and the mask of the task vectors.

    Raises:
        UsageError: If a probability would be 0 or less, or more than 1.

    Source:
        DELLA, Deep et al. 2024, arXiv:2406.11617.
    """
    require_probabilities(density, window)
    return task.combined(alpha, "mag-prune", density, {"window": window}, elect_signs=True)
