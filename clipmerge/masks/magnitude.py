"""Keep the largest entries of the change."""

from __future__ import annotations

from clipmerge.files.safetensors import Array
from clipmerge.merging.selection import keep_largest, zero_others
from clipmerge.plugins import Density


def magnitude(change: Array, *, density: Density = 1.0) -> Array:
    """Keep the ``density`` share of the change that is largest by magnitude; ties go to the lower
    index.

    Args:
        change: alpha * task_vector, any shape.
        density: Share of the entries kept.

    Returns:
        The change with the other entries zero, same shape.

    Source:
        Trimming as in TIES, Yadav et al. 2023, arXiv:2306.01708.

    Example:
        >>> import numpy as np
        >>> magnitude(np.array([1.0, -3.0, 2.0, 0.5]), density=0.5)
        array([ 0., -3.,  2.,  0.])
    """
    return zero_others(change, keep_largest(change, density))
