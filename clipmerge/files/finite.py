"""Find NaN and Inf in weights, and refuse them by name; for numpy arrays and torch tensors
alike.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from clipmerge.errors import CheckpointError


class NotFiniteError(CheckpointError):
    """Weights that hold NaN or Inf, which nothing can merge."""


def is_finite(values: Any) -> bool:
    """Whether no entry is NaN or Inf; empty values are finite."""
    with np.errstate(all="ignore"):
        # NaN and Inf survive a sum, the cheapest pass there is. If the sum is not finite, entries
        # are checked one by one, because finite ones may have overflowed: a difference with itself
        # is not zero for NaN and Inf alone
        return math.isfinite(float(values.sum())) or bool((values - values == 0).all())


def require_finite(values: Any, name: str, source: str) -> None:
    """Refuse a parameter that holds NaN or Inf."""
    if not is_finite(values):
        kind = "NaN" if bool((values != values).any()) else "Inf"
        raise NotFiniteError(
            f"{source}: tensor {name} holds {kind}; the checkpoint is broken, merge an earlier one"
        )
