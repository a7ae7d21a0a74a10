"""Did a fine-tuned checkpoint start from this zero-shot one? Judged from the weights alone; see `docs/ancestry.md`.

Training moves weights, and does not replace them: even after long training at a high rate, most of a matrix points
where it pointed. Two models that were trained apart have matrices at right angles, for their hidden units are numbered
by chance. Which of two related models came first shows only if training left a trace that cannot be undone: matrices
that became longer as they moved (`growth`), rows that weight decay alone has shortened, and values that only an
untrained parameter has. Without such a trace, the check says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np

from clipmerge.checkpoint.adapter import Adapted
from clipmerge.checkpoint.growth import shrinkage
from clipmerge.checkpoint.inputs import Inputs
from clipmerge.checkpoint.source import Checkpoint
from clipmerge.checkpoint.vocabulary import vocabulary_difference
from clipmerge.files.safetensors import Array
from clipmerge.layers import HEAD

#: Entries of a matrix that are read: 64 KB in float32. The verdicts in `benchmarks/ancestry` are the same with half of
#: them.
SAMPLE = 1 << 14
# Median cosine of a tower's matrices below which it did not come from the other checkpoint's. Models trained apart
# stay within 0.01 of 0; the furthest fine-tuning of `benchmarks/ancestry` stays above 0.3.
_UNRELATED = 0.05
# The cosine of a smaller matrix is not informative: its random spread is one over the root of its number of entries.
_LEAST = 256
# Number of elements that suffice, for nearly every tensor, to see that it holds more than one number.
_FEW = 8
# Rows of embeddings without gradient: least number, and tolerance for being parallel (1 - cosine) by one factor.
_ROWS, _BLOCKS, _LEAST_ROWS, _PARALLEL, _SAME_FACTOR = 256, 16, 16, 1e-9, 2e-5
# If the slope of the loss of length on the squared movement is above this, the pair is swapped: in
# `benchmarks/ancestry` it is at most 0.1 for pairs in the right order, and 1 minus that for swapped ones. It must also
# exceed 0.5, the middle, by this many standard errors, and the matrices must have moved by this share of their length.
_SHRUNK, _SURE, _LEAST_SHRUNK = 0.75, 2.0, 0.025
# If the cosine of the change with the weights exceeds that of a swapped change at right angles by more than this,
# something pulls the weights straight back, as an L2 penalty in Adam does (0.5; elsewhere 0.1). Shrinking is then no
# evidence.
_PULLED = 0.2
# If the median cosine between the change and the weights is above this, they grew along themselves, which no gradient
# causes.
_LONGER = 0.25
# Number of entries per matrix that are tested for values in half precision, and minimum number of matrices.
_HALF_SAMPLE, _LEAST_HALF = 4096, 6


@dataclass(frozen=True)
class Ancestry:
    """The relation of one fine-tuned checkpoint to the zero-shot one.

    Attributes:
        relation: ``related``; ``unrelated``; or ``swapped``, where theta_0 started from theta_1.
        evidence: The evidence, one clause each.
        cosines: Median cosine between the two checkpoints' matrices by tower.
    """

    relation: Literal["related", "unrelated", "swapped"]
    evidence: tuple[str, ...]
    cosines: dict[str, float]


@dataclass(frozen=True)
class _Matrix:
    """A sample of one matrix in both checkpoints.

    Attributes:
        tower: ``vision``, ``text`` or ``decoder``.
        block: The transformer's or convolutional block that it lies in, such as ``vision.3``; empty outside blocks.
        cosine: Between theta_0 and theta_1.
        moved: ||tau|| / ||theta_0||.
        along: tau's part along theta_0, in lengths of theta_0; negative where the weights became shorter.
    """

    tower: str
    block: str
    cosine: float
    moved: float
    along: float


def ancestry_warnings(inputs: Inputs) -> list[str]:
    """Name the fine-tuned checkpoints that probably did not start from the zero-shot one, one line each.

    Args:
        inputs: Aligned checkpoints that fit each other; a sample of their weights is read.
    """
    warnings = []
    for which, finetuned in enumerate(inputs.finetuned):
        found = ancestry_of(inputs, which)
        if found.relation != "related":
            swapped = "the two are probably swapped: " if found.relation == "swapped" else ""
            warnings.append(
                f"{inputs.zeroshot.source} is probably not what {finetuned.source} started from "
                f"({swapped}{'; '.join(found.evidence)})"
            )
    return warnings


def ancestry_of(inputs: Inputs, which: int = 0) -> Ancestry:
    """Judge one fine-tuned checkpoint.

    Args:
        inputs: Aligned checkpoints that fit each other.
        which: Index of the fine-tuned checkpoint.

    Returns:
        The judgement. An adapter is related to every base that it fits: its weights are the base's and a change.
    """
    if isinstance(inputs.finetuned[which], Adapted):
        return Ancestry("related", (), {})
    with np.errstate(all="ignore"):  # NaN and Inf are refused where they are merged
        matrices = list(_matrices(inputs, which))
        cosines = {
            tower: median(each.cosine for each in matrices if each.tower == tower)
            for tower in dict.fromkeys(each.tower for each in matrices)
        }
        apart = (*_apart(cosines), *_other_words(inputs, which))
        if apart:
            return Ancestry("unrelated", apart, cosines)
        swapped = (
            *_untrained(inputs, which),
            *_grown(inputs, which),
            *_shrunk(matrices),
            *_released(inputs, which),
            *_named(inputs, which),
        )
    return Ancestry("swapped" if swapped else "related", swapped, cosines)


def _apart(cosines: dict[str, float]) -> Iterator[str]:
    apart = [f"{abs(cosine):.2f} in the {tower} tower" for tower, cosine in cosines.items() if cosine < _UNRELATED]
    if apart:
        yield (
            f"the median cosine between their matrices is {' and '.join(apart)}, as between models trained apart; "
            "fine-tuning leaves it above 0.3"
        )


def _other_words(inputs: Inputs, which: int) -> Iterator[str]:
    difference = vocabulary_difference(inputs.zeroshot.folder, inputs.finetuned[which].folder)
    if difference and inputs.tower != "vision":
        yield difference


def _matrices(inputs: Inputs, which: int) -> Iterator[_Matrix]:
    for name in _shared(inputs, which):
        tower, _, rest = inputs.layer_of[name].partition(".")
        shape = inputs.zeroshot.entries[inputs.zeroshot_keys[name]].shape
        if not rest or len(shape) < 2 or math.prod(shape) < _LEAST:
            continue
        theta_0, theta_1 = _samples(inputs, which, name, 0, SAMPLE)
        tau = theta_1 - theta_0
        ours, theirs, product = _dot(theta_0, theta_0), _dot(theta_1, theta_1), _dot(tau, theta_0)
        if not (0 < ours < math.inf and 0 < theirs < math.inf):  # an empty or a broken matrix is no evidence
            continue
        yield _Matrix(
            tower,
            f"{tower}.{rest.partition('.')[0]}" if rest[0].isdecimal() else "",
            cosine=(ours + product) / math.sqrt(ours * theirs),
            moved=math.sqrt(_dot(tau, tau) / ours),
            along=product / ours,
        )


def _dot(a: Array, b: Array) -> float:
    """The product of two vectors, in one pass and in this thread: a BLAS's threads would spin, waiting for others."""
    return float(np.einsum("i,i->", a, b))


