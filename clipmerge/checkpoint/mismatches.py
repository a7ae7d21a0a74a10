"""Find differences between aligned checkpoints. Some prevent a merge; the rest become notes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import filterfalse
from typing import cast, get_args

from clipmerge.checkpoint.alignment import Inputs, OutputKind
from clipmerge.checkpoint.settings import setting_mismatches
from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG
from clipmerge.errors import counted, shorten
from clipmerge.families import is_counter, is_index_buffer, tower_of
from clipmerge.files.safetensors import DTYPES
from clipmerge.layers import HEAD
from clipmerge.types import OutputDtype


def settle_differences(inputs: Inputs) -> Inputs:
    """Note the differences that do not prevent a merge, and choose the output's dtype."""
    inputs = _without_other_head(inputs)
    inputs.notes.extend(_describe_differences(inputs))
    dtype = _finetuned_dtype(inputs)
    if inputs.dtype == "keep" and dtype is not None:
        inputs.notes.append(
            "the zero-shot and the fine-tuned weights differ in dtype; the output has the"
            f" fine-tuned one, {dtype} (`dtype` names another)"
        )
        inputs = replace(inputs, dtype=dtype)
    return inputs


def _without_other_head(inputs: Inputs) -> Inputs:
    """Leave out the zero-shot head if the fine-tuned one has another number of rows."""
    head = inputs.layers.get(HEAD, ())
    for name in head:
        ours, *theirs = (entry.shape for entry in inputs.entries(name))
        if theirs and theirs[0] != ours:
            inputs.notes.append(
                f"{inputs.zeroshot.source}: its head has {ours[0]} rows, but the fine-tuned one"
                f" has {theirs[0][0]}, so it is left out"
            )
            kept = {name: key for name, key in inputs.zeroshot_keys.items() if name not in head}
            return replace(inputs, zeroshot_keys=kept)
    return inputs


def _finetuned_dtype(inputs: Inputs) -> OutputDtype | None:
    """Return the dtype of the fine-tuned weights if all have the same one, and the zero-shot
    weights have another.

    It is ``None`` for an adapter, whose merge has the dtype of its base.
    """
    if any(finetuned.is_adapted for finetuned in inputs.finetuned):
        return None
    zeroshot, finetuned = set(), set()
    for name in filter(inputs.merges, inputs.zeroshot_keys):
        ours, *theirs = (DTYPES[entry.dtype] for entry in inputs.entries(name))
        zeroshot.add(ours)
        finetuned.update(theirs)
    if len(finetuned) != 1 or finetuned == zeroshot:
        return None
    dtype = finetuned.pop()
    return cast(OutputDtype, dtype) if dtype in get_args(OutputDtype) else None


def find_mismatches(inputs: Inputs) -> list[str]:
    """List the differences that prevent a merge, one line for each tensor or setting. The first
    line is the most informative.
    """
    zeroshot = inputs.zeroshot
    problems = []
    tower = tower_of(inputs.layers)
    if tower not in ("full", inputs.tower):
        problems.append(
            f"{zeroshot.source}: holds the {tower} tower only, unlike the fine-tuned checkpoint;"
            " give the zero-shot model that was fine-tuned"
        )
    has_new_head = inputs.output is OutputKind.FINETUNED_CLASSIFIER
    if has_new_head and len(inputs.finetuned) > 1 and not zeroshot.has_built_head:
        problems.append(
            "several fine-tuned classifiers, but a zero-shot model without a head: only one head"
            " can be kept; give one of them, or a base with a head for the same classes"
        )
    for which, finetuned in enumerate(inputs.finetuned):
        for problem in _tensor_mismatches(inputs, which):
            problems.append(f"{finetuned.source}: {problem}")
    is_open_clip = inputs.family.config == OPEN_CLIP_CONFIG
    if is_open_clip and all(one.config is None for one in inputs.checkpoints):
        problems.append(
            f"{zeroshot.source}: no {OPEN_CLIP_CONFIG} beside the weights says which model they"
            " are, so nothing could load the merge; put it there or name the architecture with"
            " `model`, such as ViT-B-32"
        )
    return [*problems, *setting_mismatches(inputs)]


