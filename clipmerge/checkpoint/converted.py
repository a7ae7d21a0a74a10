"""Views of a checkpoint: in the other library's layout, as a tower, or with a head; tensors are
formed on demand.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from clipmerge.checkpoint.source import (
    OPEN_CLIP_CONFIG,
    Checkpoint,
    DerivedCheckpoint,
    LazyTensor,
    prefix_errors,
    stored_array,
)
from clipmerge.conversion.config import check_depths, open_clip_config, transformers_config
from clipmerge.conversion.keys import (
    Layout,
    Match,
    is_timm_vit,
    layout_of,
    match_keys,
    open_clip_name,
)
from clipmerge.errors import CheckpointError
from clipmerge.files.safetensors import DTYPES, TensorEntry
from clipmerge.finding import Finding
from clipmerge.types import Json, Shape

if TYPE_CHECKING:
    from torch import Tensor


class ConvertedCheckpoint(DerivedCheckpoint):
    """A checkpoint in the other library's layout."""


class TimmTower(DerivedCheckpoint):
    """A ViT of timm, read as a vision tower of OpenCLIP and a head; an output of this form is
    timm's again.
    """

    def timm_key(self, key: str) -> str:
        """The key in timm's layout."""
        return self.lazy[key].keys[0]


class WithHead(DerivedCheckpoint):
    """A zero-shot checkpoint with a head that was made for it."""


def with_head(checkpoint: Checkpoint, like: Checkpoint, head: dict[str, Tensor]) -> WithHead:
    """Add a head to a zero-shot checkpoint, with the dtypes that it has in the fine-tuned one,
    ``like``.
    """
    entries = {key: replace(like.entries[key], file=checkpoint.files[0]) for key in head}
    lazy = {
        key: LazyTensor((), partial(stored_array, values.flatten())) for key, values in head.items()
    }
    return WithHead.of(checkpoint, lazy, entries={**checkpoint.entries, **entries})


def as_open_clip(checkpoint: Checkpoint) -> Checkpoint:
    """View one of timm's ViTs of CLIP as a tower of OpenCLIP; every other checkpoint is returned as
    it is.
    """
    if not is_timm_vit(checkpoint.entries):
        return checkpoint
    keys = {open_clip_name(key): key for key in checkpoint.entries}
    entries = {name: checkpoint.entries[key] for name, key in keys.items()}
    for name in ("visual.class_embedding", "visual.positional_embedding"):
        sizes = entries[name].shape
        entries[name] = replace(
            entries[name], shape=sizes[-1:] if name.endswith("class_embedding") else sizes[-2:]
        )
    note = Finding.of("timm", source=checkpoint.source, head="classifier.weight" in keys)
    lazy = {name: LazyTensor((key,), partial(checkpoint.array, key)) for name, key in keys.items()}
    notes = (*checkpoint.notes, note)
    return TimmTower.of(checkpoint, lazy, entries=entries, config=None, notes=notes)


def convert_checkpoint(checkpoint: Checkpoint, to: Layout, *, text_prefix: str = "") -> Checkpoint:
    """View a plain ViT CLIP in the other layout; ``text_prefix`` is ``text.`` for a
    CustomTextCLIP.
    """
    plain = {key.removeprefix("module."): key for key in checkpoint.entries}
    layout = layout_of(plain)
    if layout == to:
        return checkpoint
    with prefix_errors(checkpoint.source):
        prefix = (
            text_prefix if to == "open-clip" else "text." if "text.ln_final.weight" in plain else ""
        )
        matches = match_keys(plain, layout, text_prefix=prefix)
        formed = {
            name: made
            for match in matches
            for name, made in _form_match(checkpoint, plain, match, to).items()
        }
        entries = {name: entry for name, (entry, _) in formed.items()}
        config = None
        if checkpoint.config is not None:
            keys = entries if to == "transformers" else plain
            config = _convert_config(checkpoint.config, to, prefix, keys)
    lazy = {name: form for name, (_, form) in formed.items()}
    return ConvertedCheckpoint.of(checkpoint, lazy, entries=entries, config=config, sharded=False)


def convert_to_one_layout(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """View all checkpoints in the layout of the second, the first fine-tuned one: OpenCLIP's or
    transformers'.
    """
    checkpoints = [as_open_clip(checkpoint) for checkpoint in checkpoints]
    finetuned = checkpoints[1]
    wanted = layout_of(finetuned.entries)
    prefix = (
        "text." if any(key.endswith("text.ln_final.weight") for key in finetuned.entries) else ""
    )
    shown = []
    for checkpoint in checkpoints:
        converted = convert_checkpoint(checkpoint, wanted, text_prefix=prefix)
        if converted is not checkpoint:
            note = Finding.of(
                "converted-layout", source=checkpoint.source, layout=wanted, like=finetuned.source
            )
            converted = replace(converted, notes=(*checkpoint.notes, note))
        shown.append(converted)
    return shown


def _convert_config(config: Json, to: Layout, prefix: str, keys: Iterable[str]) -> Json:
    """Translate a configuration, and compare its numbers of blocks with the keys in transformers'
    layout.
    """
    file = OPEN_CLIP_CONFIG if to == "transformers" else "config.json"
    try:
        if to == "transformers":
            converted = transformers_config(config.get("model_cfg", config))
        else:
            converted = {
                "model_cfg": open_clip_config(config) | ({"custom_text": True} if prefix else {})
            }
        check_depths(converted if to == "transformers" else config, keys, file)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"its {file} cannot be understood ({type(error).__name__}: {error})"
        ) from None
    return converted


def _form_match(
    checkpoint: Checkpoint, plain: dict[str, str], match: Match, to: Layout
) -> dict[str, tuple[TensorEntry, LazyTensor]]:
    """The tensors of one match in the other layout: entries, and how their elements are formed."""
    ours, theirs = (match.open_clip,), match.transformers
    names, originals = (theirs, ours) if to == "transformers" else (ours, theirs)
    keys = tuple(plain[name] for name in originals)
    first, *others = (checkpoint.entries[key] for key in keys)
    shape = first.shape
    parts = len(theirs)
    if others:
        if any((other.shape, other.dtype) != (shape, first.dtype) for other in others):
            raise CheckpointError(f"{theirs[0]} and its key and value differ in shape or dtype")
        entry = _entry_of_shape(first, (parts * shape[0], *shape[1:]))
        form = LazyTensor(keys, lambda: np.concatenate([*map(checkpoint.array, keys)]))
    elif parts > 1:
        if not shape or shape[0] % parts:
            raise CheckpointError(
                f"{ours[0]} has shape {shape}, which is not a stack of query, key and value"
            )
        entry = _entry_of_shape(first, (shape[0] // parts, *shape[1:]))
        size = entry.size
        return {
            name: (
                entry,
                LazyTensor(
                    keys, partial(checkpoint.array, keys[0], index * size, (index + 1) * size)
                ),
            )
            for index, name in enumerate(names)
        }
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


def _entry_of_shape(entry: TensorEntry, shape: Shape) -> TensorEntry:
    """An entry for a tensor that is in no file; its bytes start at 0."""
    return replace(entry, shape=shape, begin=0, end=math.prod(shape) * DTYPES[entry.dtype][1])