def _untrained(inputs: Inputs, which: int) -> Iterator[str]:
    """Find values that only an untrained parameter has, in the checkpoint that should be the trained one."""
    only_theirs: list[str] = []
    only_ours: list[str] = []
    for name in _shared(inputs, which):
        if inputs.zeroshot.entries[inputs.zeroshot_keys[name]].size < _FEW:
            continue
        if not any(map(_is_constant, _samples(inputs, which, name, 0, _FEW))):
            continue  # so nearly always, and no more is read
        ours, theirs = map(_is_constant, _samples(inputs, which, name, 0, SAMPLE))
        if ours != theirs:
            (only_ours if ours else only_theirs).append(name)
    if len(only_theirs) > 1 and not only_ours:
        yield (
            f"{len(only_theirs)} parameters, such as {only_theirs[0]}, hold one number throughout in the fine-tuned "
            "checkpoint, as before any training, and many in the zero-shot one"
        )


def _is_constant(values: Array) -> bool:
    return bool((values == values[0]).all())


def _grown(inputs: Inputs, which: int) -> Iterator[str]:
    """Find embeddings that grew without a gradient: weight decay seen backwards."""
    factor, rows = _decay(inputs, which)
    if rows and factor > 1 + _SAME_FACTOR:
        yield (
            f"{rows} rows of embeddings are in the fine-tuned checkpoint {factor:.6f} times those of the zero-shot "
            "one; weight decay shortens rows that no gradient reaches, and nothing lengthens them"
        )


def _shrunk(matrices: list[_Matrix]) -> Iterator[str]:
    """Find a change by which the matrices that moved furthest became shortest, or all grew along themselves."""
    moved = [each for each in matrices if each.block and each.moved > 0]
    found = shrinkage((each.block, each.moved, each.along) for each in moved)
    if found is None or median(each.moved for each in moved) < _LEAST_SHRUNK:
        return
    slope, error = found
    pulled = median(-each.along / each.moved - each.moved for each in moved)
    if slope > _SHRUNK and slope - 0.5 > _SURE * error and pulled < _PULLED:
        yield (
            "the further a matrix moved, compared with others of its block, the shorter it is in the fine-tuned "
            "checkpoint; training lengthens what it moves"
        )
    if median(each.along / each.moved for each in moved) > _LONGER:
        yield "its blocks' matrices are longer along themselves, which is what weight decay looks like backwards"


