"""Keep random entries of the change, the large ones more often, and scale them up to compensate for
the others.
"""

from __future__ import annotations

import numpy as np

from clipmerge.errors import UsageError
from clipmerge.files.safetensors import Array
from clipmerge.merging.selection import keep_random, zero_others
from clipmerge.plugins import Density, Share


def mag_prune(change: Array, key: str, *, density: Density = 1.0, window: Share = 0.2) -> Array:
    """Keep each entry with a probability that rises with its rank in its row, and divide it by that
    probability.

    The probability rises in equal steps from density - window / 2 for a row's smallest entry to
    density + window / 2 for its largest. A vector is one row.

    Args:
        change: alpha * task_vector, any shape.
        key: Seed and parameter name.
        density: Mean probability that an entry is kept.
        window: Difference between the probabilities of a row's largest and smallest entry.

    Returns:
        The change with kept entries scaled and the others zero, same shape.

    Raises:
        UsageError: If a probability would be 0 or less, or more than 1.

    Source:
        MagPrune of DELLA, Deep et al. 2024, arXiv:2406.11617.
    """
    require_probabilities(density, window)
    rows = change.reshape(len(change) if change.ndim > 1 else 1, -1)
    probabilities = np.full_like(rows, density)
    width = rows.shape[1]
    if width > 1:
        ranks = np.arange(width, dtype=rows.dtype) / (width - 1)
        rising = density + window * (ranks - 0.5)
        # a stable sort ranks equal entries by index
        order = np.abs(rows).argsort(axis=1, kind="stable")
        np.put_along_axis(probabilities, order, rising[None], axis=1)
    zero_others(rows, keep_random(rows.shape, probabilities, key))
    rows /= probabilities
    return rows.reshape(change.shape)


def require_probabilities(density: float, window: float) -> None:
    """Raise an error if a window is so wide that a probability would leave (0, 1]."""
    low, high = density - window / 2, density + window / 2
    if not (low > 0 and high <= 1):
        raise UsageError(
            f"density {density:g} and window {window:g} give probabilities from {low:g} to"
            f" {high:g}, which must lie above 0 and not above 1; choose a smaller window"
        )
