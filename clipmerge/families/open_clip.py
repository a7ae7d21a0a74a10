"""OpenCLIP's models: ViT, ResNet and timm vision towers, its own and Hugging Face's text towers,
CoCa.
"""

from __future__ import annotations

from clipmerge.families.family import Family, Rules, Settings
from clipmerge.families.transformers import blocks_of_bert
from clipmerge.types import Json


def _resblocks(start: str, tower: str) -> Rules:
    block = rf"{start}resblocks\.(\d+)\."
    return (
        (rf"{block}(?:ln_1|ln_1_kv|attn|ln_attn|ls_1)\.", f"{tower}.{{}}.attn"),
        (rf"{block}(?:ln_2|mlp|ls_2)\.", f"{tower}.{{}}.mlp"),
    )


_VIT: Rules = (
    *_resblocks(r"visual\.transformer\.", "vision"),
    (r"visual\.(?:class_embedding|positional_embedding|conv1\.)", "vision.embeddings"),
    (r"visual\.ln_pre\.", "vision.pre_norm"),
    (r"visual\.ln_post\.", "vision.norm"),
    (r"visual\.proj$", "vision.projection"),
    (r"visual\.attn_pool(?:_contrastive)?\.", "vision.pooler"),
)
_RESNET: Rules = (
    (r"visual\.(?:conv|bn)[123]\.", "vision.embeddings"),
    (r"visual\.layer(\d+)\.(\d+)\.", "vision.{}.conv"),
    (r"visual\.attnpool\.", "vision.pooler"),
)
# timm: transformers in blocks or in stages of blocks, convolutions in stages, connections between
# stages
_NORM_AND_ATTENTION = r"(?:norm1|attn|ls1|gamma_1|layer_scale1)(?:[._]|$)"
_NORM_AND_MLP = r"(?:norm2|norm3|mlp|ls2|gamma_2|layer_scale2)(?:[._]|$)"
_TIMM: Rules = (
    (rf"visual\.trunk\.blocks\.(\d+)\.{_NORM_AND_ATTENTION}", "vision.{}.attn"),
    (rf"visual\.trunk\.blocks\.(\d+)\.{_NORM_AND_MLP}", "vision.{}.mlp"),
    (rf"visual\.trunk\.layers\.(\d+)\.blocks\.(\d+)\.{_NORM_AND_ATTENTION}", "vision.{}.attn"),
    (rf"visual\.trunk\.layers\.(\d+)\.blocks\.(\d+)\.{_NORM_AND_MLP}", "vision.{}.mlp"),
    (r"visual\.trunk\.(?:stages|layers)\.(\d+)\.(?:downsample|pos_emb)\.", "vision.{}.conv"),
    (r"visual\.trunk\.stages\.(\d+)\.(?:blocks\.)?(\d+)\.", "vision.{}.conv"),
    (r"visual\.trunk\.(?:layer|blocks\.)(\d+)\.(\d+)\.", "vision.{}.conv"),
    (
        r"visual\.trunk\.(?:stem|conv_stem|patch_embed|cls_token|dist_token|reg_token|pos_embed|conv1|bn1|rel_pos)(?:[._]|$)",
        "vision.embeddings",
    ),
    (r"visual\.trunk\.(?:norm_pre|ln_pre)\.", "vision.pre_norm"),
    (r"visual\.trunk\.(?:norm|fc_norm|head\.norm|norm_head)\.", "vision.norm"),
    (r"visual\.trunk\.(?:attn_pool|final_conv|conv_head|bn2|head\.pre_logits)\.", "vision.pooler"),
    (r"visual\.trunk\.(?:head|fc|classifier|last_linear|head_dist)\.", "vision.projection"),
    (r"visual\.head\.pool\.", "vision.pooler"),
    (r"visual\.head\.", "vision.projection"),
)
_TEXT: Rules = (
    *_resblocks(r"transformer\.", "text"),
    (r"(?:token_embedding\.|positional_embedding(?:_res)?$|cls_emb$)", "text.embeddings"),
    (r"ln_final\.", "text.norm"),
    (r"text_projection(?:\.|$)", "text.projection"),
)
_T5_BLOCK = r"text\.transformer\.encoder\.block\.(\d+)\.layer\."
_HUGGING_FACE_TEXT: Rules = (
    *blocks_of_bert(r"text\.transformer\."),
    (rf"{_T5_BLOCK}0\.", "text.{}.attn"),
    (rf"{_T5_BLOCK}1\.", "text.{}.mlp"),
    (r"text\.transformer\.layers\.(\d+)\.self_attn", "text.{}.attn"),
    (r"text\.transformer\.layers\.(\d+)\.", "text.{}.mlp"),
    (
        r"text\.transformer\.(?:embeddings|shared|embed_tokens|embed_positions|encoder\.embed_tokens)\.",
        "text.embeddings",
    ),
    (r"text\.transformer\.(?:layer_norm|encoder\.final_layer_norm)\.", "text.norm"),
    (r"text\.(?:transformer\.)?pooler\.", "text.pooler"),
    (r"text\.proj\.", "text.projection"),
)
_DECODER: Rules = (
    *_resblocks(r"text_decoder\.", "decoder"),
    (r"text_decoder\.cross_attn\.(\d+)\.", "decoder.{}.cross"),
    (r"text_decoder\.ln_final\.", "decoder.norm"),
    (r"text_decoder\.text_projection", "decoder.projection"),
    (r"text_decoder\.(?:token_embedding|positional_embedding)", "decoder.embeddings"),
)
# Settings that change the function of a tower but no shape, with OpenCLIP's defaults.
_VISION_SETTINGS: Json = {
    "head_width": 64,
    "image_size": 224,
    "pool_type": "tok",
    "attn_pooler_heads": 8,
    "final_ln_after_pool": False,
    "scaled_cosine_attn": False,
    "timm_model_name": None,
    "timm_pool": "avg",
}
_TEXT_SETTINGS: Json = {
    "heads": 8,
    "pool_type": "argmax",
    "no_causal_mask": False,
    "scaled_cosine_attn": False,
    "hf_model_name": None,
    "hf_pooler_type": "mean_pooler",
}


