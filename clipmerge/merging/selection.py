"""Select the entries of a tensor to keep: the largest or random ones, in linear time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clipmerge.files.safetensors import Array
from clipmerge.types import Shape

#: Random numbers drawn at once: a draw takes 64 times the bytes of its result.
DRAWS = 1 << 20
# Magnitudes computed at once: they stay in a core's cache.
_RUN = 1 << 17
# Entries in the sample, and how many positions of the sorted sample the search reaches to either
# side of the expected one: four standard deviations if the entries are in random order.
_SAMPLE, _MARGIN = 1 << 14, 1 << 8


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
        seed = f"{self.seed}" if self.which is None else f"{self.seed}#{self.which}"
        digest = hashlib.sha256(f"{seed}:{self.name}".encode()).digest()
        return np.random.Philox(key=int.from_bytes(digest[:16], "little"))


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
    values = score.ravel()
    threshold = _nth_largest(values, count)
    selected = np.empty(values.size, dtype=bool)
    ties = []
    for start, run in _magnitudes(values):
        np.greater_equal(run, threshold, out=selected[start : start + _RUN])
        ties.append(start + np.flatnonzero(run == threshold))
    equal = np.concatenate(ties)
    selected[equal[len(equal) + count - np.count_nonzero(selected) :]] = False
    return selected.reshape(score.shape)


def _nth_largest(values: Array, count: int) -> Any:
    """The ``count``-th largest magnitude, sought between two values of a sample; among all entries
    if it is not there.

    Partitioning all entries takes a copy of them, and twice as long.
    """
    sample = np.sort(np.abs(values[:: max(1, len(values) // _SAMPLE)]))
    index = len(sample) * (len(values) - count) // len(values)
    low, high = sample[max(0, index - _MARGIN)], sample[min(index + _MARGIN, len(sample) - 1)]
    near = np.concatenate([run[(low <= run) & (run <= high)] for _, run in _magnitudes(values)])
    rank = len(near) - count + sum(np.count_nonzero(run > high) for _, run in _magnitudes(values))
    if not 0 <= rank < len(near):
        near = np.abs(values)
        rank = len(values) - count
    return np.partition(near, rank)[rank]


def _magnitudes(values: Array) -> Iterator[tuple[int, Array]]:
    """The magnitudes run by run, each with the index of its first entry."""
    return ((start, np.abs(values[start : start + _RUN])) for start in range(0, len(values), _RUN))


def zero_others(values: Array, mask: Array) -> Array:
    """Zero in place the entries outside the mask."""
    np.copyto(values, 0, where=~mask)
    return values


def keep_random(
    shape: Shape, density: float | Array, key: RandomKey, *, draws: int = DRAWS
) -> Array:
    """Select entries with probability ``density``, one or one per entry; the draws depend on the
    key alone.
    """
    generator = key.generator()
    # use the top 53 bits, so that the limit is exact as a float and density 1 keeps everything
    chances = np.asarray(density, np.float64).ravel()
    keep = np.empty(math.prod(shape), dtype=bool)
    for start in range(0, len(keep), draws):
        part = keep[start : start + draws]
        chance = chances if len(chances) == 1 else chances[start : start + draws]
        limit = np.rint(chance * 2**53).astype(np.uint64)
        np.less(generator.random_raw(len(part)) >> np.uint64(11), limit, out=part)
    return keep.reshape(shape)
