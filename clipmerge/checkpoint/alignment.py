"""Align checkpoints by canonical parameter name, refuse those that do not match, and note what is
not simply merged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast, get_args

from clipmerge.checkpoint.converted import (
    ConvertedCheckpoint,
    as_stored,
    convert_checkpoint,
)
from clipmerge.checkpoint.inputs import Inputs
from clipmerge.checkpoint.settings import differing_settings
from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG, Checkpoint, prefix_errors
from clipmerge.errors import CheckpointError, counted, shorten
from clipmerge.families import (
    Family,
    family_of,
    is_counter,
    is_index_buffer,
    layers_of,
    tower_of,
)
from clipmerge.files.safetensors import DTYPES, TensorEntry
from clipmerge.files.side_files import (
    have_same_vocabulary_files,
    read_image_processor,
    read_vocabulary,
)
from clipmerge.layers import HEAD
from clipmerge.types import Json, Missing, OutputDtype

# OpenCLIP's names of Pillow's filters.
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
_TOWER_WORDS = {
    "full": "both towers",
    "vision": "the vision tower only",
    "text": "the text tower only",
}
_SILENT = (
    "the weights would merge silently and wrongly. Use the base that was fine-tuned, or correct the"
    " wrong"
)


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
    for problem in find_mismatches(inputs, mixed_dtypes=mixed_dtypes):
        raise CheckpointError(problem)


def finetuned_dtype(inputs: Inputs) -> OutputDtype | None:
    """The one dtype of the fine-tuned weights where the zero-shot ones have another; ``None`` if
    they agree, or if the fine-tuned ones have several.
    """
    dtypes = set()
    differs = False
    for which in range(len(inputs.finetuned)):
        for _, ours, theirs in _shared_entries(inputs, which):
            if ours.is_float:
                differs |= theirs.dtype != ours.dtype
                dtypes.add(DTYPES[theirs.dtype][0])
    dtype = dtypes.pop() if differs and len(dtypes) == 1 else None
    return cast(OutputDtype, dtype) if dtype in get_args(OutputDtype) else None


def _shared_entries(inputs: Inputs, which: int) -> Iterator[tuple[str, TensorEntry, TensorEntry]]:
    """Tensors that the zero-shot and a fine-tuned checkpoint have: name, and entry in each."""
    keys = inputs.finetuned_keys[which]
    entries = inputs.finetuned[which].entries
    for name in inputs.zeroshot_keys:
        if name in keys and not is_incidental(name):
            yield name, inputs.zeroshot_entry(name), entries[keys[name]]


def align(
    zeroshot: Checkpoint, finetuned: list[Checkpoint], *, missing: Missing = "error"
) -> Inputs:
    """Match keys by canonical name, in the layout of the first fine-tuned checkpoint, without
    checking for mismatches.
    """
    checkpoints = [convert_checkpoint(one, finetuned[0]) for one in (zeroshot, *finetuned)]
    family = _common_family(checkpoints)
    keys = []
    for checkpoint in checkpoints:
        with prefix_errors(checkpoint.source):
            keys.append(family.by_canonical_name(checkpoint.entries))
    notes = [note for checkpoint in checkpoints for note in checkpoint.notes]
    notes += _drop_other_head(checkpoints, keys)
    towers = {tower_of(layers_of(names).values()) for names in keys[1:]}
    tower = towers.pop() if len(towers) == 1 else "full"
    first, *others = checkpoints
    inputs = Inputs(family, first, tuple(others), keys[0], tuple(keys[1:]), tower, missing, notes)
    notes.extend(_alignment_notes(inputs))
    return inputs


def _drop_other_head(checkpoints: list[Checkpoint], keys: list[dict[str, str]]) -> Iterator[str]:
    """Leave out the zero-shot checkpoint's head if it has other classes than the fine-tuned one's,
    and say so.
    """
    zeroshot, finetuned = checkpoints[:2]
    ours, theirs = keys[:2]
    shapes = {
        name: (zeroshot.entries[ours[name]].shape, finetuned.entries[theirs[name]].shape)
        for name, layer in layers_of(ours).items()
        if layer == HEAD and name in theirs
    }
    if any(shape != other for shape, other in shapes.values()):
        for name in shapes:
            del ours[name]
        rows, other_rows = (shape[0] for shape in next(iter(shapes.values())))
        yield (
            f"{zeroshot.source}: its head has {rows} rows, the fine-tuned one's {other_rows}; it is"
            " left out"
        )


def _common_family(checkpoints: list[Checkpoint]) -> Family:
    """The common family; checkpoints without a config take that of the others."""
    known = [one for one in checkpoints if one.config is not None] or checkpoints[:1]
    families = []
    for checkpoint in known:
        with prefix_errors(checkpoint.source):
            families.append(family_of(checkpoint.config, checkpoint.entries))
    for family, checkpoint in zip(families, known, strict=True):
        if family is not families[0]:
            raise CheckpointError(
                f"{checkpoint.source} is a {family.name} checkpoint and {known[0].source} a"
                f" {families[0].name} one; models of different families do not merge. Give the base"
                " that was fine-tuned"
            )
    return families[0]


def find_mismatches(inputs: Inputs, *, mixed_dtypes: bool = False) -> list[str]:
    """List the mismatches that prevent a merge, most informative first, one line each."""
    problems = []
    tower = tower_of(inputs.layers)
    if tower not in ("full", inputs.tower):
        problems.append(
            f"{inputs.zeroshot.source}: holds the {tower} tower only, the fine-tuned checkpoint "
            f"{_TOWER_WORDS[inputs.tower]}; give the zero-shot model that was fine-tuned"
        )
    if len(inputs.finetuned) > 1 and inputs.keeps_head and not inputs.has_built_head:
        problems.append(
            "several fine-tuned classifiers, and a zero-shot model without a head: one head can be"
            " kept, not several; give one of them, or a base with a head of the same classes"
        )
    for which, checkpoint in enumerate(inputs.finetuned):
        problems += _mismatch(inputs, which, "shape", lambda entry: entry.shape, "")
        problems += _config_mismatches(inputs, checkpoint)
        if inputs.tower != "text":
            problems += _preprocessing_mismatches(inputs.zeroshot, checkpoint)
        if inputs.tower != "vision":
            problems += _vocabulary_mismatches(inputs.zeroshot, checkpoint)
        if inputs.missing == "error":
            problems += _key_mismatches(inputs, which)
        if mixed_dtypes:
            problems += _mismatch(inputs, which, "kind", _kind, "")
        else:
            advice = " Or name one with `dtype`."
            problems += _mismatch(inputs, which, "dtype", lambda one: DTYPES[one.dtype][0], advice)
    # names of scales and biases are the same in many models
    if not problems and not any(
        inputs.merges(name) for name in inputs.zeroshot_keys if "." in inputs.layer_of[name]
    ):
        problems.append(
            f"{inputs.finetuned[0].source}: has no weight in common with {inputs.zeroshot.source},"
            f" so there is nothing to merge; is it a {inputs.family.name} checkpoint?"
        )
    is_open_clip = inputs.family.config == OPEN_CLIP_CONFIG
    needs_config = is_open_clip or isinstance(inputs.zeroshot, ConvertedCheckpoint)
    if needs_config and all(one.config is None for one in inputs.checkpoints):
        named = " or name the architecture with `model`, such as ViT-B-32" if is_open_clip else ""
        problems.append(
            f"{inputs.finetuned[0].source}: no {inputs.family.config} beside the weights says which"
            f" model they are, so nothing could load the merge; put it there{named}"
        )
    return problems


def _kind(entry: TensorEntry) -> str:
    return "float" if entry.is_float else "integer"


def _config_mismatches(inputs: Inputs, finetuned: Checkpoint) -> Iterator[str]:
    ours, theirs = as_stored(inputs.zeroshot).config, as_stored(finetuned).config
    if ours is None or theirs is None:
        return
    for side, name, a, b in differing_settings(ours, theirs):
        if inputs.tower in ("full", side):
            yield (
                f"the {side} towers differ in {name}: zeroshot {a}, finetuned {b}; {_SILENT}"
                " config.json"
            )


def _preprocessing_mismatches(zeroshot: Checkpoint, finetuned: Checkpoint) -> Iterator[str]:
    ours, theirs = _preprocessing_of(as_stored(zeroshot)), _preprocessing_of(as_stored(finetuned))
    for key in ours.keys() & theirs.keys():
        if ours[key] != theirs[key]:
            yield (
                f"images are prepared differently: {key} is {ours[key]} for zeroshot, {theirs[key]}"
                f" for finetuned; {_SILENT} preprocessing"
            )


def _preprocessing_of(checkpoint: Checkpoint) -> Json:
    """Mean, deviation and interpolation according to the files beside a checkpoint, as far as they
    are given.
    """
    known: Json = {}
    # loaders refuse what cannot be understood
    with contextlib.suppress(CheckpointError, LookupError, TypeError, ValueError, AttributeError):
        settings = (checkpoint.config or {}).get("preprocess_cfg")
        if settings is None:
            processor = read_image_processor(checkpoint.folder) or {}
            settings = {key: processor.get(f"image_{key}") for key in ("mean", "std")}
            settings["interpolation"] = _INTERPOLATIONS.get(processor.get("resample", -1))
        if settings.get("interpolation") in _INTERPOLATIONS.values():
            known["interpolation"] = settings["interpolation"]
        for key, name in (("mean", "mean"), ("std", "standard deviation")):
            if settings.get(key) is not None:
                known[name] = [round(float(value), 4) for value in settings[key]]
    return known


def _vocabulary_mismatches(zeroshot: Checkpoint, finetuned: Checkpoint) -> Iterator[str]:
    """Compare the tokenizers beside two checkpoints by the words that both know."""
    zeroshot, finetuned = as_stored(zeroshot), as_stored(finetuned)
    if have_same_vocabulary_files(zeroshot.folder, finetuned.folder):
        return  # as nearly always; to read them would take a tenth of a second
    ours, theirs = (
        {} if one.config is None else read_vocabulary(one.folder) or {}
        for one in (zeroshot, finetuned)
    )
    if other := [word for word in ours.keys() & theirs.keys() if ours[word] != theirs[word]]:
        word = min(other, key=lambda word: (ours[word], word))
        yield (
            "texts are read differently: the tokenizers give other numbers to"
            f" {counted(len(other), 'word', 'words')}, such as '{word}', which is {ours[word]} for"
            f" zeroshot, {theirs[word]} for finetuned; {_SILENT} tokenizer"
        )


def _key_mismatches(inputs: Inputs, which: int) -> Iterator[str]:
    ours, theirs = inputs.zeroshot_keys, inputs.finetuned_keys[which]
    only_ours = [n for n in ours if n not in theirs and not is_incidental(n) and inputs.expects(n)]
    only_theirs = [n for n in theirs if n not in ours and not is_incidental(n)]
    if inputs.keeps_head:
        only_theirs = [n for n in only_theirs if inputs.layer_of.get(n) != HEAD]
    if not ours.keys() & theirs.keys():
        yield (
            f"{inputs.finetuned[which].source}: holds no parameter of the {inputs.family.name}"
            f" model {inputs.zeroshot.source}, but {shorten(only_theirs)}; give the fine-tuned"
            " model as a whole, or one of its towers"
        )
        return
    for side, names in (("zero-shot", only_ours), ("fine-tuned", only_theirs)):
        if names:
            yield (
                f"{counted(len(names), 'key is', 'keys are')} only in the {side} checkpoint:"
                f" {shorten(names)}; if that is meant, pass `set=missing=keep-zeroshot` or"
                " `set=missing=keep-finetuned`"
            )


def _mismatch(
    inputs: Inputs, which: int, what: str, get: Callable[[TensorEntry], Any], advice: str
) -> Iterator[str]:
    """Name the first of the shared tensors that differ in something."""
    values = [
        (name, get(ours), get(theirs)) for name, ours, theirs in _shared_entries(inputs, which)
    ]
    if differing := [value for value in values if value[1] != value[2]]:
        of = f"of {len(values)} tensors"
        name, a, b = differing[0]
        yield (
            f"{counted(len(differing), f'{of} differs', f'{of} differ')} in {what}; first {name}:"
            f" zeroshot {a}, finetuned {b}. Compare both with `clipmerge inspect`.{advice}"
        )


def _alignment_notes(inputs: Inputs) -> Iterator[str]:
    """Describe the parameters that are not simply merged (kept, copied or left out), one line
    each.
    """
    if inputs.has_built_head:
        yield (
            "the fine-tuned checkpoint is a classifier: the zero-shot side of its head is built"
            " from class prompts, and the output is a classifier too"
        )
    elif inputs.keeps_head:
        yield (
            "the fine-tuned checkpoint is a classifier: its head is kept unchanged, and the output"
            " is a classifier too, without the rest of the zero-shot model"
            " (`set=missing=keep-zeroshot` writes the whole zero-shot model with the merged tower"
            " instead)"
        )
    elif inputs.is_partial:
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
        lost = [name for name in keys if name not in inputs.output_keys]
        if inputs.missing == "keep-zeroshot":
            lost = [name for name in keys if name not in inputs.zeroshot_keys]
        lost = [name for name in lost if not is_incidental(name)]
        if lost:
            sizes = {name: finetuned.entries[key].size for name, key in keys.items()}
            share = sum(sizes[name] for name in lost) / max(1, sum(sizes.values()))
            yield (
                f"{finetuned.source}: {counted(len(lost), 'tensor', 'tensors')} that the output"
                f" lacks ({share:.1%} of its numbers) are left behind, and what they learned is"
                f" lost: {shorten(lost)}"
            )
    stay = [
        name
        for name in inputs.zeroshot_keys
        if not is_incidental(name) and inputs.expects(name) and not inputs.merges(name)
    ]
    if stay:
        yield (
            f"{counted(len(stay), 'parameter', 'parameters')} that not every fine-tuned checkpoint"
            f" has are not merged: {shorten(stay)}"
        )


def is_incidental(name: str) -> bool:
    """Whether a tensor holds position ids or a counter, which may be missing from some files of the
    same model.
    """
    return is_index_buffer(name) or is_counter(name)
