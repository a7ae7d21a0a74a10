"""Align checkpoints by canonical parameter name, refuse those that do not match, and note what is
not simply merged.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import filterfalse
from typing import Any, cast, get_args

from clipmerge.checkpoint.converted import convert_to_one_layout
from clipmerge.checkpoint.inputs import Inputs
from clipmerge.checkpoint.source import Checkpoint, prefix_errors
from clipmerge.config import Missing, OutputDtype
from clipmerge.conversion.config import INTERPOLATIONS
from clipmerge.errors import CheckpointError, counted, shorten
from clipmerge.families import (
    Family,
    family_of,
    is_counter,
    is_index_buffer,
    is_statistic,
    known_keys,
    tower_of,
)
from clipmerge.files.safetensors import DTYPES, TensorEntry
from clipmerge.files.side_files import (
    have_same_vocabulary_files,
    read_image_processor,
    read_vocabulary,
)
from clipmerge.finding import Finding
from clipmerge.layers import HEAD
from clipmerge.types import Json

_POSITIONS = re.compile(r"positional_embedding$|position_embedding\.weight$|pos_embed$")
_WORDS = re.compile(r"token_embedding\.weight$|word_embeddings\.weight$")
# Share of a fine-tuned checkpoint's keys that must be in the zero-shot one to call the rest an
# addition.
_MIN_SHARED_KEYS = 0.5
_TOWER_WORDS = {
    "full": "both towers",
    "vision": "the vision tower only",
    "text": "the text tower only",
}


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
    """Match keys by canonical name, without checking for mismatches."""
    zeroshot, *finetuned = checkpoints = convert_to_one_layout([zeroshot, *finetuned])
    family = _common_family(checkpoints)
    keys = []
    for checkpoint in checkpoints:
        with prefix_errors(checkpoint.source):
            keys.append(family.by_canonical_name(checkpoint.entries))
    with prefix_errors(zeroshot.source):
        family.layers_of(keys[0])
    heads = _drop_other_heads(family, checkpoints, keys)
    towers = {
        tower_of(family.layers_of(filter(family.has_layer, names)).values()) for names in keys[1:]
    }
    tower = towers.pop() if len(towers) == 1 else "full"
    inputs = Inputs(family, zeroshot, tuple(finetuned), keys[0], tuple(keys[1:]), tower, missing)
    inputs.notes.extend(note for checkpoint in checkpoints for note in checkpoint.notes)
    inputs.notes.extend((*heads, *alignment_notes(inputs)))
    for checkpoint in checkpoints:
        if checkpoint.config is None:
            inputs.notes.append(
                Finding.of("no-config", source=checkpoint.source, config=family.config)
            )
    return inputs


def _drop_other_heads(
    family: Family, checkpoints: list[Checkpoint], keys: list[dict[str, str]]
) -> list[Finding]:
    """Leave out the zero-shot checkpoint's head if it has other classes than the fine-tuned one's,
    and say so.
    """
    zeroshot, finetuned = checkpoints[:2]
    ours, theirs = keys[:2]
    shapes = {
        name: (zeroshot.entries[ours[name]].shape, finetuned.entries[theirs[name]].shape)
        for name, layer in family.layers_of(ours).items()
        if layer == HEAD and name in theirs
    }
    if all(shape == other for shape, other in shapes.values()):
        return []
    for name in shapes:
        del ours[name]
    rows, other_rows = (shape[0] for shape in next(iter(shapes.values())))
    return [Finding.of("other-head", source=zeroshot.source, rows=rows, finetuned_rows=other_rows)]


def _common_family(checkpoints: list[Checkpoint]) -> Family:
    """The common family; checkpoints without a config take the first one's if their keys match
    it.
    """
    families = []
    for checkpoint in checkpoints:
        with prefix_errors(checkpoint.source):
            families.append(family_of(checkpoint.config, checkpoint.entries))
    pairs = list(zip(families, checkpoints, strict=True))
    first, known = next((pair for pair in pairs if pair[1].config is not None), pairs[0])
    for family, one in pairs:
        matched, shared = (known_keys(candidate, one.entries) for candidate in (family, first))
        undecided = one.config is None and (shared >= matched or 2 * matched < len(one.entries))
        if family is not first and not undecided:
            raise CheckpointError(
                f"{one.source} is a {family.name} checkpoint and {known.source} a {first.name} one;"
                " models of different families do not merge. Give the base that was fine-tuned"
            )
    return first


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
    for which in range(len(inputs.finetuned)):
        problems += _size_mismatches(inputs, which)
        problems += _form_mismatches(inputs, which)
    for which, checkpoint in enumerate([] if problems else inputs.finetuned):
        problems += _config_mismatches(inputs, checkpoint)
        if inputs.tower != "text":
            ours, theirs = _preprocessing_of(inputs.zeroshot), _preprocessing_of(checkpoint)
            problems += [
                f"images are prepared differently: {key} is {ours[key]} for zeroshot, {theirs[key]}"
                " for finetuned; the weights would merge silently and wrongly. Use the base that"
                " was fine-tuned, or correct the wrong preprocessing"
                for key in ours.keys() & theirs.keys()
                if ours[key] != theirs[key]
            ]
        if inputs.tower != "vision":
            problems += _vocabulary_mismatches(inputs.zeroshot, checkpoint)
        if inputs.missing == "error":
            problems += _key_mismatches(inputs, which)
        problems += _field_mismatch(inputs, which, "shape", lambda entry: entry.shape)
        if mixed_dtypes:
            problems += _field_mismatch(inputs, which, "kind", _kind)
        else:
            advice = " Or name one with `dtype`."
            problems += _field_mismatch(
                inputs, which, "dtype", lambda entry: DTYPES[entry.dtype][0], advice
            )
    # names of scales and biases are the same in many models
    if not problems and not any(
        inputs.merges(name) for name in inputs.zeroshot_keys if "." in inputs.layer_of[name]
    ):
        problems.append(
            f"{inputs.finetuned[0].source}: has no weight in common with {inputs.zeroshot.source},"
            f" so there is nothing to merge; is it a {inputs.family.name} checkpoint?"
        )
    return problems


def _kind(entry: TensorEntry) -> str:
    return "float" if entry.is_float else "integer"


def _size_mismatches(inputs: Inputs, which: int) -> Iterator[str]:
    """Name a model that reads longer texts, larger images or another vocabulary, which no other key
    tells of.
    """
    for name, entry, other in _shared_entries(inputs, which):
        ours, theirs = entry.shape, other.shape
        if len(ours) != 2 or len(theirs) != 2 or ours[0] == theirs[0]:
            continue
        if _POSITIONS.search(name):
            is_text = inputs.layer_of[name].startswith("text")
            length = "texts of another length (Long-CLIP has 248 tokens)"
            what = f"reads {length if is_text else 'images of another size'}"
            wanted = f"with {theirs[0]} positions that was fine-tuned"
        elif _WORDS.search(name) and ours[1] == theirs[1]:
            what = "has another vocabulary"
            wanted = "whose vocabulary was enlarged alike (resize_token_embeddings)"
        else:
            continue
        yield (
            f"{inputs.finetuned[which].source} {what}: {name} has {theirs[0]} rows, that of"
            f" {inputs.zeroshot.source} {ours[0]}; give the zero-shot model {wanted}"
        )
        return


def _form_mismatches(inputs: Inputs, which: int) -> Iterator[str]:
    """Name a module whose weight has another form in the fine-tuned checkpoint: to keep either
    side's would call weights fine-tuned that are zero-shot.
    """
    keys = inputs.finetuned_keys[which]
    ours = _group_by_module(name for name in inputs.zeroshot_keys if name not in keys)
    theirs = _group_by_module(name for name in keys if name not in inputs.zeroshot_keys)
    shared = [
        module
        for module, names in ours.items()
        if module in theirs and inputs.layer_of.get(f"{module}.{names[0]}") != HEAD
    ]
    if shared:
        first = shared[0]
        modules = counted(len(shared), "module has its", "modules have their")
        yield (
            f"{inputs.finetuned[which].source}: {modules} weight in another form than in"
            f" {inputs.zeroshot.source}; first {first}: {shorten(ours[first])} for zeroshot,"
            f" {shorten(theirs[first])} for finetuned. Save the plain weights where it was trained"
        )


def _group_by_module(names: Iterable[str]) -> dict[str, list[str]]:
    """Names of parameters by the module that holds them."""
    modules: dict[str, list[str]] = {}
    for name in names:
        module, _, parameter = name.rpartition(".")
        if module and not is_incidental(name):
            modules.setdefault(module, []).append(parameter)
    return modules


def _config_mismatches(inputs: Inputs, finetuned: Checkpoint) -> Iterator[str]:
    if inputs.zeroshot.config is None or finetuned.config is None:
        return
    ours, theirs = map(inputs.family.settings, (inputs.zeroshot.config, finetuned.config))
    for side in ("vision", "text", ""):
        if inputs.tower not in ("full", side):
            continue
        for key, a in ours.get(side, {}).items():
            b = theirs.get(side, {}).get(key)
            if a == b or None in (a, b):
                continue
            values = f"zeroshot {a}, finetuned {b}"
            yield (
                f"the {side} towers differ in {key}: {values}; the weights would merge silently and"
                " wrongly. Use the base that was fine-tuned, or correct the wrong config.json"
                if side
                else f"{key} differs: {values}; these are not the same {inputs.family.name}"
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
            settings["interpolation"] = INTERPOLATIONS.get(processor.get("resample", -1))
        if settings.get("interpolation") in INTERPOLATIONS.values():
            known["interpolation"] = settings["interpolation"]
        for key, name in (("mean", "mean"), ("std", "standard deviation")):
            if settings.get(key) is not None:
                known[name] = [round(float(value), 4) for value in settings[key]]
    return known


def _vocabulary_mismatches(zeroshot: Checkpoint, finetuned: Checkpoint) -> Iterator[str]:
    """Compare the tokenizers beside two checkpoints by the words that both know."""
    if have_same_vocabulary_files(zeroshot.folder, finetuned.folder):
        return  # as nearly always; to read them would take a tenth of a second
    ours, theirs = map(_vocabulary_of, (zeroshot, finetuned))
    if other := [word for word in ours.keys() & theirs.keys() if ours[word] != theirs[word]]:
        word = min(other, key=lambda word: (ours[word], word))
        yield (
            "texts are read differently: the tokenizers give other numbers to"
            f" {counted(len(other), 'word', 'words')}, such as '{word}', which is {ours[word]} for"
            f" zeroshot, {theirs[word]} for finetuned; the weights would merge silently and"
            " wrongly. Use the base that was fine-tuned, or correct the wrong tokenizer"
        )


def _vocabulary_of(checkpoint: Checkpoint) -> Mapping[str, int]:
    """The tokenizer's words, if files beside the weights belong to them."""
    known = None if checkpoint.config is None else read_vocabulary(checkpoint.folder)
    return known or {}


