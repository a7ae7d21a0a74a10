"""Keep random entries of the change, and scale them up to compensate for the others."""

from __future__ import annotations

from clipmerge.files.safetensors import Array
from clipmerge.masks.random import random
from clipmerge.plugins import Density


def random_rescale(change: Array, key: str, *, density: Density = 1.0) -> Array:
    """Keep each entry with probability ``density``, and divide the kept entries by ``density``.
    This preserves the mean change.

    Args:
        change: alpha * task_vector, any shape.
        key: Seed and parameter name.
        density: Probability that an entry is kept.

    Returns:
        The change with kept entries scaled and the others zero, same shape.

    Source:
        DARE, Yu et al. 2023, arXiv:2311.03099.
    """
    change = random(change, key, density=density)
    change /= density
    return change
