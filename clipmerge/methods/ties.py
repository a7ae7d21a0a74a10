"""TIES: trim each task vector, elect one sign per entry, and average the values that have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from clipmerge.files.safetensors import Array
from clipmerge.merging import weighted_sum
from clipmerge.merging.selection import keep_largest, zero_others
from clipmerge.methods import Decision, Task
from clipmerge.plugins import Alpha, Density, with_options_of

# Number of entries averaged at a time: they stay in a core's cache.
_RUN = 1 << 16


def combine(
    task_vectors: Array, weights: Sequence[float], *, sparsify: bool = True, density: Density = 0.2
) -> Array:
    """Trim, elect sign, disjoint mean.

    Args:
        task_vectors: (checkpoints, ...).
        weights: Factor of each checkpoint; the election ignores it.
        sparsify: Whether entries may be dropped; otherwise all are combined.
        density: Share of each parameter's task vector kept, the largest by magnitude.

    Returns:
        (...).

    Example:
        >>> combine(np.array([[4.0, 1.0], [2.0, -3.0]]), (1.0, 1.0), density=1.0)
        array([ 3., -3.])
    """
    if not sparsify:
        return disjoint_mean(task_vectors, weights)
    for task_vector in task_vectors:
        zero_others(task_vector, keep_largest(task_vector, density))
    return disjoint_mean(task_vectors, weights)


def disjoint_mean(task_vectors: Array, weights: Sequence[float]) -> Array:
    """Average, entry by entry, the task vectors whose sign is that of their sum; zero if there are
    none.

    Args:
        task_vectors: (checkpoints, ...); zeros are ignored.
        weights: Factor of each task vector in the average, not in the election.

    Returns:
        (...).
    """
    flat = task_vectors.reshape(len(task_vectors), -1)
    mean: Array = np.empty_like(flat[0])
    equal_weights = (1.0,) * len(flat)
    for start in range(0, len(mean), _RUN):
        stop = start + _RUN
        run = flat[:, start:stop]
        votes = weighted_sum(run, equal_weights)
        elected = np.where(votes >= 0, 1.0, -1.0)
        agrees = np.sign(run) == elected
        agreeing = np.where(agrees, run, 0)
        total = weighted_sum(agreeing, weights)
        count = agrees.sum(axis=0)
        divisor = np.maximum(count, 1).astype(run.dtype)
        np.divide(total, divisor, out=mean[start:stop])
    return np.asarray(mean.reshape(task_vectors.shape[1:]))


@with_options_of(combine, without=("sparsify",))
def ties(task: Task, *, alpha: Alpha = 1.0, **options: Any) -> Decision:
    """Combine several task vectors by TIES, parameter by parameter.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        alpha: Factor of the combined task vector.
        **options: See `combine`.

    Returns:
        One coefficient for every layer, and the combination.

    Source:
        TIES, Yadav et al. 2023, arXiv:2306.01708; trimmed per parameter.
    """
    task.need_several_finetuned(
        "there is no election of signs, only trimming: use 'breadcrumbs' with method.outliers=0"
    )
    return task.combined(alpha, "ties", options)
