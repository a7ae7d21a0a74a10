"""Drop random entries of each task vector, large ones less often, then elect signs and average like
TIES.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipmerge.combinations.ties import disjoint_mean
from clipmerge.errors import RecipeError
from clipmerge.merging.selection import RandomKey, keep_random, zero_others
from clipmerge.plugins import Density, Share

# Number of entries sorted at a time, in whole rows: sorting takes several times their memory.
_SORTED = 1 << 20


def della(
    task_vectors: Tensor,
    weights: Sequence[float],
    *,
    key: RandomKey,
    thinned: bool = True,
    density: Density = 0.5,
    window: Share = 0.2,
) -> Tensor:
    """Keep entries at random, larger ones in a row more often, and divide each by its probability.

    The probability increases from density - window / 2 for a row's smallest entry to density +
    window / 2 for its largest, in equal steps. Signs are elected and averaged as in TIES. A vector
    is one row.

    Args:
        task_vectors: (checkpoints, ...).
        weights: Factor of each checkpoint; the election ignores it.
        key: Seed and parameter name.
        thinned: Whether entries may be dropped; otherwise all are combined.
        density: Mean probability that an entry is kept.
        window: Difference between the probabilities of a row's largest and smallest entry.

    Returns:
        (...).

    Raises:
        RecipeError: If a probability would be 0 or less, or more than 1.

    Source:
        DELLA (MagPrune), Deep et al. 2024, arXiv:2406.11617.
    """
    check_chances(density, window)
    if not thinned:
        return disjoint_mean(task_vectors, weights)
    for which, each in enumerate(task_vectors):
        chance = _chances(each, density, window)
        zero_others(each, keep_random(each.shape, chance, key.of(which))).div_(chance)
    return disjoint_mean(task_vectors, weights)


def check_chances(density: float = 0.5, window: float = 0.2) -> None:
    """Refuse a window that is too wide for its density.

    Raises:
        RecipeError: If a probability would be 0 or less, or more than 1.
    """
    low, high = density - window / 2, density + window / 2
    if not (low > 0 and high <= 1):
        raise RecipeError(
            f"della: density {density:g} and window {window:g} give probabilities from {low:g} to"
            f" {high:g}, which must lie above 0 and not above 1; choose a smaller window"
        )


def _chances(task_vector: Tensor, density: float, window: float) -> Tensor:
    rows = task_vector.flatten(1) if task_vector.ndim > 1 else task_vector.reshape(1, -1)
    width = rows.shape[1]
    chances = torch.full_like(rows, density)
    at_once = max(1, _SORTED // max(1, width))
    for start in range(0, len(rows) if width > 1 else 0, at_once):
        # a stable sort ranks equal entries by index, in every build
        order = rows[start : start + at_once].abs().argsort(dim=1, stable=True)
        ranks = torch.empty_like(order).scatter_(1, order, torch.arange(width).expand_as(order))
        share = ranks.to(task_vector.dtype) / (width - 1)
        chances[start : start + at_once] = density + window * (share - 0.5)
    return chances.view(task_vector.shape)
