"""Keep the entries of medium magnitude of each task vector, without outliers, and add the task
vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from clipmerge.merging.selection import keep_first, zero_others
from clipmerge.merging.tensor import weighted_sum
from clipmerge.plugins import Density, Share


def breadcrumbs(
    task_vectors: Tensor,
    weights: Sequence[float],
    *,
    thinned: bool = True,
    density: Density = 0.15,
    outliers: Share = 0.01,
) -> Tensor:
    """Drop the largest entries, keep the next largest, drop the rest.

    Args:
        task_vectors: (checkpoints, ...).
        weights: Factor of each checkpoint.
        thinned: Whether entries may be dropped; otherwise all are combined.
        density: Share of each parameter's task vector kept; at least one entry is kept.
        outliers: Share of the largest entries dropped; 0 only trims small entries.

    Returns:
        (...).

    Source:
        Model Breadcrumbs, Davari and Belilovsky 2023, arXiv:2312.06795; sorted per parameter.

    Example:
        >>> import torch
        >>> breadcrumbs(torch.tensor([[9.0, 1.0, 4.0, 2.0]]), (1.0,), density=0.5, outliers=0.25)
        tensor([0., 0., 4., 2.])
    """
    if not thinned:
        return weighted_sum(task_vectors, weights)
    size = task_vectors[0].numel()
    left_out = min(round(outliers * size), size - 1)
    count = max(1, round(density * size))
    for each in task_vectors:
        zero_others(
            each, keep_first(each, left_out + count).logical_and_(~keep_first(each, left_out))
        )
    return weighted_sum(task_vectors, weights)
