"""Build the model for a pair of checkpoints, without weights."""

from __future__ import annotations

from pathlib import Path

from clipmerge.checkpoint import Inputs
from clipmerge.checkpoint.converted import ConvertedCheckpoint
from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG
from clipmerge.errors import CheckpointError
from clipmerge.families import Family
from clipmerge.files.side_files import VOCABULARIES
from clipmerge.models import ImageTextModel, model_for
from clipmerge.models.headed_tower import WEIGHT, HeadedTower
from clipmerge.models.size import no_larger_than


def build_model(inputs: Inputs) -> ImageTextModel:
    """Build the model that measures differentiate, without weights.

    Args:
        inputs: The checkpoints; the zero-shot one must be a full CLIP with its config.

    Raises:
        CheckpointError: If there is no config or no processor.
    """
    if inputs.zeroshot.config is None:
        raise CheckpointError(
            f"{inputs.zeroshot.source}: measuring needs the {inputs.family.config} beside the weights; give the whole "
            "folder"
        )
    candidates = [c for c in (*inputs.finetuned, inputs.zeroshot) if not inputs.is_partial or c is inputs.zeroshot]
    with_processor = [checkpoint for checkpoint in candidates if has_processor(checkpoint.folder, inputs.family)]
    chosen = (with_processor or candidates)[0]
    # a translated configuration names no tokenizer; the one beside the processor describes the same model
    config = chosen.config if isinstance(inputs.zeroshot, ConvertedCheckpoint) else None
    with no_larger_than(inputs.zeroshot.source, inputs.zeroshot.entries.values()):
        return model_for(inputs.family, config or inputs.zeroshot.config, chosen.folder)


def build_headed(inputs: Inputs) -> HeadedTower:
    """Build the vision tower and the head of checkpoints that have no text tower, without weights.

    Args:
        inputs: The checkpoints, of OpenCLIP's layout.

    Raises:
        CheckpointError: If there is no config, or the head does not fit the tower.
    """
    zeroshot = inputs.zeroshot
    if zeroshot.config is None or inputs.family.config != OPEN_CLIP_CONFIG:
        raise CheckpointError(f"{zeroshot.source}: evaluating a head needs {OPEN_CLIP_CONFIG} beside the weights")
    shape = zeroshot.entries[inputs.zeroshot_keys[WEIGHT]].shape
    with no_larger_than(zeroshot.source, zeroshot.entries.values()):
        return HeadedTower(inputs.family, zeroshot.config, zeroshot.folder, shape)


def has_processor(folder: Path, family: Family) -> bool:
    """Whether a folder holds an image processor and a tokenizer; OpenCLIP's configuration counts as both."""
    if family.config == OPEN_CLIP_CONFIG:
        return (folder / OPEN_CLIP_CONFIG).is_file()
    images = any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json"))
    return images and any((folder / name).is_file() for name in VOCABULARIES)
