"""Compare what changes the function of a model but no shape: configurations, preprocessing,
tokenizers.

Settings that both state are compared as they are. What only one states has its library's default in
the other: `AutoConfig`, and open_clip's own classes, which are imported only then.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from clipmerge.checkpoint.source import Checkpoint
from clipmerge.errors import CheckpointError, counted
from clipmerge.files.side_files import read_image_processor, read_vocabulary
from clipmerge.types import Json

_SIDES = ("vision", "text")
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
    "quick_gelu",
    "head_width",
    "heads",
    "image_size",
    "patch_size",
    "pool_type",
    "eos_id",
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
# Raised by a library for a configuration that it cannot read: then what both state is compared.
_UNREADABLE = (ImportError, LookupError, TypeError, ValueError, AttributeError)
# OpenCLIP's names of Pillow's filters.
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
_SILENT = (
    "the weights would merge silently and wrongly. Use the base that was fine-tuned, or correct the"
    " wrong"
)


def silent_mismatches(zeroshot: Checkpoint, finetuned: Checkpoint, tower: str) -> Iterator[str]:
    """Name the differences between two checkpoints that no tensor tells of; ``tower`` is that of
    the fine-tuned one.
    """
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
    for key in ours.keys() & theirs.keys():
        if ours[key] != theirs[key]:
            values = f"{key} is {ours[key]} for zeroshot, {theirs[key]} for finetuned"
            yield f"images are prepared differently: {values}; {_SILENT} preprocessing"


def _preprocessing_of(checkpoint: Checkpoint) -> Json:
    """Mean, deviation and interpolation according to the files beside a checkpoint, as far as they
    are given.
    """
    known: Json = {}
    # loaders refuse what cannot be understood
    with contextlib.suppress(CheckpointError, LookupError, TypeError, ValueError, AttributeError):
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
    """Side (``vision`` or ``text``), name and both values of each setting in which two
    configurations of the same or of two libraries differ.
    """
    libraries = {_library_of(config) for config in (ours, theirs)}
    if len(libraries) > 1:
        first, second = _settings_of_plain_clip(ours), _settings_of_plain_clip(theirs)
    elif libraries == {"open_clip"}:
        first, second = _read_settings_of_both(ours, theirs, _open_clip_stated, _open_clip_complete)
    else:
        first, second = _read_settings_of_both(
            ours, theirs, _transformers_stated, _transformers_complete
        )
    for side in _SIDES:
        others = second.get(side, {})
        for name, value in first.get(side, {}).items():
            other = others.get(name)
            if value is None or other is None:
                continue
            if value != other:
                yield side, name, value, other


def _library_of(config: Json) -> str:
    if "model_cfg" in config or "vision_cfg" in config:
        return "open_clip"
    return "timm" if "pretrained_cfg" in config else "transformers"


def _settings_of_plain_clip(config: Json) -> Json:
    """What a plain ViT CLIP has in every library."""
    library = _library_of(config)
    if library == "open_clip":
        return _plain_settings_of_open_clip(config)
    if library == "transformers":
        return _plain_settings_of_transformers(config)
    has_quick_gelu = "quickgelu" in str(config.get("architecture"))
    return {"vision": {"activation": "quick_gelu" if has_quick_gelu else "gelu"}}


def _read_settings_of_both(
    ours: Json, theirs: Json, stated: Callable[[Json], Json], complete: Callable[[Json], Json]
) -> tuple[Json, Json]:
    """The settings of both, with their library's defaults if the two do not state the same."""
    first = stated(ours)
    second = stated(theirs)
    if first == second:
        return first, second
    try:
        return complete(ours), complete(theirs)
    except _UNREADABLE:
        return first, second


def _transformers_stated(config: Json) -> Json:
    found: Json = {}
    for side in _SIDES:
        section = config
        if not _is_lone(config, side):
            older = config.get(f"{side}_config_dict") or {}  # which takes precedence
            section = {**(config.get(f"{side}_config") or {}), **older}
        found[side] = {name: section[name] for name in _TRANSFORMERS if name in section}
    return found


def _is_lone(config: Json, side: str) -> bool:
    """Whether a configuration is of one tower."""
    return str(config.get("model_type")).endswith(f"_{side}_model")


def _transformers_complete(config: Json) -> Json:
    from transformers import AutoConfig

    whole = AutoConfig.for_model(**config)
    found: Json = {}
    for side in _SIDES:
        section = whole
        if not _is_lone(config, side):
            section = getattr(whole, f"{side}_config", None)
        found[side] = {name: getattr(section, name, None) for name in _TRANSFORMERS}
    text = getattr(whole, "text_config", whole)
    words = getattr(text, "vocab_size", None)
    is_clip = whole.model_type.startswith("clip")
    if is_clip and words and found["text"]["eos_token_id"] == 2:
        # as OpenAI's configurations say; transformers then takes the largest token, the last word
        found["text"]["eos_token_id"] = words - 1
    return found


def _open_clip_stated(config: Json) -> Json:
    model = config.get("model_cfg", config)
    found: Json = {}
    for side in _SIDES:
        section = model.get(f"{side}_cfg") or {}
        found[side] = {name: section.get(name) or None for name in _OPEN_CLIP}
        # towers of other libraries have their own activation
        if not (section.get("timm_model_name") or section.get("hf_model_name")):
            found[side]["quick_gelu"] = bool(model.get("quick_gelu"))
    return found


def _open_clip_complete(config: Json) -> Json:
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    found = _open_clip_stated(config)
    for side, kind in (("vision", CLIPVisionCfg), ("text", CLIPTextCfg)):
        settings = found[side]
        for field in dataclasses.fields(kind):
            if field.name in settings and settings[field.name] is None:
                settings[field.name] = field.default or None
        if settings["pool_type"] != "eos":
            settings["eos_id"] = None
    return found


def _plain_settings_of_transformers(config: Json) -> Json:
    found: Json = {}
    for side, section in _transformers_complete(config).items():
        activation = section["hidden_act"]
        if activation not in ("quick_gelu", "gelu"):
            activation = "another"
        found[side] = {
            "activation": activation,
            "heads": section["num_attention_heads"],
            "image_size": section["image_size"],
        }
    return found


def _plain_settings_of_open_clip(config: Json) -> Json:
    model = config.get("model_cfg", config)
    whole = _open_clip_complete(config)
    vision, text = whole["vision"], whole["text"]
    stated = model.get("vision_cfg") or {}
    found: Json = {
        "vision": {
            "heads": int(stated.get("width", 768)) // int(vision["head_width"]),
            "image_size": vision["image_size"],
        },
        "text": {"heads": text["heads"]},
    }
    for side in _SIDES:
        activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
        if whole[side]["act_kwargs"]:
            activation = "another"
        found[side]["activation"] = activation
    return found
