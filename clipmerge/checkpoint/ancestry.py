"""Did a fine-tuned checkpoint start from this zero-shot one? Judged from the weights alone; see
`docs/reference/checkpoints.md`.

Training moves weights, and does not replace them: even after long training at a high rate, most of
a matrix points where it pointed. Two models that were trained apart have matrices at right angles,
for their hidden units are numbered by chance. Which of two related models came first is asked of
images, not of weights.
"""

from __future__ import annotations

import math
import sys
from statistics import median

import numpy as np

from clipmerge.checkpoint.inputs import Inputs
from clipmerge.files.safetensors import Array
from clipmerge.layers import HEAD

#: Median cosine of a tower's matrices below which it did not come from the other checkpoint's.
#: Models trained apart stay within 0.01 of 0; the furthest fine-tuning of `benchmarks/ancestry`
#: (at 7fea82b5) stays above 0.3.
UNRELATED = 0.05
# Entries of a matrix that are read: 64 KB in float32.
_SAMPLE = 1 << 14
# The cosine of a smaller matrix says little: its random spread is one over the root of its number
# of entries.
_LEAST = 256


def are_equal(inputs: Inputs, which: int, other: int) -> bool:
    """Whether a fine-tuned checkpoint and another one (-1: the zero-shot one) hold the same
    weights; of most that do not, only samples are read.
    """
    names = [*filter(inputs.merges, inputs.zeroshot_keys)]
    for length in (_SAMPLE, sys.maxsize):
        for name in names:
            first = _first_values(inputs, other, name, length)
            second = _first_values(inputs, which, name, length)
            if not np.array_equal(first, second):
                return False
    return True


def cosines_of(inputs: Inputs, which: int = 0) -> dict[str, float]:
    """The median cosine between the matrices of a fine-tuned checkpoint and of the zero-shot one,
    by tower; empty for an adapter, which is related to every base that it fits.
    """
    if inputs.finetuned[which].is_adapted:
        return {}
    cosines: dict[str, list[float]] = {}
    for name in filter(inputs.merges, inputs.zeroshot_keys):
        tower, _, rest = inputs.layer_of.get(name, HEAD).partition(".")
        entry, other = inputs.zeroshot_entry(name), inputs.entries(name)[which + 1]
        # a head may have been built anew
        if not rest or entry.shape != other.shape or len(entry.shape) < 2 or entry.size < _LEAST:
            continue
        with np.errstate(all="ignore"):  # NaN and Inf are refused where they are merged
            theta_0 = _first_values(inputs, -1, name, _SAMPLE)
            theta_1 = _first_values(inputs, which, name, _SAMPLE)
            # sums in this thread: a BLAS's threads would spin, waiting for others
            product = float((theta_0 * theta_1).sum())
            squares = float((theta_0 * theta_0).sum()) * float((theta_1 * theta_1).sum())
            cosine = product / math.sqrt(squares) if 0 < squares < math.inf else math.nan
        if math.isfinite(cosine):
            cosines.setdefault(tower, []).append(cosine)
    return {tower: median(values) for tower, values in cosines.items()}


def _first_values(inputs: Inputs, which: int, name: str, length: int) -> Array:
    """The first elements of a tensor, 1-D: float64 unchanged, all else as float32; a view if stored
    in that dtype.
    """
    checkpoint, key = inputs.holders(name)[which + 1]
    stop = min(length, checkpoint.entries[key].size)
    values = checkpoint.array(key, 0, stop)
    if values.dtype == np.uint16:  # bfloat16
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values if values.dtype == np.float64 else values.astype(np.float32, copy=False)