def _key_mismatches(inputs: Inputs, which: int) -> Iterator[str]:
    ours, theirs = inputs.zeroshot_keys, inputs.finetuned_keys[which]
    only_ours = [n for n in ours if n not in theirs and not is_incidental(n) and inputs.expects(n)]
    only_theirs = [n for n in theirs if n not in ours and not is_incidental(n)]
    if inputs.keeps_head:
        only_theirs = [n for n in only_theirs if inputs.layer_of.get(n) != HEAD]
    shared = len(ours.keys() & theirs.keys())
    source = inputs.finetuned[which].source
    if not shared:
        yield (
            f"{source}: holds no parameter of the {inputs.family.name} model"
            f" {inputs.zeroshot.source}, but {shorten(only_theirs)}; give the fine-tuned model as a"
            " whole, or one of its towers"
        )
    elif only_theirs and shared < _MIN_SHARED_KEYS * len(theirs):
        yield (
            f"{source}: only {shared} of its {len(theirs)} keys are in {inputs.zeroshot.source},"
            f" which lacks {shorten(only_theirs)}; give the zero-shot model of this fine-tuned one"
        )
    else:
        for side, names in (("zero-shot", only_ours), ("fine-tuned", only_theirs)):
            if names:
                yield (
                    f"{counted(len(names), 'key is', 'keys are')} only in the {side} checkpoint:"
                    f" {shorten(names)}; if that is meant, pass `set=missing=keep-zeroshot` or"
                    " `set=missing=keep-finetuned`"
                )


