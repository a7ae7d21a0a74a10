"""Translate ``open_clip_config.json`` to transformers' configuration and back; refuse settings
without a counterpart.

The weights of two CLIPs may have the same shapes although the models compute different functions:
QuickGELU or GELU, the number of heads, the pooling of the text. None of it is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from clipmerge.errors import CheckpointError
from clipmerge.finding import Finding
from clipmerge.types import Json

# One tower's settings that both libraries have: OpenCLIP's name and default, and transformers'.
_BOTH: dict[str, tuple[tuple[str, int, str, int], ...]] = {
    "vision": (
        ("layers", 12, "num_hidden_layers", 12),
        ("width", 768, "hidden_size", 768),
        ("patch_size", 16, "patch_size", 32),
        ("image_size", 224, "image_size", 224),
    ),
    "text": (
        ("layers", 12, "num_hidden_layers", 12),
        ("width", 512, "hidden_size", 512),
        ("heads", 8, "num_attention_heads", 8),
        ("context_length", 77, "max_position_embeddings", 77),
        ("vocab_size", 49408, "vocab_size", 49408),
    ),
}
# Settings that have another form in the other library, with defaults.
_OPEN_CLIP: dict[str, Json] = {
    "vision": {"head_width": 64, "mlp_ratio": 4.0},
    "text": {"mlp_ratio": 4.0, "eos_id": 2, "pool_type": "argmax"},
}
_COMMON = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_TRANSFORMERS: dict[str, Json] = {
    "vision": {**_COMMON, "intermediate_size": 3072, "num_attention_heads": 12, "num_channels": 3},
    "text": {**_COMMON, "intermediate_size": 2048, "eos_token_id": 49407},
}
# OpenCLIP's settings that change the function, with the values of a plain ViT CLIP; ``None`` is any
# false value.
_PLAIN: dict[str, dict[str, tuple[Any, ...]]] = {
    "vision": {
        "pool_type": ("tok",),
        "pos_embed_type": ("learnable", "sin_cos_2d"),
        "no_ln_pre": (None,),
    },
    "text": {
        "proj_type": ("linear",),
        **dict.fromkeys(("proj_bias", "embed_cls", "no_causal_mask"), (None,)),
    },
}
_PLAIN_TOWER = dict.fromkeys(
    (
        "ls_init_value",
        "attentional_pool",
        "output_tokens",
        "qk_norm",
        "scaled_cosine_attn",
        "scale_heads",
        "scale_attn_inner",
        "scale_attn",
        "scale_fc",
        "timm_model_name",
        "hf_model_name",
        "tokenizer_kwargs",
    ),
    (None,),
) | {"block_type": ("default", None)}
# Settings that matter only in training, or not at all for a plain ViT CLIP.
_IGNORED = frozenset(
    {
        "patch_dropout",
        "attn_pooler_queries",
        "attn_pooler_heads",
        "final_ln_after_pool",
        "pad_id",
        "timm_model_pretrained",
        "timm_pool",
        "timm_proj",
        "timm_proj_bias",
        "timm_drop",
        "timm_drop_path",
        "hf_model_pretrained",
        "hf_proj_type",
        "hf_pooler_type",
        "hf_tokenizer_name",
        "tokenizer_mode",
        "act_kwargs",
        "norm_kwargs",
    }
)
_MODEL = {
    "embed_dim",
    "quick_gelu",
    "vision_cfg",
    "text_cfg",
    "custom_text",
    "init_logit_scale",
    "nonscalar_logit_scale",
}
_TANH = ("gelu_pytorch_tanh", "gelu_new")
# transformers' equivalent of OpenCLIP's argmax: with this id, it also pools at the highest token.
_ARGMAX = 2


def transformers_config(model_cfg: Json) -> Json:
    """Translate an OpenCLIP model's configuration to transformers' ``config.json``."""
    for name, value in model_cfg.items():
        if name not in _MODEL and value:
            raise _no_counterpart_error(f"{name}={_short(value)}")
    vision, text = (_tower_settings(model_cfg, side) for side in ("vision", "text"))
    if isinstance(vision["layers"], (list, tuple)):
        raise _no_counterpart_error(f"a ResNet as vision tower (layers {vision['layers']})")
    vision |= {name: _side_length(vision[name], name) for name in ("image_size", "patch_size")}
    heads = vision["width"] // vision["head_width"]
    _require_heads(vision["width"], heads, "open_clip_config.json: vision_cfg.head_width")
    _require_heads(text["width"], text["heads"], "open_clip_config.json: text_cfg.heads")
    eos = _ARGMAX if text["pool_type"] == "argmax" else int(text["eos_id"])
    if text["pool_type"] not in ("argmax", "eos") or (
        text["pool_type"] == "eos" and eos == _ARGMAX
    ):
        raise _no_counterpart_error(
            f"text_cfg.pool_type={text['pool_type']} with eos_id={text['eos_id']}"
        )
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": model_cfg["embed_dim"],
        "vision_config": {
            "model_type": "clip_vision_model",
            **{theirs: vision[ours] for ours, _, theirs, _ in _BOTH["vision"]},
            "intermediate_size": int(vision["width"] * vision["mlp_ratio"]),
            "num_attention_heads": heads,
            "projection_dim": model_cfg["embed_dim"],
            **_activation_and_norm(model_cfg, "vision"),
        },
        "text_config": {
            "model_type": "clip_text_model",
            **{theirs: text[ours] for ours, _, theirs, _ in _BOTH["text"]},
            "intermediate_size": int(text["width"] * text["mlp_ratio"]),
            "projection_dim": model_cfg["embed_dim"],
            "bos_token_id": text["vocab_size"] - 2,
            "eos_token_id": eos,
            **_activation_and_norm(model_cfg, "text"),
        },
    }


def _tower_settings(model_cfg: Json, side: str) -> Json:
    """One tower's settings with OpenCLIP's defaults; settings that a plain ViT CLIP lacks are
    refused by name.
    """
    settings = model_cfg.get(f"{side}_cfg") or {}
    defaults = {**{ours: default for ours, default, _, _ in _BOTH[side]}, **_OPEN_CLIP[side]}
    plain = {**_PLAIN_TOWER, **_PLAIN[side]}
    for name, value in settings.items():
        fits = name in defaults or name in _IGNORED
        if name in plain:
            fits = value in plain[name] or (not value and None in plain[name])
        if not fits:
            raise _no_counterpart_error(f"{side}_cfg.{name}={_short(value)}")
    return {**defaults, **settings}


def _activation_and_norm(model_cfg: Json, side: str) -> Json:
    settings = model_cfg.get(f"{side}_cfg") or {}
    activation = "quick_gelu" if model_cfg.get("quick_gelu") else "gelu"
    if options := settings.get("act_kwargs"):
        if options != {"approximate": "tanh"} or activation != "gelu":
            raise _no_counterpart_error(f"{side}_cfg.act_kwargs={_short(options)}")
        activation = _TANH[0]
    options = settings.get("norm_kwargs") or {}
    if options.keys() - {"eps"}:
        raise _no_counterpart_error(f"{side}_cfg.norm_kwargs={_short(options)}")
    return {
        "hidden_act": activation,
        "layer_norm_eps": float(options.get("eps", _COMMON["layer_norm_eps"])),
    }


def _side_length(size: Any, name: str) -> Any:
    sides = set(size) if isinstance(size, (list, tuple)) else {size}
    if len(sides) != 1:
        raise _no_counterpart_error(f"vision_cfg.{name}={_short(size)}")
    return sides.pop()


def _no_counterpart_error(what: str) -> CheckpointError:
    return CheckpointError(
        f"the OpenCLIP model has {what}, which transformers' CLIPModel cannot compute"
    )


def open_clip_config(config: Json) -> Json:
    """Translate a transformers CLIP's configuration to OpenCLIP's ``model_cfg``."""
    if config.get("model_type", "clip") != "clip":
        raise CheckpointError(
            f"a '{config['model_type']}' has no OpenCLIP counterpart; convert a full CLIPModel"
        )
    vision, text = (transformers_section(config, side) for side in ("vision", "text"))
    for side, tower in (("vision", vision), ("text", text)):
        heads = tower["num_attention_heads"]
        _require_heads(
            tower["hidden_size"], heads, f"config.json: {side}_config.num_attention_heads"
        )
    activations = {vision["hidden_act"], text["hidden_act"]}
    if "quick_gelu" in activations and len(activations) > 1:
        raise CheckpointError(
            f"the vision tower has {vision['hidden_act']}, the text tower {text['hidden_act']};"
            " OpenCLIP has one quick_gelu for both"
        )
    if vision["num_channels"] != 3:
        raise CheckpointError(
            f"the vision tower takes {vision['num_channels']} channels; OpenCLIP's take 3"
        )
    eos = int(text["eos_token_id"])
    pooling = (
        {} if eos in (_ARGMAX, text["vocab_size"] - 1) else {"pool_type": "eos", "eos_id": eos}
    )
    return {
        "embed_dim": config.get("projection_dim", 512),
        "quick_gelu": vision["hidden_act"] == "quick_gelu",
        "vision_cfg": {
            **{ours: vision[theirs] for ours, _, theirs, _ in _BOTH["vision"]},
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            **_mlp_and_norm(vision, "vision"),
        },
        "text_cfg": {
            **{ours: text[theirs] for ours, _, theirs, _ in _BOTH["text"]},
            **pooling,
            **_mlp_and_norm(text, "text"),
        },
    }


def transformers_section(config: Json, side: str) -> Json:
    """One tower's settings of a ``config.json`` with transformers' defaults."""
    defaults = {theirs: default for _, _, theirs, default in _BOTH[side]}
    return {**defaults, **_TRANSFORMERS[side], **stated_section(config, side)}


def stated_section(config: Json, side: str) -> Json:
    """One tower's settings as stated: as in transformers, the old ``..._config_dict`` takes
    precedence.
    """
    sections = (config.get(f"{side}_config"), config.get(f"{side}_config_dict"))
    return {
        key: value
        for section in sections
        if isinstance(section, dict)
        for key, value in section.items()
    }


def check_depths(config: Json, keys: Iterable[str], file: str) -> None:
    """Refuse weights with other numbers of blocks than a configuration in transformers' form says;
    ``file`` is its name in the message.
    """
    keys = list(keys)
    for side in ("vision", "text"):
        blocks = transformers_section(config, side)["num_hidden_layers"]
        norm = re.compile(rf"{side}_model\.encoder\.layers\.\d+\.layer_norm1\.weight")
        actual = sum(norm.fullmatch(key) is not None for key in keys)
        if blocks != actual:
            raise CheckpointError(
                f"{file} says that the {side} tower has {blocks} layers, but the weights have"
                f" {actual}"
            )


def _mlp_and_norm(tower: Json, side: str) -> Json:
    width, hidden = tower["hidden_size"], tower["intermediate_size"]
    ratio = hidden / width
    if int(width * ratio) != hidden:  # OpenCLIP rounds width * ratio down
        ratio = (hidden + 0.5) / width
    settings: Json = {} if ratio == 4 else {"mlp_ratio": ratio}
    if tower["layer_norm_eps"] != _COMMON["layer_norm_eps"]:
        settings["norm_kwargs"] = {"eps": float(tower["layer_norm_eps"])}
    if tower["hidden_act"] in _TANH:
        settings["act_kwargs"] = {"approximate": "tanh"}
    elif tower["hidden_act"] not in ("gelu", "quick_gelu"):
        raise CheckpointError(
            f"the {side} tower has hidden_act {tower['hidden_act']}; OpenCLIP knows gelu and"
            " quick_gelu"
        )
    return settings


def _require_heads(width: int, heads: int, what: str) -> None:
    if heads < 1 or width % heads:
        raise CheckpointError(
            f"{what} makes {heads} heads, which do not divide {width} channels; correct it"
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# Image preprocessing: ``preprocess_cfg`` and ``preprocessor_config.json``.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
# Pillow's numbers; OpenCLIP's "random" is bicubic outside training.
_RESAMPLE = {"bilinear": 2, "bicubic": 3, "random": 3}
#: OpenCLIP's names of Pillow's filters.
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}


def image_processor_config(preprocess_cfg: Json, image_size: int) -> Json:
    """Translate OpenCLIP's preprocessing to transformers' ``preprocessor_config.json``."""
    mode = preprocess_cfg.get("resize_mode", "shortest")
    if mode not in ("shortest", "squash"):
        raise CheckpointError(
            f"preprocess_cfg.resize_mode={mode} has no counterpart in transformers'"
            " CLIPImageProcessor"
        )
    square = {"height": image_size, "width": image_size}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": square if mode == "squash" else {"shortest_edge": image_size},
        "resample": _RESAMPLE[preprocess_cfg.get("interpolation", "bicubic")],
        "do_center_crop": mode == "shortest",
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess_cfg.get("mean", _MEAN)),
        "image_std": list(preprocess_cfg.get("std", _STD)),
        "do_convert_rgb": True,
    }


def preprocess_cfg(processor: Json, image_size: int) -> tuple[Json, list[Finding]]:
    """Translate transformers' preprocessing to OpenCLIP's ``preprocess_cfg``."""
    size = _edge_lengths(processor.get("size", image_size))
    crop = (
        _edge_lengths(processor.get("crop_size", image_size))
        if processor.get("do_center_crop", True)
        else None
    )
    resample = processor.get("resample", 3)
    notes = []
    if set(size.values()) != {image_size} or (crop and set(crop.values()) != {image_size}):
        edges = " x ".join(map(str, size.values()))
        notes.append(Finding.of("other-resizing", edges=edges, size=image_size))
    if resample not in INTERPOLATIONS:
        notes.append(Finding.of("other-filter", filter=resample))
    normalises = processor.get("do_normalize", True)
    return {
        "mean": list(processor.get("image_mean", _MEAN)) if normalises else [0.0] * 3,
        "std": list(processor.get("image_std", _STD)) if normalises else [1.0] * 3,
        "interpolation": INTERPOLATIONS.get(resample, "bicubic"),
        "resize_mode": "shortest" if "shortest_edge" in size else "squash",
    }, notes


def _edge_lengths(size: Any) -> dict[str, int]:
    return size if isinstance(size, dict) else {"shortest_edge": int(size)}
