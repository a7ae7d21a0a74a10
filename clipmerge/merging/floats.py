"""Convert arrays between float16 or bfloat16 and float32, by operations on their bits.

numpy has no bfloat16, and converts float16 slowly, one entry at a time.
"""

from __future__ import annotations

import math

import numpy as np

from clipmerge.files.safetensors import STORED, Array

# A float32 has 13 more bits of fraction than a float16, and a larger bias of the exponent.
_HALF_SHIFT = 13
_HALF_BIAS = 127 - 15
# Added to the bits of a float32, it rounds them to a float16's fraction, and subtracts the
# difference of the biases from the exponent.
_HALF_ROUNDING = np.uint32((1 << 32) + 0xFFF - (_HALF_BIAS << 23))
# Added to a number below float16's normal range, it rounds the number to a multiple of 2 ** -24,
# the distance of float16 numbers there.
_HALF = np.float32(0.5)
_SMALLEST_NORMAL = np.float32(2.0**-14)

#: Smallest values that overflow when they are rounded to a dtype.
LIMITS = {
    # halfway from the largest number to the one that would follow it
    "BF16": float(np.uint32(0x7F7F8000).view(np.float32)),
    "F16": 65520.0,
}


def widen(stored: Array, dtype: str) -> Array:
    """Convert stored float16 or bfloat16 values to float32; other values are returned unchanged.

    Example:
        >>> widen(np.array([0x3F80], np.uint16), "BF16"), widen(np.array([1], np.float16), "F16")
        (array([1.], dtype=float32), array([1.], dtype=float32))
    """
    if dtype == "BF16":
        bits = stored.astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    if dtype != "F16":
        return stored
    signed = stored.view(np.int16).astype(np.int32)
    signed <<= _HALF_SHIFT
    signed &= np.int32(-0x70000001)  # keep sign, exponent and fraction
    values: Array = signed.view(np.float32)
    values *= np.float32(2.0**_HALF_BIAS)
    is_finite = np.abs(values) < 65536  # Inf and NaN are large now
    return values if is_finite.all() else stored.astype(np.float32)


def narrow(values: Array, dtype: str) -> Array:
    """Round values to a stored dtype, ties to even; bfloat16 is returned as its bits.

    Example:
        >>> narrow(np.array([1.0], np.float32), "BF16") == 0x3F80
        array([ True])
    """
    if dtype not in ("BF16", "F16"):
        return values.astype(STORED[dtype], copy=False)
    values = values.astype(np.float32, copy=False)
    if dtype == "BF16":
        bits = values.view(np.uint32)
        rounded = bits >> 16
        rounded &= 1
        rounded += bits
        rounded += 0x7FFF
        rounded >>= 16
        return rounded.astype(np.uint16)
    sign = values.view(np.uint32) >> 16
    sign &= 0x8000
    size = np.abs(values)
    bits = size.view(np.uint32)
    rounded = bits >> _HALF_SHIFT
    rounded &= 1
    rounded += bits
    rounded += _HALF_ROUNDING
    rounded >>= _HALF_SHIFT
    small = np.flatnonzero(size < _SMALLEST_NORMAL)
    shifted = size[small] + _HALF
    rounded[small] = shifted.view(np.uint32) - _HALF.view(np.uint32)
    rounded |= sign
    half: Array = rounded.astype(np.uint16).view(np.float16)
    return half


def fits(values: Array, dtype: str) -> bool:
    """Whether all values are finite, and remain finite when rounded to a stored dtype."""
    limit = LIMITS.get(dtype, math.inf)
    # NaN passes through minimum and maximum, and then fails both comparisons
    low = values.min(initial=0)
    high = values.max(initial=0)
    return bool(-limit < low and high < limit)
