"""Building the model that a pair of checkpoints is run in, without weights."""

from __future__ import annotations

from pathlib import Path

from clipmerge.checkpoint import Pair
from clipmerge.checkpoint.converted import ConvertedCheckpoint
from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG, TOKENIZER_FILES
from clipmerge.errors import CheckpointError
from clipmerge.families import Family
from clipmerge.models import ImageTextModel, model_for


def build_model(pair: Pair) -> ImageTextModel:
    """Build the model that the measures differentiate, without weights.

    Args:
        pair: The checkpoints; the zero-shot one must be a full CLIP with its config.

    Raises:
        CheckpointError: If there is no config or no processor.
    """
    if pair.zeroshot.config is None:
        raise CheckpointError(
            f"{pair.zeroshot.source}: measuring needs the {pair.family.config} beside the weights; give the whole "
            "folder"
        )
    candidates = [c for c in (*pair.finetuned, pair.zeroshot) if not pair.is_partial or c is pair.zeroshot]
    with_processor = [each for each in candidates if has_processor(each.folder, pair.family)]
    chosen = (with_processor or candidates)[0]
    # a configuration that was translated names no tokenizer; the one beside the processor says the same of the model
    config = chosen.config if isinstance(pair.zeroshot, ConvertedCheckpoint) else None
    return model_for(pair.family, config or pair.zeroshot.config, chosen.folder)


def has_processor(folder: Path, family: Family) -> bool:
    """Whether a folder holds an image processor and a tokenizer; OpenCLIP's configuration stands for both."""
    if family.config == OPEN_CLIP_CONFIG:
        return (folder / OPEN_CLIP_CONFIG).is_file()
    images = any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json"))
    return images and any((folder / name).is_file() for name in TOKENIZER_FILES)
