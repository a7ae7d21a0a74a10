"""The configuration of a release file, which contains none: derived from the shapes of its tensors.

Model soups and WiSE-FT save OpenAI's CLIP without its text tower and with a classification head; the architecture of
the vision tower follows from the shapes. OpenAI's models use QuickGELU and heads of 64 channels.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipmerge.checkpoint import open_checkpoint
from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG
from clipmerge.errors import CheckpointError

_HEAD_WIDTH = 64
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_BLOCK = re.compile(r"visual\.transformer\.resblocks\.(\d+)\.ln_1\.weight")


def write_config(file: Path) -> None:
    """Write ``open_clip_config.json`` beside a release file.

    Args:
        file: The file.

    Raises:
        CheckpointError: If it is not a ViT of OpenAI's CLIP with a head.
    """
    entries = open_checkpoint(str(file)).entries
    shapes = {key.removeprefix("model."): entry.shape for key, entry in entries.items()}
    try:
        model = _model(shapes)
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{file}: is not a ViT of OpenAI's CLIP with a head ({error}); is it the right file?"
        ) from None
    config = {"model_cfg": model, "preprocess_cfg": {"mean": _MEAN, "std": _STD}}
    (file.parent / OPEN_CLIP_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _model(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    width, _, patch, _ = shapes["visual.conv1.weight"]
    places, _ = shapes["visual.positional_embedding"]
    _, features = shapes["visual.proj"]
    blocks = {match[1] for key in shapes if (match := _BLOCK.fullmatch(key))}
    hidden, _ = shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"]
    return {
        "embed_dim": features,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": math.isqrt(places - 1) * patch,
            "layers": len(blocks),
            "width": width,
            "head_width": _HEAD_WIDTH,
            "mlp_ratio": hidden / width,
            "patch_size": patch,
        },
        # the text tower is not in the file; this is the one that OpenAI trained with it
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": features,
            "heads": max(1, features // _HEAD_WIDTH),
            "layers": 12,
        },
    }
