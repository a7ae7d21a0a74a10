"""Keep the entries of medium magnitude of the change."""

from __future__ import annotations

from clipmerge.files.safetensors import Array
from clipmerge.merging.selection import keep_top_k, zero_others
from clipmerge.plugins import Density, Share


def breadcrumbs(change: Array, *, density: Density = 1.0, outliers: Share = 0.01) -> Array:
    """Drop the largest entries, keep the next largest, and drop the rest.

    Args:
        change: alpha * task_vector, any shape.
        density: Share of the entries kept; at least one is kept.
        outliers: Share of the entries dropped because they are the largest.

    Returns:
        The change with the other entries zero, same shape.

    Source:
        Model Breadcrumbs, Davari and Belilovsky 2023, arXiv:2312.06795.

    Example:
        >>> import numpy as np
        >>> breadcrumbs(np.array([9.0, 1.0, 4.0, 2.0]), density=0.5, outliers=0.25)
        array([0., 0., 4., 2.])
    """
    dropped = min(round(outliers * change.size), change.size - 1)
    kept = max(1, round(density * change.size))
    is_outlier = keep_top_k(change, dropped)
    return zero_others(change, keep_top_k(change, dropped + kept) & ~is_outlier)
