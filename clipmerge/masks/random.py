"""Keep entries of the change at random."""

from __future__ import annotations

from clipmerge.files.safetensors import Array
from clipmerge.merging.selection import keep_random, zero_others
from clipmerge.plugins import Density


def random(change: Array, key: str, *, density: Density = 1.0) -> Array:
    """Keep each entry with probability ``density``.

    In expectation this equals a merge with the smaller coefficient alpha * density. Compare with
    such a merge before you credit sparsity with an effect.

    Args:
        change: alpha * task_vector, any shape.
        key: Seed and parameter name.
        density: Probability that an entry is kept.

    Returns:
        The change with the other entries zero, same shape.
    """
    return zero_others(change, keep_random(change.shape, density, key))
