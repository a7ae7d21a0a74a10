"""Multiply a weight matrix's change by a matrix from the right, which mixes or rescales its
inputs.
"""

from __future__ import annotations

from torch import Tensor

from clipmerge.parallel import one_thread


def right_multiply(change: Tensor, *, score: Tensor | None = None) -> Tensor:
    """Multiply the change by the score, in float64.

    Args:
        change: alpha * task_vector, (outputs, inputs) with a score.
        score: (inputs, inputs); a parameter without a score, such as a bias, keeps its change.

    Returns:
        change @ score, same shape as the change.

    Source:
        RegMean's treatment of a linear map, Jin et al. 2022, arXiv:2212.09849.

    Example:
        >>> import torch
        >>> right_multiply(torch.tensor([[1.0, 2.0]]), score=torch.tensor([[0.5, 0.0], [0.0, 1.0]]))
        tensor([[0.5000, 2.0000]])
    """
    if score is None:
        return change
    with one_thread():
        return (change.double() @ score.double()).to(change.dtype)
