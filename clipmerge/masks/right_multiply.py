"""Multiply a weight matrix's change by a matrix from the right, which mixes or rescales its
inputs.
"""

from __future__ import annotations

from clipmerge.files.safetensors import Array
from clipmerge.parallel import one_thread


def right_multiply(change: Array, score: Array | None = None) -> Array:
    """Multiply the change by the matrix ``score`` from the right, in float64.

    Args:
        change: alpha * task_vector, (outputs, inputs) with a score.
        score: (inputs, inputs); a parameter without a score, such as a bias, keeps its change.

    Returns:
        change @ score, same shape as the change.

    Source:
        The merge of a linear map by RegMean, Jin et al. 2022, arXiv:2212.09849.

    Example:
        >>> import numpy as np
        >>> right_multiply(np.array([[1.0, 2.0]]), score=np.array([[0.5, 0.0], [0.0, 1.0]]))
        array([[0.5, 2. ]])
    """
    if score is None:
        return change
    import torch

    with one_thread():
        product = torch.from_numpy(change).double() @ torch.from_numpy(score).double()
    return product.numpy().astype(change.dtype)
