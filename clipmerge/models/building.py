"""Build the model for a pair of checkpoints, without weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from clipmerge.checkpoint import Inputs
from clipmerge.checkpoint.inputs import HEAD_WEIGHT
from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG
from clipmerge.errors import CheckpointError
from clipmerge.families import Family
from clipmerge.files.limits import MAX_SPARE_NUMBERS, MAX_TENSORS, MAX_TIMES_THE_WEIGHTS
from clipmerge.files.safetensors import TensorEntry
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
    with no_larger_than(inputs.zeroshot.source, inputs.zeroshot.entries.values()):
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
    with no_larger_than(zeroshot.source, zeroshot.entries.values()):
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


@contextmanager
def no_larger_than(source: str, weights: Iterable[TensorEntry]) -> Iterator[None]:
    """Refuse to build a model in this block that is far larger than its weights.

    A configuration of a few bytes can ask for a billion layers, which a library makes one by one.
    """
    max_numbers = MAX_TIMES_THE_WEIGHTS * sum(entry.size for entry in weights) + MAX_SPARE_NUMBERS
    tensors = 0
    numbers = 0

    def count(_module: Any, _name: str, tensor: Any) -> None:
        nonlocal tensors, numbers
        tensors += 1
        numbers += tensor.numel() if tensor is not None else 0
        if tensors > MAX_TENSORS or numbers > max_numbers:
            raise CheckpointError(
                f"{source}: its configuration does not match the weights: it describes a far larger"
                " model; correct it"
            )

    handles = [
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