def _tensor_mismatches(inputs: Inputs, which: int) -> Iterator[str]:
    """Describe the differences in shapes, dtypes and keys between one fine-tuned checkpoint and the
    zero-shot one.
    """
    finetuned, keys = inputs.finetuned[which], inputs.finetuned_keys[which]
    shared = [name for name in _weights_in(keys) if name in inputs.zeroshot_keys]
    # names outside the towers are the same in many models
    if not any("." in inputs.layer_of[name] for name in shared):
        yield (
            f"has no weight in common with {inputs.zeroshot.source}, but {shorten(keys)}; is it of"
            f" the family {inputs.family.name}?"
        )
        return
    # an adapter's changes are in float32, and are written in the base's dtype
    is_converted = inputs.dtype != "keep" or finetuned.is_adapted
    for name in shared:
        ours, theirs = inputs.zeroshot_entry(name), finetuned.entries[keys[name]]
        dtypes = f"zeroshot {DTYPES[ours.dtype]}, finetuned {DTYPES[theirs.dtype]}"
        if ours.shape != theirs.shape:
            yield f"{name} differs in shape: zeroshot {ours.shape}, finetuned {theirs.shape}"
        elif ours.is_float != theirs.is_float:
            yield f"{name} differs in dtype: {dtypes}; give weights that are not quantised"
        elif ours.dtype != theirs.dtype and not is_converted:
            yield f"{name} differs in dtype: {dtypes}; name one with `dtype`"
    if inputs.missing == "error":
        yield from _key_mismatches(inputs, keys)


def _key_mismatches(inputs: Inputs, keys: dict[str, str]) -> Iterator[str]:
    """Describe the keys that only one of the zero-shot and a fine-tuned checkpoint has."""
    only_ours = []
    for name in _weights_in(inputs.zeroshot_keys):
        if name not in keys and inputs.is_expected(name):
            only_ours.append(name)
    has_new_head = inputs.output is OutputKind.FINETUNED_CLASSIFIER
    only_theirs = []
    for name in _weights_in(keys):
        is_new_head = has_new_head and inputs.layer_of[name] == HEAD
        if name not in inputs.zeroshot_keys and not is_new_head:
            only_theirs.append(name)
    for side, names in (("zero-shot", only_ours), ("fine-tuned", only_theirs)):
        if names:
            yield (
                f"{counted(len(names), 'key is', 'keys are')} only in the {side} checkpoint:"
                f" {shorten(names)}; if this is intended, pass `set=missing=keep-zeroshot` or"
                " `set=missing=keep-finetuned`"
            )


def _describe_differences(inputs: Inputs) -> Iterator[str]:
    """Describe the parameters that are kept, copied or left out, one line each."""
    if inputs.zeroshot.has_built_head:
        yield (
            "the fine-tuned checkpoint is a classifier: the zero-shot side of its head is built"
            " from class prompts, and the output is a classifier too"
        )
    elif inputs.output is OutputKind.FINETUNED_CLASSIFIER:
        yield (
            "the fine-tuned checkpoint is a classifier: its head is kept unchanged, and the output"
            " is a classifier too, without the rest of the zero-shot model"
            " (`set=missing=keep-zeroshot` writes the whole zero-shot model with the merged tower"
            " instead)"
        )
    elif inputs.output is OutputKind.ZEROSHOT_MODEL:
        yield f"only the {inputs.tower} tower is merged; the rest is the zero-shot model's"
    for checkpoint in inputs.checkpoints:
        if checkpoint.config is None:
            yield (
                f"{checkpoint.source}: no {inputs.family.config} beside it, so its activation could"
                " not be compared"
            )
    if inputs.missing == "error":
        return
    for finetuned, keys in zip(inputs.finetuned, inputs.finetuned_keys, strict=True):
        lost = [name for name in _weights_in(keys) if name not in inputs.output_keys]
        if lost:
            yield (
                f"{finetuned.source}: {counted(len(lost), 'tensor', 'tensors')} that the output"
                f" lacks are left out, and their training is lost: {shorten(lost)}"
            )
    expected = filter(inputs.is_expected, _weights_in(inputs.zeroshot_keys))
    unmerged = list(filterfalse(inputs.merges, expected))
    if unmerged:
        yield (
            f"{counted(len(unmerged), 'parameter', 'parameters')} that not every fine-tuned"
            f" checkpoint has are not merged: {shorten(unmerged)}"
        )


def _weights_in(names: Iterable[str]) -> list[str]:
    """Drop position ids and counters, which some files of a model have and others lack."""
    return [name for name in names if not is_index_buffer(name) and not is_counter(name)]
