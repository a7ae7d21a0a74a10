"""Compare settings, preprocessing and vocabularies, which the shapes of tensors do not show.

If two configurations have different settings, transformers or open_clip first fill in their
defaults, because a missing setting may have the same value.
"""

from __future__ import annotations

import contextlib
import dataclasses
import filecmp
from collections.abc import Iterator
from typing import Any

from clipmerge.checkpoint.alignment import Inputs
from clipmerge.checkpoint.source import Checkpoint
from clipmerge.errors import CheckpointError, counted
from clipmerge.files.side_files import VOCABULARIES, read_image_processor, read_vocabulary
from clipmerge.types import Json

# Settings on which a model's results depend, by transformers' names and by OpenCLIP's. If a pair
# has two layouts, the settings that both libraries have are compared.
_SETTINGS = (
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
#: Values of settings by tower (``vision`` or ``text``) and name.
_Settings = dict[tuple[str, str], Any]
# Errors about a malformed configuration. It is not compared, because loaders refuse it anyway.
_UNREADABLE = (ImportError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
# OpenCLIP's names of Pillow's filters.
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}


def setting_mismatches(inputs: Inputs) -> Iterator[str]:
    """Describe the settings, image preprocessing and token ids in which a fine-tuned checkpoint
    differs from the zero-shot one.
    """
    zeroshot = inputs.zeroshot.stored or inputs.zeroshot
    for other in inputs.finetuned:
        finetuned = other.stored or other
        for difference in _differences(zeroshot, finetuned, inputs.tower):
            yield (
                f"{finetuned.source}: {difference}; the weights would merge silently and wrongly."
                " Use the base that was fine-tuned, or correct the wrong file"
            )


def _differences(zeroshot: Checkpoint, finetuned: Checkpoint, tower: str) -> Iterator[str]:
    """Describe each difference of a pair in the towers that are merged."""
    if zeroshot.config is not None and finetuned.config is not None:
        for side, name, ours, theirs in differing_settings(zeroshot.config, finetuned.config):
            if tower in ("full", side):
                yield f"the {side} towers differ in {name}: zeroshot {ours}, finetuned {theirs}"
        if tower != "vision":
            yield from _differing_token_ids(zeroshot, finetuned)
    if tower != "text":
        known = _preprocessing_of(finetuned)
        for name, ours in _preprocessing_of(zeroshot).items():
            theirs = known.get(name, ours)
            if ours != theirs:
                yield (
                    f"the preprocessing of images differs in {name}: zeroshot {ours}, finetuned"
                    f" {theirs}"
                )


def _differing_token_ids(zeroshot: Checkpoint, finetuned: Checkpoint) -> Iterator[str]:
    """Describe words that have different token ids."""
    # parsing a vocabulary takes up to a second
    same, different, _ = filecmp.cmpfiles(
        zeroshot.folder, finetuned.folder, VOCABULARIES, shallow=False
    )
    if same and not different:
        return
    ours = read_vocabulary(zeroshot.folder)
    theirs = read_vocabulary(finetuned.folder)
    other = [word for word in ours if theirs.get(word, ours[word]) != ours[word]]
    if other:
        word = min(other, key=ours.__getitem__)
        yield (
            f"the tokenizers differ in the ids of {counted(len(other), 'word', 'words')}, such as"
            f" '{word}': zeroshot {ours[word]}, finetuned {theirs[word]}"
        )


def _preprocessing_of(checkpoint: Checkpoint) -> Json:
    """Read the mean, deviation and interpolation that a checkpoint's files state."""
    known: Json = {}
    with contextlib.suppress(CheckpointError, *_UNREADABLE):
        stated = (checkpoint.config or {}).get("preprocess_cfg")
        if stated is None:
            processor = read_image_processor(checkpoint.folder)
            stated = {
                "mean": processor.get("image_mean"),
                "std": processor.get("image_std"),
                "interpolation": _INTERPOLATIONS.get(processor.get("resample", -1)),
            }
        if stated.get("interpolation") in _INTERPOLATIONS.values():
            known["interpolation"] = stated["interpolation"]
        for name in ("mean", "std"):
            if stated.get(name) is not None:
                known[name] = [round(float(value), 4) for value in stated[name]]
    return known


def differing_settings(ours: Json, theirs: Json) -> Iterator[tuple[str, str, Any, Any]]:
    """Yield the tower, the name and both values of each setting in which configurations differ."""
    first: _Settings = {}
    second: _Settings = {}
    with contextlib.suppress(*_UNREADABLE):
        first, second = _settings_in(ours), _settings_in(theirs)
        if first != second:  # without open_clip, only the stated settings are compared
            first, second = (_settings_in(_with_defaults(config)) for config in (ours, theirs))
    for (side, name), value in first.items():
        other = second.get((side, name), value)
        if value != other:
            yield side, name, value, other


def _with_defaults(config: Json) -> Json:
    """Fill in the defaults of the configuration's library."""
    model = dict(config.get("model_cfg", config))
    if "vision_cfg" not in model:
        from transformers import AutoConfig

        completed: Json = AutoConfig.for_model(**config).to_dict()
        return completed
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    for name, kind in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        model[name] = dataclasses.asdict(kind()) | (model.get(name) or {})
    return model


def _settings_in(config: Json) -> _Settings:
    """Collect the settings that a configuration states, by tower and by transformers' name."""
    model = config.get("model_cfg", config)
    found = {}
    for side in ("vision", "text"):
        is_tower = str(model.get("model_type")).endswith(f"_{side}_model")
        section = dict(model) if is_tower else {}
        for name in (f"{side}_cfg", f"{side}_config", f"{side}_config_dict"):  # the last one wins
            section |= model.get(name) or {}
        if f"{side}_cfg" in model:
            section |= _named_by_transformers(section, model)
        words = section.get("vocab_size")
        if section.get("eos_token_id") == 2 and words:
            # OpenAI's configurations say 2, and transformers then pools the token of the largest
            # number
            section["eos_token_id"] = words - 1
        for name in _SETTINGS:
            if section.get(name) is not None:
                found[side, name] = section[name]
    return found


def _named_by_transformers(section: Json, model: Json) -> Json:
    """Return settings of an OpenCLIP tower by the names that transformers has for them."""
    heads = section.get("heads")
    if "width" in section and "head_width" in section:
        heads = section["width"] // section["head_width"]
    settings = {"num_attention_heads": heads}
    # towers of other libraries have their own activation
    if not (section.get("timm_model_name") or section.get("hf_model_name")):
        settings["hidden_act"] = "quick_gelu" if model.get("quick_gelu") else "gelu"
    return settings
