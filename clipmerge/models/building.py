"""Build the model whose weights aligned checkpoints have, without loading them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from clipmerge.checkpoint import Checkpoint, Inputs, OutputKind
from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG
from clipmerge.errors import CheckpointError
from clipmerge.families import Family
from clipmerge.files.side_files import PROCESSORS, VOCABULARIES
from clipmerge.layers import HEAD
from clipmerge.models import ImageTextModel, model_for
from clipmerge.types import Names


def build_model(inputs: Inputs) -> ImageTextModel:
    """Build the checkpoints' model, without weights: a tower with a head, or two towers."""
    model = _build_headed(inputs) if inputs.output.is_classifier else build_two_towers(inputs)
    model.row_names = inputs.row_names
    return model


def build_two_towers(inputs: Inputs) -> ImageTextModel:
    """Build the image tower and the text tower, without weights."""
    config = inputs.zeroshot.config
    if config is None:
        raise _missing_config_error(inputs.zeroshot, inputs.family)
    candidates = [inputs.zeroshot]
    if inputs.output is OutputKind.MODEL:
        candidates = [*inputs.finetuned, inputs.zeroshot]
        config = candidates[0].config or config  # the one that is written
    folders = [each.folder for each in candidates]
    with_processor = (folder for folder in folders if _has_processor(folder, inputs.family))
    return model_for(inputs.family, config, next(with_processor, folders[0]))


def _build_headed(inputs: Inputs) -> ImageTextModel:
    """Build an image tower and its head, without weights."""
    from clipmerge.models.headed_tower import (
        open_clip_classifier,
        timm_classifier,
        transformers_classifier,
    )

    head = [name for name, layer in inputs.layer_of.items() if layer == HEAD]
    weight = next(name for name in head if name.endswith("weight"))
    # a single checkpoint is the zero-shot one
    candidates = [*inputs.finetuned, inputs.zeroshot]
    # WiSE-FT's files have no configuration: the zero-shot model has the same tower
    described = next((each for each in candidates if each.config is not None), None)
    if described is None or described.config is None:
        raise _missing_config_error(candidates[0], inputs.family)
    builders = {"OpenCLIP": open_clip_classifier, "timm": timm_classifier}
    build_with_head = partial(
        builders.get(inputs.family.name, transformers_classifier),
        rows=inputs.entries(weight)[-1].shape[0],
        has_bias=len(head) > 1,
    )
    # training often saves no image processor
    folders = (described.folder, inputs.zeroshot.folder)
    with_processor = (folder for folder in folders if _holds_one_of(folder, PROCESSORS))
    folder = next(with_processor, described.folder)
    return model_for(inputs.family, described.config, folder, build_with_head)


def _missing_config_error(checkpoint: Checkpoint, family: Family) -> CheckpointError:
    """Make the error for a checkpoint without the configuration of its model."""
    named = ""
    if family.config == OPEN_CLIP_CONFIG:
        named = ", or name the architecture with `model`, such as ViT-B-32"
    return CheckpointError(
        f"{checkpoint.source}: no {family.config} beside it says how to build the model; copy that"
        f" of the model that it was fine-tuned from{named}"
    )


def _holds_one_of(folder: Path, names: Names) -> bool:
    """Whether a folder has at least one of these files."""
    return any((folder / name).is_file() for name in names)


def _has_processor(folder: Path, family: Family) -> bool:
    """Whether a folder has an image processor and a tokenizer; for OpenCLIP its configuration says
    how to make both.
    """
    if family.config == OPEN_CLIP_CONFIG:
        return (folder / OPEN_CLIP_CONFIG).is_file()
    return _holds_one_of(folder, PROCESSORS) and _holds_one_of(folder, VOCABULARIES)
