"""Chunks of the output that need no torch: straight merges in the files' own float32 or float64, and copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from clipmerge.checkpoint import Checkpoint, Inputs
from clipmerge.errors import CheckpointError
from clipmerge.families import is_counter, is_statistic
from clipmerge.files.finite import is_finite, require_finite
from clipmerge.files.safetensors import STORED, Array
from clipmerge.merging.formula import Values, copied_input, weighted_change

#: Elements merged at a time: in float32, inputs and result stay in a core's cache through the passes of the arithmetic.
CHUNK = 1 << 17
#: Gives the place for elements to come, for a number of them and a dtype; it may be for fewer.
Room = Callable[[int, str], Array]
#: What numpy computes with as fast as torch; rounding to half precision it does several times slower.
COMPUTED = frozenset({"F32", "F64"})
_COPIED = COMPUTED | {"I64", "I32", "I16", "I8", "U8", "BOOL"}


def runs(size: int, length: int = CHUNK) -> Iterator[tuple[int, int]]:
    """Cut a tensor of a size into runs of elements, each given by its start and stop."""
    for start in range(0, size, length):
        yield start, min(start + length, size)


def may_be_thinned(inputs: Inputs, name: str) -> bool:
    """Whether entries of a parameter may be left out: not of a scalar, nor of batch norm's statistics.

    Args:
        inputs: The checkpoints.
        name: Canonical parameter name.
    """
    return inputs.entries(name)[0].size > 1 and not is_statistic(name)


def copies(dtypes: Sequence[str]) -> bool:
    """Whether tensors of these dtypes, the output's among them, can be copied and compared here."""
    return all(dtype in _COPIED for dtype in dtypes)


def merging(inputs: Inputs, name: str, alpha: float, weights: Sequence[float], room: Room) -> Iterator[Array]:
    """Merge a parameter that every checkpoint and the output have in one dtype of `COMPUTED`, without a mask.

    Args:
        inputs: The checkpoints.
        name: Canonical parameter name.
        alpha: Mixing coefficient, no unit.
        weights: Factor of each fine-tuned checkpoint.
        room: Where to compute.

    Yields:
        Runs of merged elements in memory order, 1-D.

    Raises:
        CheckpointError: If an input holds NaN or Inf, or the merge overflows.
    """
    entry = inputs.entries(name)[0]
    for start, out in _places(entry.size, STORED[entry.dtype], room):
        theta_0, finetuned = inputs.arrays(name, start, start + len(out))
        copied = copied_input(theta_0, finetuned, alpha, weights)
        if copied is not None:  # NaN and Inf of the other inputs would not show in it
            require_finite_inputs(inputs, name, theta_0, finetuned)
            np.copyto(out, copied)
        else:
            with np.errstate(all="ignore"):
                out = weighted_change(np, theta_0, finetuned, alpha=alpha, weights=weights, out=out)
                out += theta_0
            if not is_finite(out):
                require_finite_inputs(inputs, name, theta_0, finetuned)
                raise overflow(name, out.dtype.name)
        yield out
    inputs.release(name)


def _places(size: int, dtype: str, room: Room) -> Iterator[tuple[int, Array]]:
    """Cut a tensor into runs for which there is room; the first element and the place of each."""
    for begin, end in runs(size):
        start = begin
        while start < end:
            out = room(end - start, dtype)
            yield start, out
            start += len(out)


def copying(inputs: Inputs, name: str, room: Room) -> Iterator[Array]:
    """Copy a zero-shot tensor in its own dtype, and look at what the other checkpoints have in its place.

    Args:
        inputs: The checkpoints.
        name: Canonical name.
        room: Where to put them.

    Yields:
        Runs of elements in memory order, 1-D.

    Raises:
        CheckpointError: If a float holds NaN or Inf, or an integer differs.
    """
    # counters differ, and say nothing about the model
    holders = (
        []
        if is_counter(name)
        else [c for c, k in zip(inputs.finetuned, inputs.finetuned_keys, strict=True) if name in k]
    )
    entry = inputs.entries(name)[0]
    for start, out in _places(entry.size, STORED[entry.dtype], room):
        theta_0, finetuned = inputs.arrays(name, start, start + len(out))
        if theta_0.dtype.kind == "f":
            require_finite(theta_0, name, inputs.zeroshot.source)
        for checkpoint, theta_1 in zip(holders, finetuned if holders else [], strict=True):
            if theta_0.dtype.kind == theta_1.dtype.kind == "f":
                require_finite(theta_1, name, checkpoint.source)
            elif not np.array_equal(theta_0, theta_1):
                raise integers_differ(name, checkpoint.source)
        np.copyto(out, theta_0)
        yield out
    inputs.release(name)


def copying_alone(checkpoint: Checkpoint, key: str, name: str, room: Room) -> Iterator[Array]:
    """Copy a tensor that only one checkpoint has, in its own dtype.

    Args:
        checkpoint: Who has it.
        key: Its key there.
        name: Canonical name.
        room: Where to put them.

    Yields:
        Runs of elements in memory order, 1-D.

    Raises:
        CheckpointError: If a float holds NaN or Inf.
    """
    entry = checkpoint.entries[key]
    for start, out in _places(entry.size, STORED[entry.dtype], room):
        piece = checkpoint.array(key, start, start + len(out))
        if piece.dtype.kind == "f":
            require_finite(piece, name, checkpoint.source)
        np.copyto(out, piece)
        yield out
    checkpoint.release(key)


def require_finite_inputs(inputs: Inputs, name: str, theta_0: Values, finetuned: Sequence[Values]) -> None:
    """Refuse a parameter that holds NaN or Inf in one of the checkpoints, by name."""
    require_finite(theta_0, name, inputs.zeroshot.source)
    for checkpoint, theta_1 in zip(inputs.finetuned, finetuned, strict=True):
        require_finite(theta_1, name, checkpoint.source)


def overflow(name: str, dtype: str) -> CheckpointError:
    """Say that a merge does not fit its dtype."""
    wider = "" if dtype in ("float32", "float64") else "use --dtype float32, or "
    return CheckpointError(
        f"tensor {name} overflows {dtype} when merged; {wider}take an alpha in [0, 1] and check the weights"
    )


def negative_variance(name: str) -> CheckpointError:
    """Say that a merge leaves no variance."""
    return CheckpointError(
        f"tensor {name} is a variance and becomes negative when merged; use an alpha in [0, 1] for its layer"
    )


def integers_differ(name: str, source: str) -> CheckpointError:
    """Say that an integer tensor cannot be merged."""
    return CheckpointError(
        f"{source}: integer tensor {name} differs from the zero-shot one, and integers cannot be averaged; "
        "use the base that was fine-tuned"
    )