def _field_mismatch(
    inputs: Inputs, which: int, what: str, get: Callable[[TensorEntry], Any], advice: str = ""
) -> Iterator[str]:
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


def alignment_notes(inputs: Inputs) -> Iterator[Finding]:
    """Describe the parameters that are not simply merged (kept, copied or left out), one line
    each.
    """
    if inputs.has_built_head:
        yield Finding.of("built-head")
    elif inputs.keeps_head:
        yield Finding.of("unchanged-head")
    elif inputs.is_partial:
        yield Finding.of("one-tower", tower=inputs.tower)
    strange = dict.fromkeys(
        layer for name, layer in inputs.layer_of.items() if not inputs.family.knows(name)
    )
    if strange:
        yield Finding.of("unknown-layers", layers=len(strange), examples=shorten(strange))
    if statistics := sum(is_statistic(name) for name in inputs.zeroshot_keys):
        yield Finding.of("batch-norms", statistics=statistics)
    yield from _note_left_behind(inputs)
    yield from _note_partial_parameters(inputs)


def _note_left_behind(inputs: Inputs) -> Iterator[Finding]:
    """Name the parameters of one side that have no counterpart, with their share of the numbers."""
    if inputs.missing != "keep-zeroshot":
        return
    for finetuned, keys in zip(inputs.finetuned, inputs.finetuned_keys, strict=True):
        lost = [name for name in keys if name not in inputs.zeroshot_keys]
        lost = [name for name in lost if not is_incidental(name)]
        sizes = {name: finetuned.entries[key].size for name, key in keys.items()}
        if lost:
            share = sum(sizes[name] for name in lost) / max(1, sum(sizes.values()))
            yield Finding.of(
                "left-behind",
                source=finetuned.source,
                tensors=len(lost),
                share=share,
                examples=shorten(lost),
            )
    partly = inputs.partly_zeroshot if len(inputs.finetuned) == 1 else {}
    if partly:
        layers = [f"{absent} of {total} of {name}" for name, (absent, total) in partly.items()]
        yield Finding.of("mixed-layers", layers=len(layers), examples=shorten(layers))


