"""Hold straggler layers back by their coefficient alone."""

from __future__ import annotations

from clipmerge.decision import Decision, Task
from clipmerge.methods.straggler_sparse import straggler_sparse
from clipmerge.options import Alpha, Count, NonNegative, Positive, Share


def straggler_shrink(
    task: Task,
    *,
    alpha: Alpha = 0.5,
    straggler_alpha: Alpha = 0.25,
    statistic: str = "barrier",
    threshold: Positive = 3.5,
    mirror: NonNegative = 2.5,
    stability: Share = 0.9,
    bootstraps: Count = 200,
) -> Decision:
    """Merge with one alpha, and a smaller one in straggler layers; the control for ``straggler-sparse``.

    Args:
        task: What to decide on.
        alpha: Coefficient of the layers that are not stragglers.
        straggler_alpha: Coefficient of the stragglers.
        statistic: Statistic that tells stragglers.
        threshold: Robust z-score above which a layer is flagged.
        mirror: How many times further above the others than any layer lies below them; 0 does not ask for it.
        stability: Share of the bootstraps that must flag it.
        bootstraps: Resamples of the calibration batches.

    Returns:
        Two coefficients; one when no straggler is found.

    Source:
        Inspired by Abdollahpoorrostam 2024, arXiv:2410.16476; the definitions are ours.
    """
    return straggler_sparse(
        task,
        alpha=alpha,
        straggler_alpha=straggler_alpha,
        mask=None,
        statistic=statistic,
        threshold=threshold,
        mirror=mirror,
        stability=stability,
        bootstraps=bootstraps,
    )
