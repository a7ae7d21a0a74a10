"""Align checkpoints by canonical parameter name, and refuse those that do not match."""

from __future__ import annotations

from clipmerge.checkpoint.compare import find_mismatches, notes_on
from clipmerge.checkpoint.converted import in_one_layout
from clipmerge.checkpoint.inputs import Inputs
from clipmerge.checkpoint.source import Checkpoint, naming
from clipmerge.errors import CheckpointError
from clipmerge.families import Family, family_of, known_keys, tower_of
from clipmerge.layers import HEAD
from clipmerge.options import Missing


def align_checkpoints(
    zeroshot: Checkpoint,
    finetuned: list[Checkpoint],
    *,
    missing: Missing = "error",
    mixed_dtypes: bool = False,
) -> Inputs:
    """Align checkpoints and refuse mismatches, without reading weights."""
    inputs = align(zeroshot, finetuned, missing=missing)
    for problem in find_mismatches(inputs, missing=missing, mixed_dtypes=mixed_dtypes):
        raise CheckpointError(problem)
    return inputs


def align(zeroshot: Checkpoint, finetuned: list[Checkpoint], *, missing: Missing = "error") -> Inputs:
    """Match keys by canonical name, without checking for mismatches."""
    zeroshot, finetuned = in_one_layout(zeroshot, finetuned)
    checkpoints = (zeroshot, *finetuned)
    family = _common_family(checkpoints)
    keys = []
    for checkpoint in checkpoints:
        with naming(checkpoint.source):
            keys.append({name: key for key, name in family.canonical_names(checkpoint.entries).items()})
    with naming(zeroshot.source):
        family.layers_of(keys[0])
    heads = _other_heads(family, checkpoints, keys)
    towers = {tower_of(family.layers_of(filter(family.has_layer, names)).values()) for names in keys[1:]}
    tower = towers.pop() if len(towers) == 1 else "full"
    inputs = Inputs(family, zeroshot, tuple(finetuned), keys[0], tuple(keys[1:]), tower, missing)
    inputs.notes.extend(checkpoint.note for checkpoint in checkpoints if checkpoint.note)
    inputs.notes.extend((*heads, *notes_on(inputs)))
    for checkpoint in checkpoints:
        if checkpoint.config is None:
            inputs.notes.append(
                f"{checkpoint.source}: no {family.config} beside it, so its activation could not be compared"
            )
    return inputs


def _other_heads(family: Family, checkpoints: tuple[Checkpoint, ...], keys: list[dict[str, str]]) -> list[str]:
    """Leave out the zero-shot checkpoint's head if it has other classes than the fine-tuned one's, and say so."""
    zeroshot, finetuned = checkpoints[:2]
    ours, theirs = keys[:2]
    shared = [name for name, layer in family.layers_of(ours).items() if layer == HEAD and name in theirs]
    if all(zeroshot.entries[ours[name]].shape == finetuned.entries[theirs[name]].shape for name in shared):
        return []
    classes = [checkpoint.entries[of[shared[0]]].shape[0] for checkpoint, of in zip(checkpoints, keys, strict=False)]
    for name in shared:
        del ours[name]
    return [f"{zeroshot.source}: its head has {classes[0]} rows, the fine-tuned one's {classes[1]}; it is left out"]


def _common_family(checkpoints: tuple[Checkpoint, ...]) -> Family:
    """The common family; checkpoints without a config take the first one's if their keys match it."""
    families = []
    for checkpoint in checkpoints:
        with naming(checkpoint.source):
            families.append(family_of(checkpoint.config, checkpoint.entries))
    decided = (family for family, one in zip(families, checkpoints, strict=True) if one.config is not None)
    first = next(decided, families[0])
    for family, one in zip(families, checkpoints, strict=True):
        known_to_it, known_to_first = known_keys(family, one.entries), known_keys(first, one.entries)
        undecided = one.config is None and (known_to_first >= known_to_it or 2 * known_to_it < len(one.entries))
        if family is not first and not undecided:
            known = next(other for other, of in zip(checkpoints, families, strict=True) if of is first)
            raise CheckpointError(
                f"{one.source} is a {family.name} checkpoint and {known.source} a {first.name} one; models of "
                "different families do not merge. Give the base that was fine-tuned"
            )
    return first
