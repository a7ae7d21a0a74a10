"""Views of a checkpoint: in the other library's layout, as a tower, or with a head; tensors are formed on demand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG, Checkpoint, FormedCheckpoint, naming, stored
from clipmerge.conversion.config import Shape, check_shapes, open_clip_config, transformers_config
from clipmerge.conversion.keys import Layout, Match, is_made_anew, layout_of, match_keys
from clipmerge.conversion.timm import is_timm_vit, open_clip_name
from clipmerge.errors import CheckpointError
from clipmerge.files.safetensors import DTYPES, Array, TensorEntry

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class _Formed:
    """Construction of a tensor: the file's tensors it is made from, and a function that makes it, 1-D."""

    keys: tuple[str, ...]
    make: Callable[[], Array]


@dataclass(frozen=True, kw_only=True)
class _View(FormedCheckpoint):
    """A checkpoint some of whose tensors are formed from the original's; the others are the original's own."""

    original: Checkpoint
    forms: dict[str, _Formed] = field(repr=False, compare=False)

    def formed(self, key: str) -> Array:
        """Form a tensor; see `FormedCheckpoint.formed`."""
        return self.forms[key].make() if key in self.forms else self.original.array(key)

    def release(self, key: str) -> None:
        """Release the mapped pages that a tensor was made from, too."""
        FormedCheckpoint.release(self, key)
        for each in self.forms[key].keys if key in self.forms else (key,):
            self.original.release(each)


class ConvertedCheckpoint(_View):
    """A checkpoint in the other library's layout."""


class TimmTower(_View):
    """A ViT of timm, read as a vision tower of OpenCLIP and a head; an output of this form is timm's again."""

    def timm_key(self, key: str) -> str:
        """The key in timm's layout."""
        return self.forms[key].keys[0]


class WithHead(_View):
    """A zero-shot checkpoint with a head that was made for it."""


def with_head(checkpoint: Checkpoint, like: Checkpoint, head: dict[str, Tensor]) -> WithHead:
    """Add a head to a zero-shot checkpoint, with the dtypes that it has in the fine-tuned one, ``like``."""
    entries = {key: replace(like.entries[key], file=checkpoint.files[0]) for key in head}
    facts = checkpoint.facts(entries={**checkpoint.entries, **entries})
    forms = {key: _Formed((), partial(stored, values.flatten())) for key, values in head.items()}
    return WithHead(**facts, original=checkpoint, forms=forms)


def as_open_clip(checkpoint: Checkpoint) -> Checkpoint:
    """View one of timm's ViTs of CLIP as a tower of OpenCLIP; every other checkpoint is returned as it is."""
    if not is_timm_vit(checkpoint.entries):
        return checkpoint
    keys = {open_clip_name(key): key for key in checkpoint.entries}
    entries = {name: checkpoint.entries[key] for name, key in keys.items()}
    for name in ("visual.class_embedding", "visual.positional_embedding"):
        sizes = entries[name].shape
        entries[name] = replace(entries[name], shape=sizes[-1:] if name.endswith("class_embedding") else sizes[-2:])
    head = " and its head as a classifier" if "classifier.weight" in keys else ""
    note = f"{checkpoint.source}: is a ViT of timm, read as a vision tower{head}"
    values = checkpoint.facts(entries=entries, config=None, note="; ".join(filter(None, (checkpoint.note, note))))
    forms = {name: _Formed((key,), partial(checkpoint.array, key)) for name, key in keys.items()}
    return TimmTower(**values, original=checkpoint, forms=forms)


def convert_checkpoint(checkpoint: Checkpoint, to: Layout, *, text_prefix: str = "") -> Checkpoint:
    """View a plain ViT CLIP in the other layout; ``text_prefix`` is ``text.`` for a CustomTextCLIP."""
    plain = {key.removeprefix("module."): key for key in checkpoint.entries}
    layout = layout_of(plain)
    if layout == to:
        return checkpoint
    with naming(checkpoint.source):
        prefix = text_prefix if to == "open-clip" else "text." if "text.ln_final.weight" in plain else ""
        matches = match_keys(plain, layout, text_prefix=prefix)
        formed = {name: made for match in matches for name, made in _formed(checkpoint, plain, match, to).items()}
        entries = {name: entry for name, (entry, _) in formed.items()}
        theirs = {name: checkpoint.entries[key] for name, key in plain.items() if not is_made_anew(name)}
        known = entries if to == "transformers" else theirs
        shapes = {name: () if name == "logit_scale" else entry.shape for name, entry in known.items()}
        config = None if checkpoint.config is None else _convert_config(checkpoint.config, to, prefix, shapes)
    forms = {name: form for name, (_, form) in formed.items()}
    values = checkpoint.facts(entries=entries, config=config, sharded=False)
    return ConvertedCheckpoint(**values, original=checkpoint, forms=forms)


