"""What a pair's user should know before it is merged: what stays, what is kept, what is left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipmerge.errors import shorten
from clipmerge.families import is_buffer, is_counter, is_statistic

if TYPE_CHECKING:
    from clipmerge.checkpoint.inputs import Inputs


def what_happens(inputs: Inputs) -> list[str]:
    """Say what is not simply merged, one line each.

    Args:
        inputs: Aligned checkpoints.
    """
    notes = []
    if inputs.has_built_head:
        notes.append(
            "the fine-tuned checkpoint is a classifier: the zero-shot side of its head is built from class prompts, "
            "and the output is a classifier too"
        )
    elif inputs.keeps_head:
        notes.append(
            "the fine-tuned checkpoint is a classifier: its head is kept as it is, and the output is a classifier too, "
            "without what the zero-shot model has beside it (`--set missing=keep-zeroshot` writes the whole zero-shot "
            "model with the merged tower instead)"
        )
    elif inputs.is_partial:
        notes.append(f"the fine-tuned checkpoint holds the {inputs.tower} tower only; the rest stays zero-shot")
    statistics = sum(is_statistic(name) for name in inputs.zeroshot_keys)
    if statistics:
        notes.append(
            f"{statistics} running means and variances of batch norms are interpolated like their layers' weights, and "
            "never masked"
        )
    return notes + _what_some_lack(inputs)


def _what_some_lack(inputs: Inputs) -> list[str]:
    """Say what becomes of parameters that some of several fine-tuned checkpoints have and others do not."""
    if inputs.missing == "error" or len(inputs.finetuned) < 2:
        return []
    ours, first, several = inputs.zeroshot_keys, inputs.finetuned_keys[0], inputs.finetuned_keys
    names = dict.fromkeys(name for keys in several for name in keys if not is_incidental(name))
    keeps_finetuned = inputs.missing == "keep-finetuned"
    drops = keeps_finetuned and not inputs.is_partial  # the output has the parameters of the first
    some = [name for name in names if name in ours and not all(name in keys for keys in several)]
    notes = []
    if stay := [name for name in some if name in first or not drops]:
        notes.append(
            f"{len(stay)} parameters stay zero-shot, as not every fine-tuned checkpoint has them: {shorten(stay)}"
        )
    lost = [name for name in some if name not in first] if drops else []
    lost += [name for name in names if name not in ours and name not in first] if keeps_finetuned else []
    if lost:
        notes.append(
            f"{len(lost)} parameters are left out, as {inputs.finetuned[0].source}, the first of the fine-tuned "
            f"checkpoints, lacks them: {shorten(lost)}"
        )
    if keeps_finetuned and (kept := [name for name in first if name not in ours and not is_incidental(name)]):
        notes.append(
            f"{len(kept)} parameters that the zero-shot checkpoint lacks are those of {inputs.finetuned[0].source}, "
            f"the first of the fine-tuned checkpoints, and not averaged: {shorten(kept)}"
        )
    return notes


def is_incidental(name: str) -> bool:
    """Whether a tensor is positions or a counter, which may stand in one file and not in the other of one model.

    Args:
        name: Canonical name.
    """
    return is_buffer(name) or is_counter(name)
