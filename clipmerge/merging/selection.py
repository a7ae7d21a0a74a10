"""Select which entries of a tensor a mask keeps: the largest ones, or random ones."""

from __future__ import annotations

import hashlib
import math

import numpy as np

from clipmerge.files.safetensors import Array
from clipmerge.types import Shape

#: Random numbers drawn at once: a draw takes 64 times the bytes of its result.
DRAWS = 1 << 20


def keep_largest(score: Array, density: float) -> Array:
    """Select this share of the entries, the largest by magnitude; ties go to lower indices.

    Returns:
        Boolean array of the same shape; at least one entry is True.

    Example:
        >>> keep_largest(np.array([1.0, -1.0, 0.0, 1.0]), 0.5)
        array([ True,  True, False, False])
    """
    return keep_top_k(score, max(1, round(density * score.size)))


def keep_top_k(score: Array, count: int) -> Array:
    """Select this number of entries, the largest by magnitude; ties go to lower indices.

    Returns:
        Boolean array of the same shape.
    """
    if count <= 0 or count >= score.size:
        return np.full(score.shape, count > 0)
    sizes = np.abs(score.ravel())
    threshold = np.partition(sizes, len(sizes) - count)[len(sizes) - count]
    selected = sizes >= threshold
    equal = np.flatnonzero(sizes == threshold)
    surplus = np.count_nonzero(selected) - count
    selected[equal[len(equal) - surplus :]] = False
    return np.asarray(selected.reshape(score.shape))


def zero_others(values: Array, mask: Array) -> Array:
    """Set the entries outside the mask to zero, in place."""
    np.copyto(values, 0, where=~mask)
    return values


def keep_random(shape: Shape, density: float | Array, key: str) -> Array:
    """Select each entry with probability ``density``, a number or an array with one per entry.

    The draws depend on the key alone.
    """
    digest = hashlib.sha256(key.encode()).digest()
    generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    keep = np.empty(math.prod(shape), dtype=bool)
    # the top 53 bits, so that the limit is exact as a float and density 1 keeps everything
    limits = np.rint(np.asarray(density, np.float64).ravel() * 2**53).astype(np.uint64)
    limits = np.broadcast_to(limits, keep.shape)
    for start in range(0, len(keep), DRAWS):
        chunk = slice(start, start + DRAWS)
        drawn = generator.random_raw(len(keep[chunk])) >> np.uint64(11)
        np.less(drawn, limits[chunk], out=keep[chunk])
    return keep.reshape(shape)