def in_one_layout(zeroshot: Checkpoint, finetuned: list[Checkpoint]) -> tuple[Checkpoint, list[Checkpoint]]:
    """View every checkpoint in the layout of the first fine-tuned one, OpenCLIP's or transformers'."""
    zeroshot, finetuned = as_open_clip(zeroshot), [as_open_clip(each) for each in finetuned]
    wanted = layout_of(finetuned[0].entries)
    prefix = "text." if any(key.endswith("text.ln_final.weight") for key in finetuned[0].entries) else ""
    shown = []
    for each in (zeroshot, *finetuned):
        converted = convert_checkpoint(each, wanted, text_prefix=prefix)
        if converted is not each:
            note = f"{each.source}: is converted to the layout of {wanted}, like {finetuned[0].source}"
            converted = replace(converted, note=f"{each.note}; {note}" if each.note else note)
        shown.append(converted)
    return shown[0], shown[1:]


def _convert_config(config: dict[str, Any], to: Layout, prefix: str, shapes: dict[str, Shape]) -> dict[str, Any]:
    """Translate a configuration, and compare its form for transformers with the weights in that layout."""
    file = OPEN_CLIP_CONFIG if to == "transformers" else "config.json"
    try:
        if to == "transformers":
            converted = transformers_config(config.get("model_cfg", config))
        else:
            converted = {"model_cfg": open_clip_config(config) | ({"custom_text": True} if prefix else {})}
        check_shapes(converted if to == "transformers" else config, shapes, file)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"its {file} cannot be understood ({type(error).__name__}: {error})") from None
    return converted


def _formed(
    checkpoint: Checkpoint, plain: dict[str, str], match: Match, to: Layout
) -> dict[str, tuple[TensorEntry, _Formed]]:
    """The tensors of one match in the other layout: entries, and how their elements are formed."""
    parts = len(match.transformers)
    if parts == 1:
        ours, theirs = match.open_clip, match.transformers[0]
        key, name = (plain[ours], theirs) if to == "transformers" else (plain[theirs], ours)
        return {name: _lone(checkpoint, key, match, scalar=name == "logit_scale")}
    if to == "open-clip":
        keys = [plain[each] for each in match.transformers]
        first, *others = (checkpoint.entries[key] for key in keys)
        if any((other.shape, other.dtype) != (first.shape, first.dtype) for other in others):
            raise CheckpointError(f"{match.transformers[0]} and its key and value differ in shape or dtype")
        entry = _entry(first, (parts * first.shape[0], *first.shape[1:]))
        return {match.open_clip: (entry, _Formed(tuple(keys), lambda: np.concatenate([*map(checkpoint.array, keys)])))}
    key = plain[match.open_clip]
    stack = checkpoint.entries[key]
    if not stack.shape or stack.shape[0] % parts:
        raise CheckpointError(
            f"{match.open_clip} has shape {stack.shape}, which is not a stack of query, key and value"
        )
    entry = _entry(stack, (stack.shape[0] // parts, *stack.shape[1:]))
    size = entry.size
    return {
        name: (entry, _Formed((key,), partial(checkpoint.array, key, place * size, (place + 1) * size)))
        for place, name in enumerate(match.transformers)
    }


def _lone(checkpoint: Checkpoint, key: str, match: Match, *, scalar: bool) -> tuple[TensorEntry, _Formed]:
    """A tensor with one counterpart: the same, its transpose, or a scalar with or without a dimension."""
    entry = checkpoint.entries[key]
    same = _Formed((key,), partial(checkpoint.array, key))
    if scalar and entry.size == 1:
        return _entry(entry, ()), same
    if not match.transposed:
        return _entry(entry, entry.shape), same
    if len(entry.shape) != 2:
        raise CheckpointError(f"{key} has shape {entry.shape}; a projection is a matrix")

    def transpose() -> Array:
        return checkpoint.array(key).reshape(entry.shape).T.flatten()

    return _entry(entry, entry.shape[::-1]), _Formed((key,), transpose)


def _entry(entry: TensorEntry, shape: tuple[int, ...]) -> TensorEntry:
    """An entry for a tensor that is in no file; its bytes start at 0."""
    return replace(entry, shape=shape, begin=0, end=math.prod(shape) * DTYPES[entry.dtype][1])
