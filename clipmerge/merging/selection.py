"""Select the entries of a tensor to keep: the largest or random ones, in linear time."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace

import numpy as np

from clipmerge.files.safetensors import Array
from clipmerge.types import Shape

#: Random numbers drawn at once: a draw takes 64 times the bytes of its result.
DRAWS = 1 << 20


@dataclass(frozen=True)
class RandomKey:
    """The key of a random mask, which determines it completely."""

    seed: int
    name: str
    which: int | None = None  # number of the fine-tuned checkpoint, if each has its own draws

    def for_checkpoint(self, which: int) -> RandomKey:
        """The key for one of several fine-tuned checkpoints."""
        return replace(self, which=which)

    def generator(self) -> np.random.Philox:
        """A counter-based generator that depends only on this key."""
        which = "" if self.which is None else f"#{self.which}"
        text = f"{self.seed}{which}:{self.name}"
        digest = hashlib.sha256(text.encode()).digest()
        key = int.from_bytes(digest[:16], "little")
        return np.random.Philox(key=key)


def keep_largest(score: Array, density: float) -> Array:
    """Select the entries largest by magnitude, ties by index, so that it is unique; boolean, of the
    same shape.

    Example:
        >>> keep_largest(np.array([1.0, -1.0, 0.0, 1.0]), 0.5)
        array([ True,  True, False, False])
    """
    return keep_top_k(score, max(1, round(density * score.size)))


def keep_top_k(score: Array, count: int) -> Array:
    """Select a number of entries largest by magnitude; of equal ones, those with the lower index;
    same shape.
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
    """Zero in place the entries outside the mask."""
    np.copyto(values, 0, where=~mask)
    return values


def keep_random(shape: Shape, density: float | Array, key: RandomKey) -> Array:
    """Select entries with probability ``density``, one or one per entry; the draws depend on the
    key alone.
    """
    generator = key.generator()
    keep = np.empty(math.prod(shape), dtype=bool)
    # the top 53 bits, so that the limit is exact as a float and density 1 keeps everything
    limits = np.rint(np.asarray(density, np.float64).ravel() * 2**53).astype(np.uint64)
    limits = np.broadcast_to(limits, keep.shape)
    for start in range(0, len(keep), DRAWS):
        chunk = slice(start, start + DRAWS)
        drawn = generator.random_raw(len(keep[chunk])) >> np.uint64(11)
        np.less(drawn, limits[chunk], out=keep[chunk])
    return keep.reshape(shape)
