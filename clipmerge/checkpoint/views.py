"""Views of a checkpoint, in another layout or with a head; tensors are computed on demand."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from clipmerge.checkpoint.layout_keys import Match, match_keys
from clipmerge.checkpoint.source import Checkpoint, prefix_errors, stored_array
from clipmerge.families import Layout
from clipmerge.files.safetensors import Array, TensorEntry
from clipmerge.types import Names

if TYPE_CHECKING:
    from torch import Tensor

_Entries = dict[str, TensorEntry]


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
    is_custom = "text.ln_final.weight" in {*checkpoint.entries, *like.entries}
    prefix = "text." if is_custom else ""
    with prefix_errors(checkpoint.source):
        entries: _Entries = {}
        for match in match_keys(checkpoint.entries, layout, text_prefix=prefix):
            entries |= _convert_match(checkpoint, match, layout)
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


def _convert_match(checkpoint: Checkpoint, match: Match, layout: Layout) -> _Entries:
    """Make the other layout's entries for one match of keys."""
    keys: Names = (match.open_clip,)
    names = match.transformers
    if layout == "transformers":
        keys, names = names, keys
    first = checkpoint.entries[keys[0]]
    shape = first.shape[::-1] if match.transposed else first.shape
    if len(keys) != len(names):  # query, key and value
        rows, *rest = shape
        shape = (rows * len(keys) // len(names), *rest)
    elif names == ("logit_scale",) and first.size == 1:  # stored with or without a dimension
        shape = ()
    formed = {}
    for part, name in enumerate(names):
        form = partial(_compute_part, checkpoint, keys, match.transposed, part, len(names))
        formed[name] = replace(first, shape=shape, form=form)
    return formed


def _compute_part(
    checkpoint: Checkpoint, keys: Names, transposed: bool, part: int, parts: int
) -> Array:
    """Join the tensors of these keys, and return one of so many equal parts, 1-D."""
    arrays = [checkpoint.array(key) for key in keys]
    whole = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
    if transposed:
        whole = whole.reshape(checkpoint.entries[keys[0]].shape).T.flatten()
    size = len(whole) // parts
    return whole[part * size : (part + 1) * size]
