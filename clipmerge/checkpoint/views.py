"""Views of a checkpoint, in another layout or with a head; tensors are computed on demand."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from clipmerge.checkpoint.layout_keys import Match, match_keys
from clipmerge.checkpoint.source import Checkpoint, prefix_errors, stored_array
from clipmerge.files.safetensors import Array, TensorEntry

if TYPE_CHECKING:
    from torch import Tensor


def with_head(checkpoint: Checkpoint, like: Checkpoint, head: dict[str, Tensor]) -> Checkpoint:
    """Add a head to a zero-shot checkpoint; ``like``, the fine-tuned one, gives its dtypes."""
    entries = dict(checkpoint.entries)
    for key, values in head.items():
        entries[key] = replace(like.entries[key], form=partial(stored_array, values))
    return replace(checkpoint, entries=entries, has_built_head=True)


def convert_checkpoint(checkpoint: Checkpoint, like: Checkpoint) -> Checkpoint:
    """View a plain ViT CLIP in the layout of another checkpoint.

    The view has the other one's configuration and side files, which describe the same model.
    """
    layout = checkpoint.family.layout
    wanted = like.family.layout
    if layout == wanted or "timm" in (layout, wanted):
        return checkpoint
    keys = checkpoint.family.by_canonical_name(checkpoint.entries, checkpoint.source)
    entries: dict[str, TensorEntry] = {}
    with prefix_errors(checkpoint.source):
        for match in match_keys(keys, layout):
            stored = [keys[name] for name in match.stored]
            entries |= _convert_tensors(checkpoint, stored, match)
    note = f"{checkpoint.source}: is converted to the layout of {wanted}, like {like.source}"
    return replace(
        checkpoint,
        entries=entries,
        config=like.config,
        family=like.family,
        folder=like.folder,
        stored=checkpoint,
        sharded=False,
        notes=(*checkpoint.notes, note),
    )


def _convert_tensors(
    checkpoint: Checkpoint, stored: list[str], match: Match
) -> dict[str, TensorEntry]:
    """Make the other layout's entries for the tensors under these keys."""
    first = checkpoint.entries[stored[0]]
    parts = len(match.wanted)
    shape = first.shape[::-1] if match.transposed else first.shape
    if len(stored) != parts:  # query, key and value
        rows, *rest = shape
        shape = (rows * len(stored) // parts, *rest)
    elif match.wanted == ("logit_scale",) and first.size == 1:  # with or without a dimension
        shape = ()

    def compute(part: int) -> Array:
        whole = np.concatenate([checkpoint.array(key) for key in stored])
        if match.transposed:
            whole = whole.reshape(first.shape).T.flatten()
        size = len(whole) // parts
        return whole[part * size : (part + 1) * size]

    return {
        name: replace(first, shape=shape, form=partial(compute, part))
        for part, name in enumerate(match.wanted)
    }
