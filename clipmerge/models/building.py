"""Build the model for a pair of checkpoints, without weights."""

from __future__ import annotations

from pathlib import Path

from clipmerge.checkpoint import Inputs
from clipmerge.checkpoint.inputs import HEAD_WEIGHT
from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG
from clipmerge.errors import CheckpointError
from clipmerge.families import Family
from clipmerge.files.side_files import PROCESSORS, VOCABULARIES
from clipmerge.models import ImageTextModel, model_for
from clipmerge.models.headed_tower import HeadedTower


def build_model(inputs: Inputs) -> ImageTextModel:
    """Build the model that measures differentiate, without weights."""
    if inputs.zeroshot.config is None:
        named = (
            ", or name the architecture with `model`, such as ViT-B-32"
            if inputs.family.config == OPEN_CLIP_CONFIG
            else ""
        )
        raise CheckpointError(
            f"{inputs.zeroshot.source}: measuring needs the {inputs.family.config} beside the"
            f" weights; give the whole folder{named}"
        )
    candidates = [
        c
        for c in (*inputs.finetuned, inputs.zeroshot)
        if not inputs.is_partial or c is inputs.zeroshot
    ]
    with_processor = [
        checkpoint for checkpoint in candidates if has_processor(checkpoint.folder, inputs.family)
    ]
    chosen = (with_processor or candidates)[0]
    config = inputs.zeroshot.config
    if not inputs.is_partial and not inputs.keeps_head:
        config = inputs.layout.config or config  # the one that is written
    return model_for(inputs.family, config, chosen.folder)


def build_headed(inputs: Inputs) -> HeadedTower:
    """Build the vision tower and the head of checkpoints that have no text tower, without
    weights.
    """
    zeroshot = inputs.zeroshot
    if zeroshot.config is None or inputs.family.config != OPEN_CLIP_CONFIG:
        raise CheckpointError(
            f"{zeroshot.source}: evaluating a head needs {OPEN_CLIP_CONFIG} beside the weights"
        )
    shape = zeroshot.entries[inputs.zeroshot_keys[HEAD_WEIGHT]].shape
    return HeadedTower(inputs.family, zeroshot.config, zeroshot.folder, shape)


def has_processor(folder: Path, family: Family) -> bool:
    """Whether a folder holds an image processor and a tokenizer; OpenCLIP's configuration counts as
    both.
    """
    if family.config == OPEN_CLIP_CONFIG:
        return (folder / OPEN_CLIP_CONFIG).is_file()
    return all(
        any((folder / name).is_file() for name in names) for names in (PROCESSORS, VOCABULARIES)
    )
