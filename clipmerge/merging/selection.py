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
        seed = str(self.seed)
        if self.which is not None:
            seed += f"#{self.which}"
        text = f"{seed}:{self.name}"
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
    values = score.ravel()
    threshold = _nth_largest(values, count)
    selected = np.empty(values.size, dtype=bool)
    ties = []
    for start, run in _magnitudes(values):
        stop = start + len(run)
        np.greater_equal(run, threshold, out=selected[start:stop])
        ties.append(start + np.flatnonzero(run == threshold))
    equal = np.concatenate(ties)
    surplus = np.count_nonzero(selected) - count
    dropped = equal[len(equal) - surplus :]
    selected[dropped] = False
    return selected.reshape(score.shape)


def _nth_largest(values: Array, count: int) -> Any:
    """The ``count``-th largest magnitude, sought between two values of a sample; among all entries
    if it is not there.

    Partitioning all entries takes a copy of them, and twice as long.
    """
    total = len(values)
    step = max(1, total // _SAMPLE)
    sample = np.abs(values[::step])
    sample.sort()
    index = len(sample) * (total - count) // total
    last = len(sample) - 1
    low = sample[max(0, index - _MARGIN)]
    high = sample[min(index + _MARGIN, last)]
    found = []
    above = 0
    for _, run in _magnitudes(values):
        is_near = (low <= run) & (run <= high)
        found.append(run[is_near])
        above += int(np.count_nonzero(run > high))
    near = np.concatenate(found)
    rank = len(near) + above - count
    if not 0 <= rank < len(near):
        near = np.abs(values)
        rank = total - count
    return np.partition(near, rank)[rank]


def _magnitudes(values: Array) -> Iterator[tuple[int, Array]]:
    """The magnitudes run by run, each with the index of its first entry."""
    for start in range(0, len(values), _RUN):
        run = values[start : start + _RUN]
        yield start, np.abs(run)


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
    limits = np.rint(chances * 2**53).astype(np.uint64)
    for start in range(0, len(keep), draws):
        part = keep[start : start + draws]
        drawn = generator.random_raw(len(part))
        drawn >>= np.uint64(11)
        limit = limits
        if len(limits) > 1:
            limit = limits[start : start + draws]
        np.less(drawn, limit, out=part)
    return keep.reshape(shape)