def _read_settings(config: Json) -> Settings:
    model = _section(config, "model_cfg") or config
    values = {}
    for side, defaults in (("vision", _VISION_SETTINGS), ("text", _TEXT_SETTINGS)):
        section = _section(model, f"{side}_cfg")
        settings = {name: section.get(name, default) for name, default in defaults.items()}
        # towers of other libraries have their own activation
        foreign = section.get("timm_model_name") or section.get("hf_model_name")
        settings["quick_gelu"] = None if foreign else bool(model.get("quick_gelu"))
        settings |= {name: section.get(name) or {} for name in ("act_kwargs", "norm_kwargs")}
        values[side] = settings
    if values["text"]["pool_type"] == "eos":
        values["text"]["eos_id"] = _section(model, "text_cfg").get("eos_id", 2)
    return values


def _section(config: Json, name: str) -> Json:
    section = config.get(name)
    return section if isinstance(section, dict) else {}


OPEN_CLIP = Family(
    name="OpenCLIP",
    rules=(
        *_VIT,
        *_RESNET,
        *_TIMM,
        *_TEXT,
        *_HUGGING_FACE_TEXT,
        *_DECODER,
        # of WiSE-FT's and model soups' classifiers
        (r"classification_head\.", "head"),
        # of timm's
        (r"classifier\.", "head"),
        (r"logit_scale$", "logit_scale"),
        (r"logit_bias$", "logit_bias"),
    ),
    roots=(
        "visual.",
        "text.",
        "text_decoder.",
        "transformer.resblocks.",
        "token_embedding.",
        "positional_embedding",
        "ln_final.",
        "text_projection",
        "logit_scale",
        "logit_bias",
    ),
    # OpenCLIP's own text tower may be separate, under ``text.``, with the same parameters
    renames=(
        (
            r"^text\.(?=transformer\.resblocks\.|token_embedding\.|positional_embedding$|cls_emb$|ln_final\.|text_proj)",
            "",
        ),
    ),
    settings=_read_settings,
    towers=(
        ("visual.trunk.", "vision"),
        ("visual.", "vision"),
        ("text.transformer.", "text"),
        ("text.", "text"),
        ("transformer.", "text"),
        ("text_decoder.", "decoder"),
    ),
    model="open_clip",
    weights="open_clip_model.safetensors",
    config="open_clip_config.json",
)
