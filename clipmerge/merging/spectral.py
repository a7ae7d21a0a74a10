"""Singular values and directions of a matrix, the same for any number of threads.

torch computes them, because numpy's linear algebra chooses its own number of threads, which changes
the last bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from clipmerge.files.safetensors import Array
from clipmerge.parallel import one_thread

if TYPE_CHECKING:
    from torch import Tensor

# Squared singular values are exact to about 1e-16 of the largest; at this share of it their
# relative error is 1e-8.
_TINY_SQUARE = 1e-8


def spectral_split(matrix: Array, rank: int) -> tuple[Array, Array]:
    """Split a matrix into the part in its ``rank`` largest singular directions and the rest; more
    than two dimensions are flattened to (rows, all others).
    """
    import torch

    flat = _flatten(matrix)
    with one_thread():
        # eigenvectors of flat @ flat.T are the left singular vectors, at a fraction of an SVD's
        # cost
        _, vectors = torch.linalg.eigh(flat @ flat.T)
        basis = vectors[:, -rank:]
        split = basis @ (basis.T @ flat)
    if len(split) != len(matrix):
        split = split.T
    principal = split.numpy().reshape(matrix.shape)
    principal = principal.astype(matrix.dtype)
    return principal, matrix - principal


def singular_values(matrix: Array) -> Array:
    """Compute the singular values of a matrix, flattened as in `spectral_split`: largest first,
    (min(rows, columns),), float64.
    """
    import torch

    flat = _flatten(matrix)
    with one_thread():
        # several times faster than an SVD, and as exact if no value is tiny
        squares = torch.linalg.eigvalsh(flat @ flat.T)
        least = _TINY_SQUARE * squares[-1]
        values = squares.sqrt().flip(0)
        if squares[0] < least:
            values = torch.linalg.svdvals(flat)
    return np.asarray(values)


def _flatten(matrix: Array) -> Tensor:
    """Convert a tensor to a float64 matrix, transposed if it has more rows than columns."""
    import torch

    wide = matrix.astype(np.float64)
    flat = torch.from_numpy(wide.reshape(len(wide), -1))
    rows, columns = flat.shape
    return flat.T if rows > columns else flat
