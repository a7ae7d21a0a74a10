"""Compare settings, preprocessing and vocabularies, which shapes of tensors do not show.

If both configurations state the same settings, nothing is imported. If not, their libraries first
fill in their defaults, because a setting that is not stated may have the same value.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from clipmerge.checkpoint.source import Checkpoint
from clipmerge.errors import CheckpointError, counted
from clipmerge.files.side_files import read_image_processor, read_vocabulary
from clipmerge.types import Json

_SIDES = ("vision", "text")
# Settings on which a model's results depend. If a pair has two layouts, the settings that both
# libraries know by one name are compared.
_TRANSFORMERS = (
    "model_type",
    "hidden_act",
    "layer_norm_eps",
    "num_attention_heads",
    "patch_size",
    "image_size",
    "num_patches",
    "eos_token_id",
    "pooling_type",
    "batch_norm_eps",
)
_OPEN_CLIP = (
    "image_size",
    "patch_size",
    "pool_type",
    "attn_pooler_heads",
    "final_ln_after_pool",
    "scaled_cosine_attn",
    "no_causal_mask",
    "act_kwargs",
    "norm_kwargs",
    "timm_model_name",
    "timm_pool",
    "hf_model_name",
    "hf_pooler_type",
)
#: Values of settings by side (``vision`` or ``text``) and name.
_Settings = dict[tuple[str, str], Any]
# Errors about a malformed configuration. It is not compared, because loaders refuse it anyway.
_UNREADABLE = (
    ImportError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
)
# OpenCLIP's names of Pillow's filters.
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
_SILENT = (
    "the weights would merge silently and wrongly. Use the base that was fine-tuned, or correct the"
    " wrong"
)


def silent_mismatches(zeroshot: Checkpoint, finetuned: Checkpoint, tower: str) -> Iterator[str]:
    """Name differences in settings of the towers that the fine-tuned checkpoint has."""
    if zeroshot.config is not None and finetuned.config is not None:
        for side, name, a, b in differing_settings(zeroshot.config, finetuned.config):
            if tower in ("full", side):
                values = f"zeroshot {a}, finetuned {b}"
                yield f"the {side} towers differ in {name}: {values}; {_SILENT} config.json"
        if tower != "vision":
            yield from _vocabulary_mismatches(zeroshot, finetuned)
    if tower == "text":
        return
    ours = _preprocessing_of(zeroshot)
    theirs = _preprocessing_of(finetuned)
    for key, value in ours.items():
        other = theirs.get(key, value)
        if value != other:
            values = f"{key} is {value} for zeroshot, {other} for finetuned"
            yield f"images are prepared differently: {values}; {_SILENT} preprocessing"


def _preprocessing_of(checkpoint: Checkpoint) -> Json:
    """Read mean, deviation and interpolation of a checkpoint's preprocessing, as far as its files
    state them.
    """
    known: Json = {}
    with contextlib.suppress(CheckpointError, *_UNREADABLE):
        settings = (checkpoint.config or {}).get("preprocess_cfg")
        if settings is None:
            processor = read_image_processor(checkpoint.folder)
            settings = {
                "mean": processor.get("image_mean"),
                "std": processor.get("image_std"),
                "interpolation": _INTERPOLATIONS.get(processor.get("resample", -1)),
            }
        interpolation = settings.get("interpolation")
        if interpolation in _INTERPOLATIONS.values():
            known["interpolation"] = interpolation
        for key, name in (("mean", "mean"), ("std", "standard deviation")):
            values = settings.get(key)
            if values is not None:
                known[name] = [round(float(value), 4) for value in values]
    return known


def _vocabulary_mismatches(zeroshot: Checkpoint, finetuned: Checkpoint) -> Iterator[str]:
    """Compare the tokenizers beside two checkpoints by the words that both know."""
    ours = read_vocabulary(zeroshot.folder)
    theirs = read_vocabulary(finetuned.folder)
    shared = ours.keys() & theirs.keys()
    other = [word for word in shared if ours[word] != theirs[word]]
    if other:
        word = min(other, key=lambda word: (ours[word], word))
        yield (
            "texts are read differently: the tokenizers give other numbers to"
            f" {counted(len(other), 'word', 'words')}, such as '{word}', which is {ours[word]} for"
            f" zeroshot, {theirs[word]} for finetuned; {_SILENT} tokenizer"
        )


def differing_settings(ours: Json, theirs: Json) -> Iterator[tuple[str, str, Any, Any]]:
    """Yield side (``vision`` or ``text``), name and both values of each setting that differs."""
    first: _Settings = {}
    second: _Settings = {}
    with contextlib.suppress(*_UNREADABLE):
        first, second = _settings_in(ours), _settings_in(theirs)
        if first != second:
            first, second = (_settings_in(_with_defaults(config)) for config in (ours, theirs))
    for (side, name), value in first.items():
        other = second.get((side, name), value)
        if value != other:
            yield side, name, value, other


def _is_open_clip(config: Json) -> bool:
    return "model_cfg" in config or "vision_cfg" in config


def _with_defaults(config: Json) -> Json:
    """Complete a configuration by its library's defaults."""
    if not _is_open_clip(config):
        from transformers import AutoConfig

        completed: Json = AutoConfig.for_model(**config).to_dict()
        return completed
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    model = dict(config.get("model_cfg", config))
    for name, kind in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        model[name] = dataclasses.asdict(kind()) | (model.get(name) or {})
    return model


def _settings_in(config: Json) -> _Settings:
    """Collect the settings that a configuration states, by transformers' names where they exist."""
    read = _read_open_clip if _is_open_clip(config) else _read_transformers
    found = {}
    for side in _SIDES:
        for name, value in read(config, side).items():
            if value is not None:
                found[side, name] = value
    return found


def _read_transformers(config: Json, side: str) -> Json:
    model_type = str(config.get("model_type"))
    section = config
    if not model_type.endswith(f"_{side}_model"):  # not of this tower alone
        older = config.get(f"{side}_config_dict") or {}  # takes precedence
        section = {**(config.get(f"{side}_config") or {}), **older}
    settings = {name: section.get(name) for name in _TRANSFORMERS}
    words = section.get("vocab_size")
    if model_type.startswith("clip") and settings["eos_token_id"] == 2 and words:
        # OpenAI's configurations say 2, and transformers then pools the token of the largest number
        settings["eos_token_id"] = words - 1
    return settings


def _read_open_clip(config: Json, side: str) -> Json:
    model = config.get("model_cfg", config)
    section = model.get(f"{side}_cfg") or {}
    settings = {name: section.get(name) for name in _OPEN_CLIP}
    settings["num_attention_heads"] = section.get("heads")
    if "width" in section and "head_width" in section:
        settings["num_attention_heads"] = section["width"] // section["head_width"]
    if settings["pool_type"] == "eos":
        settings["eos_id"] = section.get("eos_id")
    # towers of other libraries have their own activation
    if not (section.get("timm_model_name") or section.get("hf_model_name")):
        settings["hidden_act"] = "quick_gelu" if model.get("quick_gelu") else "gelu"
    return settings
