"""Weight the principal and the remaining singular directions of the change differently."""

from __future__ import annotations

from clipmerge.files.safetensors import Array
from clipmerge.merging.spectral import spectral_split
from clipmerge.plugins import Alpha, Count


def spectral(change: Array, *, rank: Count = 1, high: Alpha = 1.0, low: Alpha = 1.0) -> Array:
    """Scale the ``rank`` largest singular directions by ``high`` and the others by ``low``.

    Tensors of more than two dimensions are treated as matrices with the first dimension as rows.

    Args:
        change: alpha * task_vector, at least 1-D; a vector has one direction and is scaled by
            ``high``.
        rank: Number of principal directions.
        high: Factor of the principal part.
        low: Factor of the rest.

    Returns:
        high * principal part + low * rest, same shape.

    Source:
        MonoSoup, arXiv:2602.09689.
    """
    if change.ndim < 2:
        return change * high
    principal, rest = spectral_split(change, rank)
    return principal * high + rest * low
