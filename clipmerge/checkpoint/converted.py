"""Views of a checkpoint: in another checkpoint's layout, or with a head; tensors are formed on
demand.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from clipmerge.checkpoint.derived import DerivedCheckpoint, LazyTensor, stored_array
from clipmerge.checkpoint.layout_keys import Match, match_keys, timm_name
from clipmerge.checkpoint.source import Checkpoint, prefix_errors
from clipmerge.errors import CheckpointError
from clipmerge.families import Layout, layout_of
from clipmerge.files.safetensors import DTYPES, Array, TensorEntry
from clipmerge.types import Names, Shape

if TYPE_CHECKING:
    from torch import Tensor

_Formed = dict[str, tuple[TensorEntry, LazyTensor]]


class ConvertedCheckpoint(DerivedCheckpoint):
    """A checkpoint in another one's layout, with its configuration and side files, which describe
    the same model.
    """


def with_head(checkpoint: Checkpoint, like: Checkpoint, head: dict[str, Tensor]) -> Checkpoint:
    """Add a head to a zero-shot checkpoint, with the dtypes that it has in the fine-tuned one,
    ``like``.
    """
    entries = dict(checkpoint.entries)
    lazy = {}
    for key, values in head.items():
        entries[key] = replace(like.entries[key], file=checkpoint.files[0])
        read = partial(stored_array, values.flatten())
        lazy[key] = LazyTensor((), read)
    return DerivedCheckpoint.of(checkpoint, lazy, entries=entries, has_built_head=True)


def convert_checkpoint(checkpoint: Checkpoint, like: Checkpoint) -> Checkpoint:
    """View a plain ViT CLIP in the layout of another checkpoint."""
    layout, wanted = layout_of(checkpoint.entries), layout_of(like.entries)
    if layout == wanted:
        return checkpoint
    is_custom = "text.ln_final.weight" in {*checkpoint.entries, *like.entries}
    prefix = "text." if is_custom else ""
    with prefix_errors(checkpoint.source):
        if layout == "timm":
            raise CheckpointError(
                f"is a tower of timm, and {like.source} has another layout; give both in one"
            )
        if wanted == "timm":
            formed = _form_timm(checkpoint, like, layout, prefix)
        else:
            formed = _form_plain(checkpoint, layout, prefix)
    entries = {}
    lazy = {}
    for name, (entry, form) in formed.items():
        entries[name] = entry
        lazy[name] = form
    note = f"{checkpoint.source}: is converted to the layout of {wanted}, like {like.source}"
    return ConvertedCheckpoint.of(
        checkpoint,
        lazy,
        entries=entries,
        config=like.config,
        folder=like.folder,
        stored=checkpoint,
        sharded=False,
        notes=(*checkpoint.notes, note),
    )


def _form_plain(checkpoint: Checkpoint, layout: Layout, prefix: str) -> _Formed:
    """The tensors in the other one of the layouts of OpenCLIP and transformers."""
    matches = match_keys(checkpoint.entries, layout, text_prefix=prefix)
    formed: _Formed = {}
    for match in matches:
        formed |= _form_match(checkpoint, match, layout)
    return formed


def _form_timm(checkpoint: Checkpoint, like: Checkpoint, layout: Layout, prefix: str) -> _Formed:
    """The tensors of the vision tower in timm's layout, in the shapes that they have there."""
    formed: _Formed = {}
    if layout == "transformers":
        formed = _form_plain(checkpoint, layout, prefix)
    else:
        for key, entry in checkpoint.entries.items():
            read = partial(checkpoint.array, key)
            formed[key] = entry, LazyTensor((key,), read)
    renamed: _Formed = {}
    for key, (entry, lazy) in formed.items():
        name = timm_name(key)
        if name is None:
            continue
        other = like.entries.get(name, entry)
        if other.size == entry.size:  # but for leading dimensions of one
            entry = replace(entry, shape=other.shape)
        renamed[name] = entry, lazy
    return renamed


def _form_match(checkpoint: Checkpoint, match: Match, layout: Layout) -> _Formed:
    """The tensors of one match in the other layout: entries, and how their elements are formed."""
    ours = (match.open_clip,)
    theirs = match.transformers
    keys, names = (ours, theirs) if layout == "open-clip" else (theirs, ours)
    first, *others = (checkpoint.entries[key] for key in keys)
    shape = first.shape
    parts = len(theirs)
    if others:
        kinds = {(entry.shape, entry.dtype) for entry in (first, *others)}
        if len(kinds) > 1:
            raise CheckpointError(f"{theirs[0]} and its key and value differ in shape or dtype")
        entry = _entry_of_shape(first, (parts * shape[0], *shape[1:]))
        form = LazyTensor(keys, partial(_join, checkpoint, keys))
    elif parts > 1:
        if not shape or shape[0] % parts:
            raise CheckpointError(
                f"{ours[0]} has shape {shape}, which is not a stack of query, key and value"
            )
        entry = _entry_of_shape(first, (shape[0] // parts, *shape[1:]))
        formed: _Formed = {}
        for number, name in enumerate(names):
            start = number * entry.size
            read = partial(checkpoint.array, keys[0], start, start + entry.size)
            formed[name] = entry, LazyTensor(keys, read)
        return formed
    elif match.transposed:
        if len(shape) != 2:
            raise CheckpointError(f"{keys[0]} has shape {shape}; a projection is a matrix")
        entry = _entry_of_shape(first, shape[::-1])
        form = LazyTensor(keys, lambda: checkpoint.array(keys[0]).reshape(shape).T.flatten())
    else:
        is_scalar = names[0] == "logit_scale" and first.size == 1  # with or without a dimension
        entry = _entry_of_shape(first, () if is_scalar else shape)
        form = LazyTensor(keys, partial(checkpoint.array, keys[0]))
    return {names[0]: (entry, form)}


def _join(checkpoint: Checkpoint, keys: Names) -> Array:
    """Query, key and value, one after another."""
    parts = [checkpoint.array(key) for key in keys]
    return np.concatenate(parts)


def _entry_of_shape(entry: TensorEntry, shape: Shape) -> TensorEntry:
    """An entry for a tensor that is in no file; its bytes start at 0."""
    _, itemsize = DTYPES[entry.dtype]
    end = math.prod(shape) * itemsize
    return replace(entry, shape=shape, begin=0, end=end)
