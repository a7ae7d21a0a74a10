"""Select the entries of a tensor to keep: the largest or random ones, in linear time, piece by piece."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from clipmerge.files.safetensors import Array

#: Random numbers drawn at once: a draw takes 64 times the bytes of its result.
DRAWS = 1 << 20
#: Elements processed at once: they stay in a core's cache.
PIECE = 1 << 17
_DIGIT_BITS = 16
_DIGITS = 1 << _DIGIT_BITS


@dataclass(frozen=True)
class RandomKey:
    """The key of a random mask, which determines it completely."""

    seed: int
    name: str
    which: int | None = None  # number of the fine-tuned checkpoint, if each has its own draws

    def of(self, which: int) -> RandomKey:
        """The key for one of several fine-tuned checkpoints."""
        return replace(self, which=which)

    def generator(self) -> np.random.Philox:
        """A counter-based generator that depends only on this key."""
        seed = f"{self.seed}" if self.which is None else f"{self.seed}#{self.which}"
        digest = hashlib.sha256(f"{seed}:{self.name}".encode()).digest()
        return np.random.Philox(key=int.from_bytes(digest[:16], "little"))


def keep_largest(score: Tensor, density: float, *, piece: int = PIECE) -> Tensor:
    """Select the entries largest by magnitude, ties by index, so that it is unique; boolean, of the same shape.

    Example:
        >>> keep_largest(torch.tensor([1.0, -1.0, 0.0, 1.0]), 0.5)
        tensor([ True,  True, False, False])
    """
    return keep_first(score, max(1, round(density * score.numel())), piece=piece)


def keep_first(score: Tensor, count: int, *, piece: int = PIECE) -> Tensor:
    """Select a number of entries largest by magnitude; of equal ones, those with the lower index; same shape."""
    size = score.numel()
    if count <= 0 or count >= size:
        return torch.full_like(score, count > 0, dtype=torch.bool)
    flat = score.flatten() if score.dtype in (torch.float32, torch.float64) else score.flatten().float()
    threshold, above = _threshold(flat.numpy(), count, piece)
    selected = np.empty(size, dtype=bool)
    equal = count - above
    for start, bits in _magnitudes(flat.numpy(), piece):
        part = selected[start : start + len(bits)]
        np.greater(bits, threshold, out=part)
        if equal:
            first = np.flatnonzero(bits == threshold)[:equal]
            part[first] = True
            equal -= len(first)
    return torch.from_numpy(selected).view(score.shape)


def zero_others(values: Tensor, kept: Tensor) -> Tensor:
    """Zero in place the entries that are not kept; a product would first convert the whole selection to numbers."""
    return values.masked_fill_(kept.logical_not_(), 0.0)


def _magnitudes(values: Array, piece: int) -> Iterator[tuple[int, Array]]:
    """Iterate over the magnitudes as integers of the same order: a float's bits without the sign."""
    bits: Array = values.view(np.uint64 if values.itemsize == 8 else np.uint32)
    without_sign = (1 << (8 * values.itemsize - 1)) - 1
    for start in range(0, len(bits), piece):
        yield start, bits[start : start + piece] & without_sign


def _threshold(values: Array, count: int, piece: int) -> tuple[int, int]:
    """Find the ``count``-th largest magnitude, as bits, and the number of entries above it.

    It is found by radix selection, digit by digit from the top, among the numbers that agree so far: no value is moved,
    and no temporary of the tensor's length is made.
    """
    threshold = above = 0
    width = 8 * values.itemsize
    for shift in range(width - _DIGIT_BITS, -1, -_DIGIT_BITS):
        counts = np.zeros(_DIGITS, np.int64)
        for _, bits in _magnitudes(values, piece):
            agreeing = bits if shift + _DIGIT_BITS == width else bits[bits >> (shift + _DIGIT_BITS) == threshold]
            digits = (agreeing >> shift) & (_DIGITS - 1)
            counts += np.bincount(digits.astype(np.int64), minlength=_DIGITS)
        at_least = counts[::-1].cumsum()  # number of entries with the largest digit, one of the two largest, ...
        rank = int(np.searchsorted(at_least, count - above))
        digit = _DIGITS - 1 - rank
        above += int(at_least[rank] - counts[digit])
        threshold = threshold << _DIGIT_BITS | digit
    return threshold, above


def keep_random(shape: torch.Size, density: float | Tensor, key: RandomKey, *, draws: int = DRAWS) -> Tensor:
    """Select entries with probability ``density``, one or one per entry; the draws depend on the key alone."""
    generator = key.generator()
    # use the top 53 bits, so that the limit is exact as a float and density 1 keeps everything
    chances = density.double().flatten().numpy() if isinstance(density, Tensor) else np.array([density])
    keep = np.empty(math.prod(shape), dtype=bool)
    for start in range(0, len(keep), draws):
        part = keep[start : start + draws]
        chance = chances if len(chances) == 1 else chances[start : start + draws]
        limit = np.rint(chance * 2**53).astype(np.uint64)
        np.less(generator.random_raw(len(part)) >> np.uint64(11), limit, out=part)
    return torch.from_numpy(keep).view(shape)
