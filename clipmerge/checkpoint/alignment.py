"""Align checkpoints by canonical parameter name, refuse those that do not match, and ask whether
one started from the other.

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
from clipmerge.checkpoint.source import Checkpoint, prefix_errors
from clipmerge.errors import CheckpointError
from clipmerge.families import (
    Family,
    family_of,
    layers_of,
    layout_of,
    tower_of,
)
from clipmerge.files.safetensors import Array
from clipmerge.layers import HEAD
from clipmerge.types import Missing, OutputDtype

#: Median cosine of a tower's matrices below which it did not come from the other checkpoint's.
#: Models trained apart stay within 0.01 of 0; the furthest fine-tuning of `benchmarks/ancestry`
#: (at 7fea82b5) stays above 0.3.
UNRELATED = 0.05
# Entries of a matrix that are read: 64 KB in float32.
_SAMPLE = 1 << 14
# The cosine of a smaller matrix says little: its random spread is one over the root of its number
# of entries.
_LEAST = 256


def align_checkpoints(
    zeroshot: Checkpoint,
    finetuned: list[Checkpoint],
    *,
    missing: Missing = "error",
    mixed_dtypes: bool = False,
) -> Inputs:
    """Align checkpoints and refuse mismatches, without reading weights."""
    inputs = align(zeroshot, finetuned, missing=missing)
    refuse_mismatches(inputs, mixed_dtypes=mixed_dtypes)
    return inputs


def refuse_mismatches(inputs: Inputs, *, mixed_dtypes: bool = False) -> None:
    """Refuse aligned checkpoints that cannot be merged."""
    if not inputs.are_alike:
        from clipmerge.checkpoint.mismatches import find_mismatches

        for problem in find_mismatches(inputs, mixed_dtypes=mixed_dtypes):
            raise CheckpointError(problem)


def finetuned_dtype(inputs: Inputs) -> OutputDtype | None:
    """The one dtype of the fine-tuned weights where the zero-shot ones have another; ``None`` if
    they agree, or if the fine-tuned ones have several.
    """
    if inputs.are_alike:
        return None
    from clipmerge.checkpoint.mismatches import only_finetuned_dtype

    return only_finetuned_dtype(inputs)


def align(
    zeroshot: Checkpoint, finetuned: list[Checkpoint], *, missing: Missing = "error"
) -> Inputs:
    """Match keys by canonical name, in the layout of the first fine-tuned checkpoint, without
    checking for mismatches.
    """
    checkpoints = [zeroshot, *finetuned]
    if len({layout_of(checkpoint.entries) for checkpoint in checkpoints}) > 1:
        from clipmerge.checkpoint.converted import convert_checkpoint

        checkpoints = [convert_checkpoint(one, finetuned[0]) for one in checkpoints]
    family = _common_family(checkpoints)
    keys = []
    for checkpoint in checkpoints:
        with prefix_errors(checkpoint.source):
            keys.append(family.by_canonical_name(checkpoint.entries))
    notes = [note for checkpoint in checkpoints for note in checkpoint.notes]
    if any(layer == HEAD for layer in layers_of(keys[0]).values()):
        from clipmerge.checkpoint.mismatches import drop_other_head

        notes += drop_other_head(checkpoints, keys)
    towers = {tower_of(layers_of(names).values()) for names in keys[1:]}
    tower = towers.pop() if len(towers) == 1 else "full"
    first, *others = checkpoints
    inputs = Inputs(family, first, tuple(others), keys[0], tuple(keys[1:]), tower, missing, notes)
    if not inputs.are_alike:
        from clipmerge.checkpoint.mismatches import alignment_notes

        notes.extend(alignment_notes(inputs))
    return inputs


def _common_family(checkpoints: list[Checkpoint]) -> Family:
    """The common family; checkpoints without a config take that of the others."""
    known = [one for one in checkpoints if one.config is not None] or checkpoints[:1]
    families: dict[Family, str] = {}  # and the source of a checkpoint of each
    for checkpoint in known:
        with prefix_errors(checkpoint.source):
            family = family_of(checkpoint.config, checkpoint.entries)
        families.setdefault(family, checkpoint.source)
    if len(families) > 1:
        (first, source), (second, other), *_ = families.items()
        raise CheckpointError(
            f"{other} is a {second.name} checkpoint and {source} a {first.name} one; models of"
            " different families do not merge. Give the base that was fine-tuned"
        )
    return family


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
        tower, _, rest = inputs.layer_of[name].partition(".")
        shape = inputs.zeroshot_entry(name).shape
        # a head, outside both towers, may have been built anew
        if not rest or len(shape) < 2 or math.prod(shape) < _LEAST:
            continue
        with np.errstate(all="ignore"):  # NaN and Inf are refused where they are merged
            theta_0 = _first_values(inputs, -1, name, _SAMPLE)
            theta_1 = _first_values(inputs, which, name, _SAMPLE)
            # sums in this thread: a BLAS's threads would spin, waiting for others
            product = float((theta_0 * theta_1).sum())
            ours = float((theta_0 * theta_0).sum())
            theirs = float((theta_1 * theta_1).sum())
        length = ours * theirs
        # an empty or a broken matrix is no evidence
        if 0 < length < math.inf:
            found = cosines.setdefault(tower, [])
            found.append(product / math.sqrt(length))
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
