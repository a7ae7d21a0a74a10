"""Singular values and directions of one matrix, exact enough, and the same for any number of
threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipmerge.parallel import one_thread

# Squared singular values are exact to about 1e-16 of the largest; at this share of it their
# relative error is 1e-8.
_TINY_SQUARE = 1e-8


def spectral_split(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Split a matrix, flattened to two dimensions, into its ``rank`` largest singular directions
    and the rest.
    """
    flat = matrix.flatten(1).double()
    transposed = flat.shape[0] > flat.shape[1]
    flat = flat.T if transposed else flat
    with one_thread():
        # eigenvectors of flat @ flat.T are the left singular vectors, at a fraction of an SVD's
        # cost
        basis = torch.linalg.eigh(flat @ flat.T).eigenvectors[:, -rank:]
        principal = basis @ (basis.T @ flat)
    principal = (principal.T if transposed else principal).reshape(matrix.shape).to(matrix.dtype)
    return principal, matrix - principal


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values of a matrix, largest first: (min(rows, columns),), float64; flattened as in
    `spectral_split`.
    """
    flat = matrix.flatten(1).double()
    flat = flat.T if flat.shape[0] > flat.shape[1] else flat
    with one_thread():
        # several times faster than an SVD, and as exact if no value is tiny
        squares = torch.linalg.eigvalsh(flat @ flat.T)
        if squares[0] >= _TINY_SQUARE * squares[-1]:
            values: Tensor = squares.sqrt().flip(0)
        else:
            values = torch.linalg.svdvals(flat)
    return values
