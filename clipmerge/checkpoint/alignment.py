"""Align checkpoints by canonical parameter name, and refuse those that do not match."""

from __future__ import annotations

from typing import cast, get_args

from clipmerge.checkpoint.inputs import Inputs
from clipmerge.checkpoint.source import Checkpoint, prefix_errors
from clipmerge.errors import CheckpointError
from clipmerge.families import (
    Family,
    family_of,
    layers_of,
    layout_of,
    tower_of,
)
from clipmerge.files.safetensors import DTYPES
from clipmerge.layers import HEAD
from clipmerge.types import Missing, OutputDtype


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
    if not inputs.are_alike:
        from clipmerge.checkpoint.mismatches import find_mismatches

        for problem in find_mismatches(inputs, mixed_dtypes=mixed_dtypes):
            raise CheckpointError(problem)


def finetuned_dtype(inputs: Inputs) -> OutputDtype | None:
    """The one dtype of the fine-tuned weights where the zero-shot ones have another; ``None`` if
    they agree, or if the fine-tuned ones have several.
    """
    if inputs.are_alike:
        return None
    zeroshot, finetuned = set(), set()
    for name in filter(inputs.merges, inputs.zeroshot_keys):
        ours, *theirs = (entry.dtype for entry in inputs.entries(name))
        zeroshot.add(ours)
        finetuned.update(theirs)
    if zeroshot == finetuned or len(finetuned) > 1:
        return None
    dtype = DTYPES[finetuned.pop()][0] if finetuned else None
    return cast("OutputDtype", dtype) if dtype in get_args(OutputDtype) else None


def align(
    zeroshot: Checkpoint, finetuned: list[Checkpoint], *, missing: Missing = "error"
) -> Inputs:
    """Match keys by canonical name, in the layout of the first fine-tuned checkpoint, without
    checking for mismatches.
    """
    checkpoints = [zeroshot, *finetuned]
    if len({layout_of(checkpoint.entries) for checkpoint in checkpoints}) > 1:
        from clipmerge.checkpoint.converted import convert_checkpoint

        checkpoints = [convert_checkpoint(one, finetuned[0]) for one in checkpoints]
    family = _common_family(checkpoints)
    keys = []
    for checkpoint in checkpoints:
        with prefix_errors(checkpoint.source):
            keys.append(family.by_canonical_name(checkpoint.entries))
    notes = [note for checkpoint in checkpoints for note in checkpoint.notes]
    if any(layer == HEAD for layer in layers_of(keys[0]).values()):
        from clipmerge.checkpoint.mismatches import drop_other_head

        notes += drop_other_head(checkpoints, keys)
    towers = {tower_of(layers_of(names).values()) for names in keys[1:]}
    tower = towers.pop() if len(towers) == 1 else "full"
    first, *others = checkpoints
    inputs = Inputs(family, first, tuple(others), keys[0], tuple(keys[1:]), tower, missing, notes)
    if not inputs.are_alike:
        from clipmerge.checkpoint.mismatches import alignment_notes

        notes.extend(alignment_notes(inputs))
    return inputs


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
