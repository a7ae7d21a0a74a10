"""Drop random entries of each task vector, scale the others up, and add the task vectors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from clipmerge.merging.selection import RandomKey, keep_random, zero_others
from clipmerge.merging.tensor import weighted_sum
from clipmerge.plugins import Density


def dare(
    task_vectors: Tensor,
    weights: Sequence[float],
    *,
    key: RandomKey,
    thinned: bool = True,
    density: Density = 0.5,
) -> Tensor:
    """Keep each entry with probability ``density``, divided by ``density``, with separate draws per
    checkpoint.

    Args:
        task_vectors: (checkpoints, ...).
        weights: Factor of each checkpoint.
        key: Seed and parameter name.
        thinned: Whether entries may be dropped; otherwise all are combined.
        density: Probability that an entry is kept.

    Returns:
        (...).

    Source:
        DARE, Yu et al. 2023, arXiv:2311.03099.
    """
    if not thinned:
        return weighted_sum(task_vectors, weights)
    for which, each in enumerate(task_vectors):
        zero_others(each, keep_random(each.shape, density, key.of(which))).div_(density)
    return weighted_sum(task_vectors, weights)
