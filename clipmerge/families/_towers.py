"""Towers shared by several families of transformers: their rules, names and settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from clipmerge.conversion.config import stated_section
from clipmerge.families import Settings

Rules = tuple[tuple[str, str], ...]


def blocks_of_clip(tower: str) -> Rules:
    """Rules for CLIP's transformer blocks, ``{tower}_model.encoder.layers.N``."""
    block = rf"{tower}_model\.encoder\.layers\.(\d+)\."
    return (
        (rf"{block}(?:layer_norm1|self_attn)\.", f"{tower}.{{}}.attn"),
        (rf"{block}(?:layer_norm2|mlp)\.", f"{tower}.{{}}.mlp"),
    )


def blocks_of_bert(start: str) -> Rules:
    """Rules for BERT's blocks, whose norms come after the modules they normalise."""
    block = rf"{start}encoder\.layer\.(\d+)\."
    return (
        (rf"{block}attention\.", "text.{}.attn"),
        (rf"{block}(?:intermediate|output)\.", "text.{}.mlp"),
    )


CLIP_VISION: Rules = (
    *blocks_of_clip("vision"),
    (r"vision_model\.embeddings\.", "vision.embeddings"),
    (r"vision_model\.pre_layrnorm\.", "vision.pre_norm"),
    (r"vision_model\.post_layernorm\.", "vision.norm"),
)
CLIP_TEXT: Rules = (
    *blocks_of_clip("text"),
    (r"text_model\.embeddings\.", "text.embeddings"),
    (r"text_model\.final_layer_norm\.", "text.norm"),
)
BERT_TEXT: Rules = (
    *blocks_of_bert(r"text_model\."),
    (r"text_model\.embeddings\.", "text.embeddings"),
    (r"text_model\.pooler\.", "text.pooler"),
)
#: Parts outside the towers: projections, the classifier of an ``...ForImageClassification``, the
#: scale.
AROUND: Rules = (
    (r"visual_projection\.", "vision.projection"),
    (r"text_projection\.", "text.projection"),
    (r"classifier\.", "head"),
    (r"logit_scale$", "logit_scale"),
)
ROOTS = ("vision_model.", "text_model.", "visual_projection.", "text_projection.", "logit_scale")
BARE = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.", "final_layer_norm.")

#: Settings that change the function but no shape, with the defaults of each library's class.
CLIP_VIT: dict[str, Any] = {
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "num_attention_heads": 12,
    "patch_size": 32,
    "image_size": 224,
}


def transformers_settings(
    *, vision: dict[str, Any], text: dict[str, Any], both: dict[str, Any] | None = None
) -> Callable[[dict[str, Any]], Settings]:
    """Make the function that reads settings from a transformers config, of the whole model or of
    one tower.
    """

    def settings(config: dict[str, Any]) -> Settings:
        values = {"": {key: config.get(key, default) for key, default in (both or {}).items()}}
        for side, defaults in (("vision", vision), ("text", text)):
            is_lone = str(config.get("model_type")).endswith(f"_{side}_model")
            section = config if is_lone else stated_section(config, side)
            values[side] = {key: section.get(key, default) for key, default in defaults.items()}
        return values

    return settings
