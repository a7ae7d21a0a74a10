"""DARE: drop random entries of each task vector, scale the others up, and add the task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clipmerge.files.safetensors import Array
from clipmerge.merging import weighted_sum
from clipmerge.merging.selection import RandomKey, keep_random, zero_others
from clipmerge.methods import Decision, Task
from clipmerge.plugins import Alpha, Density, with_options_of


def combine(
    task_vectors: Array,
    weights: Sequence[float],
    *,
    key: RandomKey,
    sparsify: bool = True,
    density: Density = 0.5,
) -> Array:
    """Keep each entry with probability ``density``, divided by ``density``, with separate draws per
    checkpoint.

    Args:
        task_vectors: (checkpoints, ...).
        weights: Factor of each checkpoint.
        key: Seed and parameter name.
        sparsify: Whether entries may be dropped; otherwise all are combined.
        density: Probability that an entry is kept.

    Returns:
        (...).
    """
    if not sparsify:
        return weighted_sum(task_vectors, weights)
    for which, task_vector in enumerate(task_vectors):
        keep = keep_random(task_vector.shape, density, key.for_checkpoint(which))
        zero_others(task_vector, keep)
        task_vector /= density
    return weighted_sum(task_vectors, weights)


@with_options_of(combine, without=("key", "sparsify"))
def dare(task: Task, *, alpha: Alpha = 0.3, **options: Any) -> Decision:
    """Combine task vectors by DARE and task arithmetic; one fine-tuned checkpoint gets the
    random-rescale mask.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        alpha: Factor of the combined task vector.
        **options: See `combine`.

    Returns:
        One coefficient for every layer, and the combination.

    Source:
        DARE, Yu et al. 2023, arXiv:2311.03099.
    """
    return task.combined(alpha, "dare", options)
