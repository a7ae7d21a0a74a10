"""Which way a pair of checkpoints grew: the change of a matrix's length against how far it moved.

A step of training is about at right angles to the weights, so a matrix that moves gets longer, by half the square of
its relative movement; seen backwards, it gets shorter by the same amount. Weight decay and a learning rate of each
block's own shorten all matrices of one block alike. So matrices are compared within their block: there only the
movement differs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import groupby

# Minimum number of degrees of freedom for a conclusion.
_LEAST = 8


def shrinkage(matrices: Iterable[tuple[str, float, float]]) -> tuple[float, float] | None:
    """Regress the loss of length on the squared movement, with a constant per block.

    Both are divided by the movement, which is what their scatter is proportional to.

    Args:
        matrices: For each matrix: its block; ||tau|| / ||theta_0||, above 0; and tau's part along theta_0, in lengths
            of theta_0. Matrices of one block follow each other.

    Returns:
        The slope and its standard error: a slope of 0 or less where theta_1 started from theta_0, of 1 or more where
        theta_0 started from theta_1. ``None`` with too few matrices.

    Example:
        >>> forwards = [("vision.0", moved, -0.01) for moved in (0.1, 0.2, 0.3, 0.4)]  # a decay of 1%
        >>> slope, error = shrinkage([(f"vision.{n}", moved, along) for n in range(4) for _, moved, along in forwards])
        >>> abs(slope) < 1e-12
        True
    """
    count, numbers = 0, [0.0, 0.0, 0.0]
    for _, group in groupby(matrices, key=lambda each: each[0]):
        members = [(moved, -along) for _, moved, along in group]
        count += len(members) - 1
        numbers = [total + each for total, each in zip(numbers, _sums(members), strict=True)]
    (squares, products, rest), free = numbers, count - 1
    if free < _LEAST or squares <= 0:
        return None
    slope = products / squares
    return slope, math.sqrt(max(rest - slope * products, 0.0) / free / squares)


def _sums(members: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Weighted sums about the weighted means of one block: of x x, x y and y y, for x the squared movement."""
    weights = [1 / moved**2 for moved, _ in members]
    x, y = [moved**2 for moved, _ in members], [lost for _, lost in members]
    middle_x, middle_y = (sum(map(float.__mul__, weights, values)) / sum(weights) for values in (x, y))
    rows = [(weight, a - middle_x, b - middle_y) for weight, a, b in zip(weights, x, y, strict=True)]
    return (
        sum(weight * a * a for weight, a, _ in rows),
        sum(weight * a * b for weight, a, b in rows),
        sum(weight * b * b for weight, _, b in rows),
    )
