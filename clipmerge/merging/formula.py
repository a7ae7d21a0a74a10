"""The formula of every merge, and the chunks of the output that need no torch: copies, and merges
without masks in the files' float32 or float64.

The formula uses only operations that IEEE 754 rounds correctly (subtract, multiply, add, one at a
time), so the same inputs give the same bytes in numpy and in torch, for any number of threads, any
chunking and any CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from clipmerge.checkpoint import Inputs, Location
from clipmerge.errors import CheckpointError
from clipmerge.families import is_statistic
from clipmerge.files.finite import is_finite, require_finite
from clipmerge.files.safetensors import STORED, Array
from clipmerge.files.writer import BufferProvider

#: Elements merged at a time: in float32, inputs and result stay in a core's cache during all passes
#: of the arithmetic.
CHUNK = 1 << 17

# numpy or torch, and an array or a tensor: the functions and operators used here are the same in
# both.
Library = Any
Values = Any


def weighted_change(
    library: Library,
    theta_0: Values,
    finetuned: Sequence[Values],
    *,
    alpha: float | Values,
    weights: Sequence[float] = (1.0,),
    out: Values | None = None,
) -> Values:
    """Compute alpha * sum_i weights_i * (theta_i - theta_0), perhaps in ``out``; an array as
    ``alpha`` broadcasts.
    """
    change = library.subtract(finetuned[0], theta_0, out=out)
    if weights[0] != 1:
        change *= weights[0]
    for theta_1, weight in zip(finetuned[1:], weights[1:], strict=True):
        other = theta_1 - theta_0
        other *= weight
        change += other
    change *= alpha
    return change


def unchanged_input(
    theta_0: Values, finetuned: Sequence[Values], alpha: float | Values, weights: Sequence[float]
) -> Values | None:
    """The input that equals a merge without a mask bit for bit: theta_0 or the only theta_i with a
    weight.
    """
    if not isinstance(alpha, (int, float)):
        return None
    taken = [
        (theta_1, weight) for theta_1, weight in zip(finetuned, weights, strict=True) if weight != 0
    ]
    if alpha == 0 or not taken:
        return theta_0
    if alpha == 1 and [weight for _, weight in taken] == [1.0]:
        return taken[0][0]
    return None


def chunk_ranges(size: int) -> Iterator[tuple[int, int]]:
    """Divide a tensor into runs of `CHUNK` elements, each given by its start and stop."""
    for start in range(0, size, CHUNK):
        yield start, min(start + CHUNK, size)


def is_sparsifiable(inputs: Inputs, name: str) -> bool:
    """Whether entries of a parameter may be dropped: not in a scalar or in batch norm
    statistics.
    """
    return inputs.entries(name)[0].size > 1 and not is_statistic(name)


def require_finite_inputs(
    inputs: Inputs, name: str, theta_0: Values, finetuned: Sequence[Values]
) -> None:
    """Refuse a parameter that holds NaN or Inf in one of the checkpoints."""
    require_finite(theta_0, name, inputs.zeroshot.source)
    for checkpoint, theta_1 in zip(inputs.finetuned, finetuned, strict=True):
        require_finite(theta_1, name, checkpoint.source)


def overflow_error(name: str, dtype: str) -> CheckpointError:
    """The error for a merge that overflows its dtype."""
    wider = "" if dtype in ("float32", "float64") else "use `dtype=float32`, or "
    return CheckpointError(
        f"tensor {name} overflows {dtype} when merged; {wider}use an alpha in [0, 1] and check the"
        " weights"
    )


def integers_error(name: str, source: str) -> CheckpointError:
    """The error for an integer tensor that differs between checkpoints."""
    return CheckpointError(
        f"{source}: integer tensor {name} differs from the zero-shot one, but integers cannot be"
        " averaged; use the base that was fine-tuned"
    )


#: The dtypes in which numpy is as fast as torch; its rounding to half precision is several times
#: slower.
COMPUTED = frozenset({"F32", "F64"})
_COPIED = COMPUTED | {"I64", "I32", "I16", "I8", "U8", "BOOL"}


def can_copy(dtypes: Sequence[str]) -> bool:
    """Whether numpy can copy and compare tensors of these dtypes."""
    return all(dtype in _COPIED for dtype in dtypes)


def merge_chunks(
    inputs: Inputs, name: str, alpha: float, weights: Sequence[float], reserve: BufferProvider
) -> Iterator[Array]:
    """Merge, without a mask, a parameter of one dtype in `COMPUTED`: 1-D runs, in buffers from
    ``reserve``.
    """
    entry = inputs.entries(name)[0]
    for start, out in _buffers(entry.size, STORED[entry.dtype], reserve):
        theta_0, finetuned = inputs.arrays(name, start, start + len(out))
        unchanged = unchanged_input(theta_0, finetuned, alpha, weights)
        if unchanged is not None:  # NaN and Inf in the other inputs do not affect the result
            require_finite_inputs(inputs, name, theta_0, finetuned)
            np.copyto(out, unchanged)
        else:
            with np.errstate(all="ignore"):
                out = weighted_change(np, theta_0, finetuned, alpha=alpha, weights=weights, out=out)
                out += theta_0
            if not is_finite(out):
                require_finite_inputs(inputs, name, theta_0, finetuned)
                raise overflow_error(name, out.dtype.name)
        yield out
    inputs.release(name)


def copy_chunks(
    name: str, holder: Location, others: Sequence[Location], reserve: BufferProvider
) -> Iterator[Array]:
    """Copy a tensor of one checkpoint in its own dtype, and check the others' tensors of that
    name.
    """
    checkpoint, key = holder
    entry = checkpoint.entries[key]
    for start, out in _buffers(entry.size, STORED[entry.dtype], reserve):
        stop = start + len(out)
        values = checkpoint.array(key, start, stop)
        if values.dtype.kind == "f":
            require_finite(values, name, checkpoint.source)
        for other, other_key in others:
            theirs = other.array(other_key, start, stop)
            if values.dtype.kind == theirs.dtype.kind == "f":
                require_finite(theirs, name, other.source)
            elif not np.array_equal(values, theirs):
                raise integers_error(name, other.source)
        np.copyto(out, values)
        yield out
    for stored, stored_key in (holder, *others):
        stored.release(stored_key)


def _buffers(size: int, dtype: str, reserve: BufferProvider) -> Iterator[tuple[int, Array]]:
    """Divide a tensor into runs that fit the buffers; yields the first element and the buffer of
    each.
    """
    for begin, end in chunk_ranges(size):
        start = begin
        while start < end:
            out = reserve(end - start, dtype)
            yield start, out
            start += len(out)
