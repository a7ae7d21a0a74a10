"""Drop the singular directions of each matrix's change that look like noise."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from clipmerge.files.safetensors import Array
from clipmerge.methods import Decision, Task
from clipmerge.methods._matrices import Split, split_matrices
from clipmerge.plugins import Alpha
from clipmerge.types import Shape

#: Matrices with fewer entries stay whole, as in the authors' code.
_SMALLEST = 1024


def dg_hard(task: Task, *, alpha: Alpha = 1.0) -> Decision:
    """Keep the directions of each task vector whose singular value is above a threshold.

    For an m x n matrix with singular values s and beta = min(m, n) / max(m, n), the threshold is
    omega(beta) median(s) / mu(beta): optimal where noise of unknown strength was added to a matrix
    of low rank. omega(beta)^2 = 2 (beta + 1) + 8 beta / (beta + 1 + sqrt(beta^2 + 14 beta + 1)),
    and mu(beta)^2 is the median of the Marchenko-Pastur distribution. Vectors, kernels of
    convolutions and matrices with fewer than 1,024 entries stay whole. Data-free.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        alpha: Coefficient of the kept directions and of parameters that stay whole; 1 is the
            authors' method.

    Returns:
        One split per matrix, as options of the ``spectral`` mask.

    Source:
        DG-Hard, arXiv:2605.20296, with the threshold of Gavish and Donoho, arXiv:1305.5870. Of an
        even number of singular values, the median is the lower one, as in the authors' code.
    """
    return split_matrices(task, _split_at_threshold, alpha=alpha, is_split=_is_large_matrix)


def _is_large_matrix(shape: Shape) -> bool:
    """Whether a parameter is a matrix with enough entries to be split."""
    return len(shape) == 2 and math.prod(shape) >= _SMALLEST


def _split_at_threshold(s: Array, shape: Shape) -> Split:
    """Keep the directions whose singular value is above the noise, and drop the others."""
    median = float(s[len(s) // 2])
    beta = min(shape) / max(shape)
    is_signal = s > _noise_threshold(beta) * median
    rank = int(is_signal.sum())
    return {"rank": max(rank, 1), "high": float(rank > 0), "low": 0.0}


@cache
def _noise_threshold(beta: float) -> float:
    """Compute omega(beta) / mu(beta). The median is found by the midpoint rule over an angle, in
    which the density is smooth.
    """
    root = math.sqrt(beta**2 + 14 * beta + 1)
    omega_squared = 2 * (beta + 1) + 8 * beta / (beta + 1 + root)
    edges = np.linspace(0, math.pi, 20_001)
    middles = (edges[1:] + edges[:-1]) / 2
    # with x = 1 + beta + 2 sqrt(beta) cos(angle), the density of x is sin^2(angle) / x
    width = 2 * math.sqrt(beta)
    x = 1 + beta + width * np.cos(middles)
    mass = np.sin(middles) ** 2 / x
    above = np.concatenate([[0.0], np.cumsum(mass)])
    half = above[-1] / 2
    median_angle = np.interp(half, above, edges)
    mu_squared = 1 + beta + width * math.cos(median_angle)
    return math.sqrt(omega_squared / mu_squared)
