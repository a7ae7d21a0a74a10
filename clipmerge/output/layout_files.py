"""Files beside the weights for the other library: configuration, preprocessing, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

from clipmerge.checkpoint import Checkpoint
from clipmerge.checkpoint.converted import ConvertedCheckpoint
from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG
from clipmerge.conversion.preprocessing import image_processor_config, preprocess_cfg
from clipmerge.conversion.tokens import is_clips_own, write_clip_tokenizer
from clipmerge.errors import CheckpointError
from clipmerge.files.safetensors import DTYPES
from clipmerge.files.side_files import (
    SIDE_FILES,
    TOKENIZER_FILES,
    copy_side_file,
    read_image_processor,
    require_inside,
)

# size of the vocabulary of OpenCLIP's own tokenizer
_CLIP_WORDS = 49408


def write_layout_files(folder: Path, converted: ConvertedCheckpoint, dtype: str) -> list[str]:
    """Write the files that the other library needs beside the weights; return notes for the
    user.
    """
    original, config = converted.original, converted.config or {}
    try:
        notes = []
        if "model_cfg" in config:
            notes = _open_clip_files(folder, original, config)
        else:
            _transformers_files(folder, original, config, dtype)
    except CheckpointError as error:
        raise CheckpointError(f"{converted.source}: {error}") from None
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"{converted.source}: its preprocessing cannot be understood ({reason})"
        ) from None
    _copy(
        folder, original.folder, sorted(name for name in SIDE_FILES if name.startswith("LICENSE"))
    )
    return notes


def _transformers_files(
    folder: Path, checkpoint: Checkpoint, config: dict[str, Any], dtype: str
) -> None:
    """Write ``config.json``, ``preprocessor_config.json`` and the tokenizer."""
    ours = checkpoint.config or {}
    if actual := dtype_of(checkpoint, dtype):
        config = {**config, "dtype": actual}
    _write_json(folder / "config.json", config)
    size = config["vision_config"]["image_size"]
    _write_json(
        folder / "preprocessor_config.json",
        image_processor_config(ours.get("preprocess_cfg") or {}, size),
    )
    text = ours.get("model_cfg", ours).get("text_cfg") or {}
    is_own = is_clips_own(checkpoint.folder)
    if text.get("hf_tokenizer_name") and is_own is None:
        raise CheckpointError(
            f"its tokenizer is that of {text['hf_tokenizer_name']}; copy the tokenizer's files"
            " beside the weights first"
        )
    if is_own or text.get("hf_tokenizer_name"):
        _copy(folder, checkpoint.folder, TOKENIZER_FILES)
        return
    words = config["text_config"]["vocab_size"]
    if words != _CLIP_WORDS:
        raise CheckpointError(
            f"its text tower has {words} tokens, but open_clip_config.json names no tokenizer; set "
            "text_cfg.hf_tokenizer_name and copy the tokenizer's files beside the weights"
        )
    write_clip_tokenizer(folder, config["text_config"]["max_position_embeddings"])


def _open_clip_files(folder: Path, checkpoint: Checkpoint, config: dict[str, Any]) -> list[str]:
    """Write ``open_clip_config.json`` and copy the tokenizer; return notes for the user."""
    model_cfg = deepcopy(config["model_cfg"])
    name = checkpoint.folder.resolve().name
    processor = read_image_processor(checkpoint.folder)
    notes = []
    if processor is None:
        notes.append(
            f"{checkpoint.source}: has no preprocessor_config.json; OpenAI's mean and deviation"
            " were written"
        )
    preprocess, preprocessing_notes = preprocess_cfg(
        processor or {}, model_cfg["vision_cfg"]["image_size"]
    )
    is_own = is_clips_own(checkpoint.folder)
    if is_own is None and model_cfg["text_cfg"]["vocab_size"] != _CLIP_WORDS:
        notes.append(
            f"{checkpoint.source}: has no tokenizer, and its vocabulary is not CLIP's; OpenCLIP"
            " will need one"
        )
    if is_own is False:
        # from a folder OpenCLIP reads the files regardless of the name; on the Hub it must be the
        # repository's
        model_cfg["text_cfg"]["hf_tokenizer_name"] = name
        notes.append(
            f"the tokenizer is not CLIP's own: text_cfg.hf_tokenizer_name is '{name}'; make it"
            " ORG/NAME when you publish"
        )
    if is_own is not None:
        _copy(folder, checkpoint.folder, TOKENIZER_FILES)
    _write_json(folder / OPEN_CLIP_CONFIG, {"model_cfg": model_cfg, "preprocess_cfg": preprocess})
    return notes + preprocessing_notes


def dtype_of(checkpoint: Checkpoint, asked: str) -> str | None:
    """The dtype that a configuration states for the weights; ``None`` if they have several."""
    floats = {DTYPES[entry.dtype][0] for entry in checkpoint.entries.values() if entry.is_float}
    return asked if asked != "keep" else floats.pop() if len(floats) == 1 else None


def _copy(folder: Path, source: Path, names: Iterable[str]) -> None:
    for name in names:
        file = require_inside(source, name)
        if file is not None:
            copy_side_file(file, folder / name)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
