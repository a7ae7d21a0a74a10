"""Did a fine-tuned checkpoint start from this zero-shot one? Judged from the weights alone; see
`docs/explanation/the-pair.md`.

Training moves weights, and does not replace them: even after long training at a high rate, most of
a matrix points where it pointed. Two models that were trained apart have matrices at right angles,
for their hidden units are numbered by chance. Which of two related models came first shows only if
training left a trace that cannot be undone: matrices that became longer as they moved, or values
that were published in half precision. Without such a trace, the check says nothing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import Literal

import numpy as np

from clipmerge.checkpoint.adapter import AdaptedCheckpoint
from clipmerge.checkpoint.inputs import Inputs
from clipmerge.checkpoint.source import Checkpoint
from clipmerge.files.safetensors import Array
from clipmerge.finding import Finding
from clipmerge.layers import HEAD
from clipmerge.types import Names

#: Entries of a matrix that are read: 64 KB in float32. The verdicts in `benchmarks/ancestry` are
#: the same with half of them.
SAMPLE = 1 << 14
# Median cosine of a tower's matrices below which it did not come from the other checkpoint's.
# Models trained apart stay within 0.01 of 0; the furthest fine-tuning of `benchmarks/ancestry`
# stays above 0.3.
_UNRELATED = 0.05
# The cosine of a smaller matrix is not informative: its random spread is one over the root of its
# number of entries.
_LEAST = 256
# If the slope of the loss of length on the squared movement is above this, the pair is swapped: in
# the pairs of `benchmarks` it is at most 0.1 for the right order, and 0.9 to 1.7 for the wrong one.
# It must also exceed 0.5, the middle, and 0 by so many standard errors, and the matrices must have
# moved by this share of their length. A far larger slope is the noise of small matrices that moved
# little, of which nearly 2% would look swapped.
_SHRUNK, _LARGEST, _LEAST_SHRUNK = 0.75, 2.0, 0.025
_SURE, _FROM_ZERO = 2.0, 3.5
# Minimum number of degrees of freedom of that slope.
_LEAST_FREE = 8
# If the cosine of the change with the weights exceeds that of a swapped change at right angles by
# more than this, something pulls the weights straight back, as an L2 penalty in Adam does (0.5;
# elsewhere 0.1). Shrinking is then no evidence.
_PULLED = 0.2
# If the median cosine between the change and the weights is above this, they grew along themselves,
# which no gradient causes.
_LONGER = 0.25
# Number of entries per matrix that are tested for values in half precision, and minimum number of
# matrices.
_HALF_SAMPLE, _LEAST_HALF = 4096, 6


@dataclass(frozen=True)
class Ancestry:
    """The relation of one fine-tuned checkpoint to the zero-shot one."""

    # ``related``; ``unrelated``; or ``swapped``, where theta_0 started from theta_1
    relation: Literal["related", "unrelated", "swapped"]
    evidence: Names
    cosines: dict[str, float]  # median cosine between the two checkpoints' matrices by tower


@dataclass(frozen=True)
class _Matrix:
    """A sample of one matrix in both checkpoints."""

    tower: str  # ``vision``, ``text`` or ``decoder``
    # the transformer's or convolutional block that it lies in, such as ``vision.3``; empty outside
    # blocks
    block: str
    cosine: float  # between theta_0 and theta_1
    moved: float  # ||tau|| / ||theta_0||
    # tau's part along theta_0, in lengths of theta_0; negative where the weights became shorter
    along: float


def unmerged_encoders(inputs: Inputs) -> Iterator[Finding]:
    """Name the other text encoders of the same files, which are not merged, and say whether they
    changed.
    """
    for which, finetuned in enumerate(inputs.finetuned):
        for name, theirs in finetuned.other_encoders.items():
            ours = inputs.zeroshot.other_encoders.get(name)
            changed = None
            share = None
            if ours is not None and ours.entries.keys() == theirs.entries.keys():
                changed = sum(
                    not np.array_equal(ours.array(key), theirs.array(key)) for key in ours.entries
                )
                if changed:
                    lost = sum(_squared_change((ours, key), (theirs, key)) for key in ours.entries)
                    share = lost / (lost + _merged_change(inputs, which) or 1)
            yield Finding.of(
                "other-encoder",
                source=finetuned.source,
                encoder=name,
                tensors=len(theirs.entries),
                changed=changed,
                share=share,
            )


def _merged_change(inputs: Inputs, which: int) -> float:
    """Sum of squares of the change of all merged parameters."""
    ours, theirs = inputs.zeroshot_keys, inputs.finetuned_keys[which]
    return sum(
        _squared_change((inputs.zeroshot, ours[name]), (inputs.finetuned[which], theirs[name]))
        for name in filter(inputs.merges, ours)
    )


def _squared_change(*stored: tuple[Checkpoint, str]) -> float:
    """Sum of squares of the difference of two stored tensors."""
    before, after = (_first_values(checkpoint, key, sys.maxsize) for checkpoint, key in stored)
    change = after - before
    return float(np.vdot(change, change))


def are_equal(inputs: Inputs, which: int, other: int) -> bool:
    """Whether two checkpoints of `_samples` hold the same weights; of most that do not, only
    samples are read.
    """
    names = [*filter(inputs.merges, inputs.zeroshot_keys)]
    return all(
        np.array_equal(*_samples(inputs, which, name, length, other))
        for length in (SAMPLE, sys.maxsize)
        for name in names
    )


def ancestry_of(inputs: Inputs, which: int = 0) -> Ancestry:
    """Judge one fine-tuned checkpoint; an adapter is related to every base that it fits."""
    if isinstance(inputs.finetuned[which], AdaptedCheckpoint):
        return Ancestry("related", (), {})
    with np.errstate(all="ignore"):  # NaN and Inf are refused where they are merged
        matrices = list(_sample_matrices(inputs, which))
        cosines = {
            tower: median(matrix.cosine for matrix in matrices if matrix.tower == tower)
            for tower in dict.fromkeys(matrix.tower for matrix in matrices)
        }
        apart = [
            f"{abs(cosine):.2f} in the {tower} tower"
            for tower, cosine in cosines.items()
            if cosine < _UNRELATED
        ]
        if apart:
            evidence = (
                f"the median cosine between their matrices is {' and '.join(apart)}, as between"
                " models trained apart; fine-tuning leaves it above 0.3"
            )
            return Ancestry("unrelated", (evidence,), cosines)
        moved = [matrix for matrix in matrices if matrix.block and matrix.moved > 0]
        fit = shrinkage((matrix.block, matrix.moved, matrix.along) for matrix in moved)
        swapped = tuple(_length_evidence(moved, fit))
        if fit is None or not looks_right(*fit):
            swapped += tuple(_half_precision_evidence(inputs, which))
    return Ancestry("swapped" if swapped else "related", swapped, cosines)


def _sample_matrices(inputs: Inputs, which: int) -> Iterator[_Matrix]:
    for name in _comparable_names(inputs, which):
        tower, _, rest = inputs.layer_of[name].partition(".")
        shape = inputs.zeroshot.entries[inputs.zeroshot_keys[name]].shape
        if not rest or len(shape) < 2 or math.prod(shape) < _LEAST:
            continue
        theta_0, theta_1 = _samples(inputs, which, name, SAMPLE)
        tau = theta_1 - theta_0
        ours, theirs, product = _dot(theta_0, theta_0), _dot(theta_1, theta_1), _dot(tau, theta_0)
        # an empty or a broken matrix is no evidence
        if not (0 < ours < math.inf and 0 < theirs < math.inf):
            continue
        yield _Matrix(
            tower,
            f"{tower}.{rest.partition('.')[0]}" if rest[0].isdecimal() else "",
            cosine=(ours + product) / math.sqrt(ours * theirs),
            moved=math.sqrt(_dot(tau, tau) / ours),
            along=product / ours,
        )


def _dot(a: Array, b: Array) -> float:
    """The product of two vectors, in one pass and in this thread: a BLAS's threads would spin,
    waiting for others.
    """
    return float(np.einsum("i,i->", a, b))


def _length_evidence(moved: list[_Matrix], fit: tuple[float, float] | None) -> Iterator[str]:
    """Find a change by which the matrices that moved furthest became shortest, or all grew along
    themselves.
    """
    if fit is None or median(matrix.moved for matrix in moved) < _LEAST_SHRUNK:
        return
    slope, error = fit
    pulled = median(-matrix.along / matrix.moved - matrix.moved for matrix in moved)
    if looks_swapped(slope, error) and pulled < _PULLED:
        yield (
            "the further a matrix moved, compared with others of its block, the shorter it is in"
            " the fine-tuned checkpoint; training lengthens what it moves"
        )
    if median(matrix.along / matrix.moved for matrix in moved) > _LONGER:
        yield (
            "its blocks' matrices are longer along themselves, which is what weight decay looks"
            " like backwards"
        )


def shrinkage(matrices: Iterable[tuple[str, float, float]]) -> tuple[float, float] | None:
    """Regress matrices' loss of length on their squared movement, with a constant per block.

    A step of training is about at right angles to the weights, so a matrix that moves gets longer,
    by half the square of its relative movement; seen backwards, it gets shorter by the same amount.
    Weight decay and a learning rate of each block's own shorten all matrices of one block alike, so
    matrices are compared within their block. Both sides are divided by the movement, which is what
    their scatter is proportional to.

    A matrix is its block; ||tau|| / ||theta_0||, above 0; and tau's part along theta_0, in lengths
    of theta_0; those of one block follow each other. The result is the slope (0 or less where
    theta_1 started from theta_0, 1 or more where theta_0 started from theta_1) and its standard
    error; ``None`` with too few matrices.

    Example:
        >>> layers = [f"vision.{number}" for number in range(4)]
        >>> decay = -0.01  # of 1%
        >>> slope, error = shrinkage(
        ...     [(layer, moved, decay) for layer in layers for moved in (0.1, 0.2, 0.3, 0.4)]
        ... )
        >>> abs(slope) < 1e-12
        True
    """
    free = -1
    squares = 0.0
    products = 0.0
    rest = 0.0
    for _, group in groupby(matrices, key=lambda matrix: matrix[0]):
        moved, along = np.array([numbers for _, *numbers in group]).T
        weights = 1 / moved**2
        x = moved**2
        y = -along
        x, y = (values - np.average(values, weights=weights) for values in (x, y))
        free += len(moved) - 1
        squares += float((weights * x * x).sum())
        products += float((weights * x * y).sum())
        rest += float((weights * y * y).sum())
    if free < _LEAST_FREE or squares <= 0:
        return None
    slope = products / squares
    return slope, math.sqrt(max(rest - slope * products, 0.0) / free / squares)


def looks_swapped(slope: float, error: float) -> bool:
    """Whether a slope of `shrinkage` is surely that of a swapped pair.

    Example:
        >>> looks_swapped(0.98, 0.1), looks_swapped(0.02, 0.1), looks_swapped(12.0, 5.0)
        (True, False, False)
    """
    is_sure = slope - 0.5 > _SURE * error and slope > _FROM_ZERO * error
    return is_sure and _SHRUNK < slope < _LARGEST


def looks_right(slope: float, error: float) -> bool:
    """Whether a slope of `shrinkage` is surely that of a pair in the right order.

    Example:
        >>> looks_right(0.02, 0.1), looks_right(0.98, 0.1), looks_right(0.02, 0.5)
        (True, False, False)
    """
    return 0.5 - slope > _SURE * error


def _half_precision_evidence(inputs: Inputs, which: int) -> Iterator[str]:
    """Find a fine-tuned checkpoint whose values have half precision, as OpenAI's have, although
    stored in float32.
    """
    seen = 0
    for name in _comparable_names(inputs, which):
        entries = inputs.entries(name)
        if len(entries[0].shape) < 2 or any(entry.dtype != "F32" for entry in entries):
            continue
        theta_0, theta_1 = _samples(inputs, which, name, _HALF_SAMPLE)
        if np.array_equal(theta_0, theta_1):
            continue
        # what bfloat16 holds float16 holds too, and training in bfloat16 is common
        is_bfloat16 = not (theta_1.view(np.uint32) & 0xFFFF).any()
        if not _is_half(theta_1) or _is_half(theta_0) or is_bfloat16:
            return
        seen += 1
    if seen >= _LEAST_HALF:
        yield (
            "its values fit into float16 although they are stored in float32, as in checkpoints"
            " that were published in half precision, and the zero-shot one's do not: training in"
            " float32 does not round"
        )


def _is_half(values: Array) -> bool:
    return bool((values.astype(np.float16) == values).all())


def _comparable_names(inputs: Inputs, which: int) -> Iterator[str]:
    """Names of the float tensors with the same shape in both checkpoints, without a head that was
    built anew.
    """
    ours, theirs = inputs.zeroshot, inputs.finetuned[which]
    for name, key in inputs.zeroshot_keys.items():
        other = inputs.finetuned_keys[which].get(name)
        if other is None or name not in inputs.layer_of or inputs.layer_of[name] == HEAD:
            continue
        a, b = ours.entries[key], theirs.entries[other]
        if a.is_float and b.is_float and a.shape == b.shape:
            yield name


def _samples(
    inputs: Inputs, which: int, name: str, length: int, other: int = -1
) -> tuple[Array, Array]:
    """The first elements of a tensor in another fine-tuned checkpoint (-1: in the zero-shot one),
    and in this one.
    """
    models = [
        *zip(inputs.finetuned, inputs.finetuned_keys, strict=True),
        (inputs.zeroshot, inputs.zeroshot_keys),
    ]
    (other_model, other_keys), (model, keys) = models[other], models[which]
    return _first_values(other_model, other_keys[name], length), _first_values(
        model, keys[name], length
    )


def _first_values(checkpoint: Checkpoint, key: str, length: int) -> Array:
    """The first elements of a tensor, 1-D: float64 unchanged, all else as float32; a view if stored
    in that dtype.
    """
    values = checkpoint.array(key, 0, min(length, checkpoint.entries[key].size))
    if values.dtype == np.uint16:  # bfloat16
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values if values.dtype == np.float64 else values.astype(np.float32, copy=False)
