"""Keep each task vector's largest entries, elect one sign per entry, and average the values with
that sign.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipmerge.merging.selection import keep_largest, zero_others
from clipmerge.merging.tensor import weighted_sum
from clipmerge.plugins import Density

# Number of entries averaged at a time: they stay in a core's cache.
_RUN = 1 << 16


def ties(
    task_vectors: Tensor, weights: Sequence[float], *, thinned: bool = True, density: Density = 0.2
) -> Tensor:
    """Trim, elect sign, disjoint mean.

    Args:
        task_vectors: (checkpoints, ...).
        weights: Factor of each checkpoint; the election ignores it.
        thinned: Whether entries may be dropped; otherwise all are combined.
        density: Share of each parameter's task vector kept, the largest by magnitude.

    Returns:
        (...).

    Source:
        TIES, Yadav et al. 2023, arXiv:2306.01708; trimmed per parameter.

    Example:
        >>> import torch
        >>> ties(torch.tensor([[4.0, 1.0], [2.0, -3.0]]), (1.0, 1.0), density=1.0)
        tensor([ 3., -3.])
    """
    if not thinned:
        return disjoint_mean(task_vectors, weights)
    for each in task_vectors:
        zero_others(each, keep_largest(each, density))
    return disjoint_mean(task_vectors, weights)


def disjoint_mean(task_vectors: Tensor, weights: Sequence[float]) -> Tensor:
    """Average, entry by entry, the task vectors whose sign is that of their sum; zero if there are
    none.

    Args:
        task_vectors: (checkpoints, ...); zeros are ignored.
        weights: Factor of each task vector in the average, not in the election.

    Returns:
        (...).
    """
    flat = task_vectors.reshape(len(task_vectors), -1)
    mean = torch.empty_like(flat[0])
    for start in range(0, len(mean), _RUN):
        run, out = flat[:, start : start + _RUN], mean[start : start + _RUN]
        elected = torch.where(weighted_sum(run, (1.0,) * len(run)) >= 0, 1.0, -1.0)
        agrees = run.sign() == elected
        total = weighted_sum(torch.where(agrees, run, 0.0), weights)
        torch.div(total, agrees.sum(dim=0).clamp(min=1), out=out)
    return mean.view(task_vectors.shape[1:])
