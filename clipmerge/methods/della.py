"""DELLA: drop random entries of each task vector, large ones less often, then elect signs and
average like TIES.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from clipmerge.errors import UsageError
from clipmerge.files.safetensors import Array
from clipmerge.merging.selection import RandomKey, keep_random, zero_others
from clipmerge.methods import Decision, Task
from clipmerge.methods.ties import disjoint_mean
from clipmerge.plugins import Alpha, Density, Share, with_options_of

# Number of entries sorted at a time, in whole rows: sorting takes several times their memory.
_SORTED = 1 << 20


def combine(
    task_vectors: Array,
    weights: Sequence[float],
    *,
    key: RandomKey,
    sparsify: bool = True,
    density: Density = 0.5,
    window: Share = 0.2,
) -> Array:
    """Keep entries at random, larger ones in a row more often, and divide each by its probability.

    The probability increases from density - window / 2 for a row's smallest entry to density +
    window / 2 for its largest, in equal steps. Signs are elected and averaged as in TIES. A vector
    is one row.

    Args:
        task_vectors: (checkpoints, ...).
        weights: Factor of each checkpoint; the election ignores it.
        key: Seed and parameter name.
        sparsify: Whether entries may be dropped; otherwise all are combined.
        density: Mean probability that an entry is kept.
        window: Difference between the probabilities of a row's largest and smallest entry.

    Returns:
        (...).

    Raises:
        UsageError: If a probability would be 0 or less, or more than 1.
    """
    check_probabilities(density, window)
    if not sparsify:
        return disjoint_mean(task_vectors, weights)
    for which, task_vector in enumerate(task_vectors):
        probability = _keep_probabilities(task_vector, density, window)
        keep = keep_random(task_vector.shape, probability, key.for_checkpoint(which))
        zero_others(task_vector, keep)
        task_vector /= probability
    return disjoint_mean(task_vectors, weights)


def check_probabilities(density: float = 0.5, window: float = 0.2) -> None:
    """Refuse a window that is too wide for its density.

    Raises:
        UsageError: If a probability would be 0 or less, or more than 1.
    """
    low, high = density - window / 2, density + window / 2
    if not (low > 0 and high <= 1):
        raise UsageError(
            f"della: density {density:g} and window {window:g} give probabilities from {low:g} to"
            f" {high:g}, which must lie above 0 and not above 1; choose a smaller window"
        )


def _keep_probabilities(task_vector: Array, density: float, window: float) -> Array:
    """A probability by entry: the higher, the larger the entry is among those of its row."""
    count = len(task_vector) if task_vector.ndim > 1 else 1
    rows = task_vector.reshape(count, -1)
    width = rows.shape[1]
    probabilities = np.full_like(rows, density)
    if width < 2:
        return probabilities.reshape(task_vector.shape)
    ascending = np.arange(width, dtype=task_vector.dtype)
    chunk_size = max(1, _SORTED // width)
    for start in range(0, count, chunk_size):
        chunk = slice(start, start + chunk_size)
        # a stable sort ranks equal entries by index
        order = np.abs(rows[chunk]).argsort(axis=1, kind="stable")
        ranks = np.empty(order.shape, task_vector.dtype)
        np.put_along_axis(ranks, order, ascending[None], axis=1)
        centred = ranks / (width - 1) - 0.5
        probabilities[chunk] = density + window * centred
    return probabilities.reshape(task_vector.shape)


@with_options_of(combine, without=("key", "sparsify"))
def della(task: Task, *, alpha: Alpha = 1.0, **options: Any) -> Decision:
    """Combine task vectors by DELLA; with one fine-tuned checkpoint there is no election of signs.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        alpha: Factor of the combined task vector.
        **options: See `combine`.

    Returns:
        One coefficient for every layer, and the combination.

    Raises:
        UsageError: If density and window give no probabilities.

    Source:
        DELLA (MagPrune), Deep et al. 2024, arXiv:2406.11617.
    """
    check_probabilities(**options)
    return task.combined(alpha, "della", options)
