"""The formula that every merge is made of, for numpy's arrays and torch's tensors alike.

Every operation is one that IEEE 754 rounds correctly (subtract, multiply, add, one at a time), so the same
inputs give the same bytes in either library, for any number of threads, any chunking and any CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# an array of numpy's or a tensor of torch's: the operators used here mean the same to both
Values = Any


def weighted_change(
    theta_0: Values, finetuned: Sequence[Values], *, alpha: float | Values, weights: Sequence[float] = (1.0,)
) -> Values:
    """Compute alpha * sum_i weights_i * (theta_i - theta_0).

    Args:
        theta_0: Zero-shot entries, any shape, float32 or float64; never written to.
        finetuned: Fine-tuned entries of each checkpoint, same shape and dtype.
        alpha: Mixing coefficient, no unit; an array or tensor broadcasts.
        weights: Factor of each fine-tuned checkpoint.

    Returns:
        The change, same shape and dtype; it is new, and may be written to.
    """
    change = finetuned[0] - theta_0
    if weights[0] != 1:
        change *= weights[0]
    for theta_1, weight in zip(finetuned[1:], weights[1:], strict=True):
        other = theta_1 - theta_0
        other *= weight
        change += other
    change *= alpha
    return change


def copied_input(
    theta_0: Values, finetuned: Sequence[Values], alpha: float | Values, weights: Sequence[float]
) -> Values | None:
    """The input that a merge without a mask equals bit for bit, if there is one.

    Args:
        theta_0: Zero-shot entries.
        finetuned: Fine-tuned entries of each checkpoint.
        alpha: As in `weighted_change`.
        weights: As in `weighted_change`.

    Returns:
        One of the inputs itself: theta_0 at alpha 0, the one theta_i that has a weight at alpha 1; else ``None``.
    """
    if not isinstance(alpha, (int, float)):
        return None
    taken = [(each, weight) for each, weight in zip(finetuned, weights, strict=True) if weight != 0]
    if alpha == 0 or not taken:
        return theta_0
    if alpha == 1 and [weight for _, weight in taken] == [1.0]:
        return taken[0][0]
    return None
