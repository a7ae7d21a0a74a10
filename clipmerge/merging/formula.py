"""The formula of every merge.

It uses only operations that IEEE 754 rounds correctly (subtract, multiply, add, one at a time), so
the same inputs give the same bytes in numpy and in torch, for any number of threads, any chunking
and any CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# numpy or torch, and an array or a tensor: the functions and operators used here are the same in
# both.
Library = Any
Values = Any


def weighted_change(
    library: Library,
    theta_0: Values,
    finetuned: Sequence[Values],
    *,
    alpha: float | Values,
    weights: Sequence[float] = (1.0,),
    out: Values | None = None,
) -> Values:
    """Compute alpha * sum_i weights_i * (theta_i - theta_0), perhaps in ``out``; an array as
    ``alpha`` broadcasts.
    """
    change = library.subtract(finetuned[0], theta_0, out=out)
    if weights[0] != 1:
        change *= weights[0]
    for theta_1, weight in zip(finetuned[1:], weights[1:], strict=True):
        other = theta_1 - theta_0
        other *= weight
        change += other
    change *= alpha
    return change


def unchanged_input(
    theta_0: Values, finetuned: Sequence[Values], alpha: float | Values, weights: Sequence[float]
) -> Values | None:
    """The input that equals a merge without a mask bit for bit: theta_0 or the only theta_i with a
    weight.
    """
    if not isinstance(alpha, (int, float)):
        return None
    taken = [
        (theta_1, weight) for theta_1, weight in zip(finetuned, weights, strict=True) if weight != 0
    ]
    if alpha == 0 or not taken:
        return theta_0
    if alpha == 1 and [weight for _, weight in taken] == [1.0]:
        return taken[0][0]
    return None
