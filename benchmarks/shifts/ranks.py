"""Rank correlation, plain and partial."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def kendall(x: Floats, y: Floats) -> float:
    """Kendall's tau-b; NaN if all values of one side are equal.

    Args:
        x: Values, shape (n,).
        y: Values, shape (n,).

    Example:
        >>> kendall(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0]))
        0.3333333333333333
    """
    upper = np.triu_indices(len(x), 1)
    sign_x, sign_y = (np.sign(values[:, None] - values[None, :])[upper] for values in (x, y))
    untied = np.sqrt((sign_x**2).sum() * (sign_y**2).sum())
    return float((sign_x * sign_y).sum() / untied) if untied else float("nan")


def partial_kendall(x: Floats, y: Floats, given: Floats) -> float:
    """Partial Kendall's tau of two variables given a third; NaN if the third fully explains one of
    them.

    Source:
        Kendall 1942, Biometrika 32.
    """
    xy, xz, yz = kendall(x, y), kendall(x, given), kendall(y, given)
    rest = (1 - xz**2) * (1 - yz**2)
    return float((xy - xz * yz) / np.sqrt(rest)) if rest > 1e-12 else float("nan")
