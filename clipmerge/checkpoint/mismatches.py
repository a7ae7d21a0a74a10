"""Find differences between aligned checkpoints. Some prevent a merge; the rest become notes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import filterfalse
from typing import cast, get_args

from clipmerge.checkpoint.alignment import Inputs, OutputKind
from clipmerge.checkpoint.settings import setting_mismatches
from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG
from clipmerge.errors import CheckpointError, counted, shorten
from clipmerge.families import is_counter, is_index_buffer, tower_of
from clipmerge.files.safetensors import DTYPES
from clipmerge.layers import HEAD
from clipmerge.types import OutputDtype

_TOWER_WORDS = {
    "full": "both towers",
    "vision": "the vision tower only",
    "text": "the text tower only",
}


def settle_differences(inputs: Inputs, *, refuse: bool) -> Inputs:
    """Note the differences, and choose the output's dtype. Raise an error if tensors cannot be
    merged.
    """
    inputs = _without_other_head(inputs)
    inputs.notes.extend(_describe_differences(inputs))
    dtype = _finetuned_dtype(inputs)
    if inputs.dtype == "keep" and dtype is not None:
        inputs.notes.append(
            "the zero-shot and the fine-tuned weights differ in dtype; the output has the"
            f" fine-tuned one, {dtype} (`dtype` names another)"
        )
        inputs = replace(inputs, dtype=dtype)
    if refuse:
        for problem in _tensor_mismatches(inputs, every=False):
            raise CheckpointError(problem)
    return inputs


def _without_other_head(inputs: Inputs) -> Inputs:
    """Leave out the zero-shot head if the fine-tuned one has another number of rows."""
    head = inputs.layers.get(HEAD, ())
    for name in head:
        ours, *theirs = (entry.shape for entry in inputs.entries(name))
        if theirs and theirs[0] != ours:
            inputs.notes.append(
                f"{inputs.zeroshot.source}: its head has {ours[0]} rows and the fine-tuned one's"
                f" {theirs[0][0]}, so it is left out"
            )
            kept = {name: key for name, key in inputs.zeroshot_keys.items() if name not in head}
            return replace(inputs, zeroshot_keys=kept)
    return inputs


def _finetuned_dtype(inputs: Inputs) -> OutputDtype | None:
    """Return the one dtype of the fine-tuned weights if the zero-shot weights have another.

    It is ``None`` for an adapter, whose merge has the dtype of its base.
    """
    if any(finetuned.is_adapted for finetuned in inputs.finetuned):
        return None
    zeroshot, finetuned = set(), set()
    for name in filter(inputs.merges, inputs.zeroshot_keys):
        ours, *theirs = (DTYPES[entry.dtype][0] for entry in inputs.entries(name))
        zeroshot.add(ours)
        finetuned.update(theirs)
    known = finetuned & {*get_args(OutputDtype)}
    is_one = len(known) == len(finetuned) == 1 and finetuned != zeroshot
    return cast(OutputDtype, known.pop()) if is_one else None


def find_mismatches(inputs: Inputs) -> list[str]:
    """List the differences that prevent a merge, one line for each tensor or setting."""
    return [*_tensor_mismatches(inputs, every=True), *setting_mismatches(inputs)]


def _tensor_mismatches(inputs: Inputs, *, every: bool) -> list[str]:
    """Describe the tensors that prevent a merge, the most informative description first.

    Without ``every``, only the first tensor that differs is named.
    """
    zeroshot = inputs.zeroshot
    problems = []
    tower = tower_of(inputs.layers)
    if tower not in ("full", inputs.tower):
        problems.append(
            f"{zeroshot.source}: holds the {tower} tower only, and the fine-tuned checkpoint "
            f"{_TOWER_WORDS[inputs.tower]}; give the zero-shot model that was fine-tuned"
        )
    has_new_head = inputs.output is OutputKind.FINETUNED_CLASSIFIER
    if has_new_head and len(inputs.finetuned) > 1 and not zeroshot.has_built_head:
        problems.append(
            "several fine-tuned classifiers, but a zero-shot model without a head: only one head"
            " can be kept; give one of them, or a base with a head for the same classes"
        )
    for which, finetuned in enumerate(inputs.finetuned):
        found = [*_differing_tensors(inputs, which, every=every), *_key_mismatches(inputs, which)]
        problems += [f"{finetuned.source}: {problem}" for problem in found]
    # names of scales and biases are the same in many models
    if not problems and not any("." in layer for layer in inputs.merged_layers):
        problems.append(
            f"{inputs.finetuned[0].source}: has no weight in common with {zeroshot.source},"
            f" so there is nothing to merge; is it of the family {inputs.family.name}?"
        )
    is_open_clip = inputs.family.config == OPEN_CLIP_CONFIG
    needs_config = is_open_clip or zeroshot.stored
    if needs_config and all(one.config is None for one in inputs.checkpoints):
        named = " or name the architecture with `model`, such as ViT-B-32" if is_open_clip else ""
        problems.append(
            f"{inputs.finetuned[0].source}: no {inputs.family.config} beside the weights says which"
            f" model they are, so nothing could load the merge; put it there{named}"
        )
    return problems


def _differing_tensors(inputs: Inputs, which: int, *, every: bool) -> Iterator[str]:
    """Describe the tensors of a fine-tuned checkpoint that differ in shape or in dtype."""
    finetuned, keys = inputs.finetuned[which], inputs.finetuned_keys[which]
    shared = [name for name in _weights_in(keys) if name in inputs.zeroshot_keys]
    # an adapter's changes are in float32, and are written in the base's dtype
    is_converted = inputs.dtype != "keep" or finetuned.is_adapted
    advice = "Compare both with `clipmerge inspect`."
    dtype_advice = advice if inputs.dtype != "keep" else f"{advice} Or name one with `dtype`."
    shapes, dtypes = [], []
    for name in shared:
        ours, theirs = inputs.zeroshot_entry(name), finetuned.entries[keys[name]]
        if ours.shape != theirs.shape:
            shapes.append((name, ours.shape, theirs.shape))
        if ours.dtype == theirs.dtype or (is_converted and ours.is_float == theirs.is_float):
            continue
        dtypes.append((name, DTYPES[ours.dtype][0], DTYPES[theirs.dtype][0]))
        if ours.is_float != theirs.is_float:
            dtype_advice = "Integers do not merge; give weights that are not quantised."
    of = f"of {len(shared)} tensors"
    for differing, what, then in ((shapes, "shape", advice), (dtypes, "dtype", dtype_advice)):
        if differing and not every:
            number = counted(len(differing), f"{of} differs", f"{of} differ")
            first, a, b = differing[0]
            yield f"{number} in {what}; first {first}: zeroshot {a}, finetuned {b}. {then}"
            continue
        for name, a, b in differing:
            yield f"{name} differs in {what}: zeroshot {a}, finetuned {b}"


def _key_mismatches(inputs: Inputs, which: int) -> Iterator[str]:
    """Describe the keys that only one of the zero-shot and a fine-tuned checkpoint has."""
    ours, theirs = inputs.zeroshot_keys, inputs.finetuned_keys[which]
    if inputs.missing != "error":
        return
    only_ours = [
        name for name in _weights_in(ours) if name not in theirs and inputs.is_expected(name)
    ]
    only_theirs = [name for name in _weights_in(theirs) if name not in ours]
    if not ours.keys() & theirs.keys():
        yield (
            f"holds no parameter of the {inputs.family.name} model {inputs.zeroshot.source}, but"
            f" {shorten(only_theirs)}; give the fine-tuned model as a whole, or one of its towers"
        )
        return
    if inputs.output is OutputKind.FINETUNED_CLASSIFIER:
        only_theirs = [name for name in only_theirs if inputs.layer_of[name] != HEAD]
    for side, names in (("zero-shot", only_ours), ("fine-tuned", only_theirs)):
        if names:
            yield (
                f"{counted(len(names), 'key is', 'keys are')} only in the {side} checkpoint:"
                f" {shorten(names)}; if that is meant, pass `set=missing=keep-zeroshot` or"
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
    stay = list(filterfalse(inputs.merges, expected))
    if stay:
        yield (
            f"{counted(len(stay), 'parameter', 'parameters')} that not every fine-tuned checkpoint"
            f" has are not merged: {shorten(stay)}"
        )


def _weights_in(names: Iterable[str]) -> list[str]:
    """Drop position ids and counters, which some files of a model have and others lack."""
    return [name for name in names if not is_index_buffer(name) and not is_counter(name)]