def _released(inputs: Inputs, which: int) -> Iterator[str]:
    """Find a fine-tuned checkpoint whose values have half precision, as OpenAI's have, although stored in float32."""
    seen = 0
    for name in _shared(inputs, which):
        entries = inputs.entries(name)
        if len(entries[0].shape) < 2 or any(entry.dtype != "F32" for entry in entries):
            continue
        theta_0, theta_1 = _samples(inputs, which, name, 0, _HALF_SAMPLE)
        if np.array_equal(theta_0, theta_1):
            continue
        # what bfloat16 holds float16 holds too, and training in bfloat16 is common
        if not _is_half(theta_1) or _is_half(theta_0) or _is_bfloat16(theta_1):
            return
        seen += 1
    if seen >= _LEAST_HALF:
        yield (
            "its values fit into float16 although they are stored in float32, as in checkpoints that were published in "
            "half precision, and the zero-shot one's do not: training in float32 does not round"
        )


def _is_half(values: Array) -> bool:
    return bool((values.astype(np.float16) == values).all())


def _is_bfloat16(values: Array) -> bool:
    return not bool((values.astype(np.float32).view(np.uint32) & 0xFFFF).any())


def _named(inputs: Inputs, which: int) -> Iterator[str]:
    """Find a zero-shot checkpoint whose configuration says that it was loaded from the fine-tuned one."""
    origin = str((inputs.zeroshot.config or {}).get("_name_or_path") or "")
    source = inputs.finetuned[which].source.removeprefix("hf://").partition("@")[0]
    if origin == source and source.count("/") == 1 and inputs.finetuned[which].revision:
        yield f"the zero-shot checkpoint's config.json says that it was loaded from {source}"


def _decay(inputs: Inputs, which: int) -> tuple[float, int]:
    """Find embeddings that no gradient reached, in a text tower that was trained.

    Returns:
        The factor left by weight decay (1 without any), and the number of rows that show it (0 if too few do).
    """
    factors: list[float] = []
    trained = False
    for name in _shared(inputs, which):
        shape = inputs.zeroshot.entries[inputs.zeroshot_keys[name]].shape
        if inputs.layer_of[name] != "text.embeddings" or len(shape) != 2 or shape[0] < _LEAST_ROWS:
            continue
        theta_0, theta_1 = (each.astype(np.float64) for each in _rows(inputs, which, name, shape))
        squares = [(each * each).sum(axis=1) for each in (theta_0, theta_1)]
        product = (theta_0 * theta_1).sum(axis=1)
        parallel = product * product >= (1 - 2 * _PARALLEL) * squares[0] * squares[1]
        parallel &= (product > 0) & (squares[0] > 0)
        trained = trained or not parallel.all()
        factors += np.sqrt(squares[1][parallel] / squares[0][parallel]).tolist()
    if not trained or len(factors) < _LEAST_ROWS:
        return 1.0, 0
    factor = median(factors)
    same = sum(abs(each - factor) < _SAME_FACTOR for each in factors)
    return (factor, same) if same > 0.9 * len(factors) else (1.0, 0)


def _rows(inputs: Inputs, which: int, name: str, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Rows of an embedding, in blocks from its whole length: rare tokens come last."""
    height, width = shape
    length = -(-min(height, _ROWS) // _BLOCKS)
    starts = sorted({round(block * (height - length) / (_BLOCKS - 1)) for block in range(_BLOCKS)})
    samples = [_samples(inputs, which, name, start * width, (start + length) * width) for start in starts]
    theta_0, theta_1 = (np.concatenate(parts).reshape(-1, width) for parts in zip(*samples, strict=True))
    return theta_0, theta_1


def _shared(inputs: Inputs, which: int) -> Iterator[str]:
    """Names of the float tensors with the same shape in both checkpoints, without a head that was built anew."""
    ours, theirs = inputs.zeroshot, inputs.finetuned[which]
    for name, key in inputs.zeroshot_keys.items():
        other = inputs.finetuned_keys[which].get(name)
        if other is None or name not in inputs.layer_of or inputs.layer_of[name] == HEAD:
            continue
        a, b = ours.entries[key], theirs.entries[other]
        if a.is_float and b.is_float and a.shape == b.shape:
            yield name


def _samples(inputs: Inputs, which: int, name: str, start: int, stop: int) -> tuple[Array, Array]:
    stop = min(stop, inputs.zeroshot.entries[inputs.zeroshot_keys[name]].size)
    return (
        _values(inputs.zeroshot, inputs.zeroshot_keys[name], start, stop),
        _values(inputs.finetuned[which], inputs.finetuned_keys[which][name], start, stop),
    )


def _values(checkpoint: Checkpoint, key: str, start: int, stop: int) -> Array:
    """A run of a tensor's elements, 1-D: float64 unchanged, all else as float32; a view if stored in that dtype."""
    stored = checkpoint.array(key, start, stop)
    if checkpoint.entries[key].dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored if stored.dtype == np.float64 else stored.astype(np.float32, copy=False)
