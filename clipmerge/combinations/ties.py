"""Keep each task vector's largest entries, elect a sign an entry, and average those that have it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipmerge.arithmetic import weighted_sum
from clipmerge.options import Density
from clipmerge.selection import keep_largest


def ties(task_vectors: Tensor, weights: Sequence[float], *, thinned: bool = True, density: Density = 0.2) -> Tensor:
    """Trim, elect sign, disjoint mean.

    Args:
        task_vectors: (checkpoints, ...).
        weights: Factor of each checkpoint; the election does not look at it.
        thinned: Whether entries may be left out; otherwise all are combined.
        density: Share of each parameter's task vector kept, the largest by magnitude.

    Returns:
        (...).

    Source:
        TIES, Yadav et al. 2023, arXiv:2306.01708; trimmed a parameter at a time.

    Example:
        >>> import torch
        >>> ties(torch.tensor([[4.0, 1.0], [2.0, -3.0]]), (1.0, 1.0), density=1.0)
        tensor([ 3., -3.])
    """
    if not thinned:
        return disjoint_mean(task_vectors, weights)
    trimmed = torch.stack([each * keep_largest(each, density) for each in task_vectors])
    return disjoint_mean(trimmed, weights)


def disjoint_mean(task_vectors: Tensor, weights: Sequence[float]) -> Tensor:
    """Average, an entry at a time, the task vectors whose sign there is that of their sum; of none, zero.

    Args:
        task_vectors: (checkpoints, ...); zeros take no part.
        weights: Factor of each in the average, not in the election.

    Returns:
        (...).
    """
    elected = torch.where(weighted_sum(task_vectors, (1.0,) * len(task_vectors)) >= 0, 1.0, -1.0)
    agrees = task_vectors.sign() == elected
    total = weighted_sum(torch.where(agrees, task_vectors, 0.0), weights)
    return total / agrees.sum(dim=0).clamp(min=1)
