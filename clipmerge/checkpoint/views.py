"""Views of a checkpoint: in another checkpoint's layout, or with a head; tensors are formed on
demand.
"""

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
    """Add a head to a zero-shot checkpoint, with the dtypes that it has in the fine-tuned one,
    ``like``.
    """
    entries = dict(checkpoint.entries)
    for key, values in head.items():
        entries[key] = replace(like.entries[key], form=partial(stored_array, values))
    return replace(checkpoint, entries=entries, has_built_head=True)


def convert_checkpoint(checkpoint: Checkpoint, like: Checkpoint) -> Checkpoint:
    """View a plain ViT CLIP in the layout of another checkpoint, with its configuration and side
    files, which describe the same model.
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
            entries |= _form_match(checkpoint, match, layout)
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


def _form_match(checkpoint: Checkpoint, match: Match, layout: Layout) -> _Entries:
    """The tensors of one match in the other layout: entries, and how their elements are formed."""
    keys: Names = (match.open_clip,)
    names = match.transformers
    if layout == "transformers":
        keys, names = names, keys
    first = checkpoint.entries[keys[0]]
    shape = first.shape
    read = partial(checkpoint.array, keys[0])
    if len(names) > 1:
        return _split_array(checkpoint, match.open_clip, names)
    if len(keys) > 1:
        shape = (len(keys) * shape[0], *shape[1:])
        read = partial(_join_arrays, checkpoint, keys)
    elif match.transposed:
        read = partial(_transpose_array, checkpoint, keys[0])
        shape = shape[::-1]
    elif names == ("logit_scale",) and first.size == 1:  # with or without a dimension
        shape = ()
    return {names[0]: replace(first, shape=shape, form=read)}


def _split_array(checkpoint: Checkpoint, key: str, names: Names) -> _Entries:
    """Query, key and value, which are stacked in one tensor."""
    stacked = checkpoint.entries[key]
    rows, *rest = stacked.shape
    entry = replace(stacked, shape=(rows // len(names), *rest))
    formed: _Entries = {}
    for number, name in enumerate(names):
        start = number * entry.size
        read = partial(checkpoint.array, key, start, start + entry.size)
        formed[name] = replace(entry, form=read)
    return formed


def _join_arrays(checkpoint: Checkpoint, keys: Names) -> Array:
    """Query, key and value, one after another."""
    parts = [checkpoint.array(key) for key in keys]
    return np.concatenate(parts)


def _transpose_array(checkpoint: Checkpoint, key: str) -> Array:
    """A projection, which the other library multiplies from the other side."""
    shape = checkpoint.entries[key].shape
    matrix = checkpoint.array(key).reshape(shape)
    return matrix.T.flatten()