def _note_partial_parameters(inputs: Inputs) -> Iterator[Finding]:
    """Describe the treatment of parameters that only some of several fine-tuned checkpoints
    have.
    """
    if inputs.missing == "error" or len(inputs.finetuned) < 2:
        return
    ours = inputs.zeroshot_keys
    first = inputs.finetuned_keys[0]
    names = dict.fromkeys(name for keys in inputs.finetuned_keys for name in keys)
    keeps_finetuned = inputs.missing == "keep-finetuned"
    drops = keeps_finetuned and not inputs.is_partial  # the output has the parameters of the first
    stay: list[str] = []
    lost: list[str] = []
    copied: list[str] = []
    for name in filterfalse(is_incidental, names):
        if name in ours and not all(name in keys for keys in inputs.finetuned_keys):
            (stay if name in first or not drops else lost).append(name)
        elif name not in ours and keeps_finetuned:
            (copied if name in first else lost).append(name)
    yield from (
        Finding.of(kind, source=inputs.finetuned[0].source, examples=shorten(names))
        for kind, names in (
            ("some-stay-zeroshot", stay),
            ("some-left-out", lost),
            ("some-copied", copied),
        )
        if names
    )


def is_incidental(name: str) -> bool:
    """Whether a tensor holds position ids or a counter, which may be missing from some files of the
    same model.
    """
    return is_index_buffer(name) or is_counter(name)
