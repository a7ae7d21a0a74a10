"""transformers' families of two-tower models; each differs from CLIP in a few names and settings.

To add one, add an entry to `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from clipmerge.conversion.config import stated_section
from clipmerge.families.family import Family, Rules, Settings
from clipmerge.types import Json

# Rules


def _blocks_of_clip(tower: str) -> Rules:
    """CLIP's transformer blocks, ``{tower}_model.encoder.layers.N``."""
    block = rf"{tower}_model\.encoder\.layers\.(\d+)\."
    return (
        (rf"{block}(?:layer_norm1|self_attn)\.", f"{tower}.{{}}.attn"),
        (rf"{block}(?:layer_norm2|mlp)\.", f"{tower}.{{}}.mlp"),
    )


def blocks_of_bert(start: str) -> Rules:
    """BERT's blocks, whose norms come after the modules they normalise."""
    block = rf"{start}encoder\.layer\.(\d+)\."
    return (
        (rf"{block}attention\.", "text.{}.attn"),
        (rf"{block}(?:intermediate|output)\.", "text.{}.mlp"),
    )


def _blocks_of_any_tower(side: str) -> Rules:
    """The blocks of any transformer; a few words that all libraries share tell the two halves."""
    block = rf"{side}_model\.(?:encoder\.|transformer\.)?(?:layers?|blocks)\.(\d+)\."
    attention = (
        r"(?:attention|self_attn|layernorm_before|layer_norm1|norm1|layer_scale1|sa_layer_norm)\b"
    )
    return (
        (rf"{block}{attention}", f"{side}.{{}}.attn"),
        (block, f"{side}.{{}}.mlp"),
        (rf"{side}_model\.embeddings\.", f"{side}.embeddings"),
        (rf"{side}_model\.pre_layrnorm\.", f"{side}.pre_norm"),
        (rf"{side}_model\.(?:layernorm|norm|post_layernorm|final_layer_norm)\.", f"{side}.norm"),
        (rf"{side}_model\.(?:pooler|head)\.", f"{side}.pooler"),
    )


_CLIP_VISION: Rules = (
    *_blocks_of_clip("vision"),
    (r"vision_model\.embeddings\.", "vision.embeddings"),
    (r"vision_model\.pre_layrnorm\.", "vision.pre_norm"),
    (r"vision_model\.post_layernorm\.", "vision.norm"),
)
_CLIP_TEXT: Rules = (
    *_blocks_of_clip("text"),
    (r"text_model\.embeddings\.", "text.embeddings"),
    (r"text_model\.final_layer_norm\.", "text.norm"),
)
_BERT_TEXT: Rules = (
    *blocks_of_bert(r"text_model\."),
    (r"text_model\.embeddings\.", "text.embeddings"),
    (r"text_model\.pooler\.", "text.pooler"),
)
# XLM-RoBERTa followed by a transformation
_ALTCLIP_TEXT: Rules = (
    *blocks_of_bert(r"text_model\.roberta\."),
    (r"text_model\.roberta\.embeddings\.", "text.embeddings"),
    (r"text_model\.pre_LN\.", "text.norm"),
    (r"text_model\.(?:roberta\.pooler|transformation)\.", "text.pooler"),
)
# EfficientNet, whose batch norms have statistics
_ALIGN_VISION: Rules = (
    (r"vision_model\.encoder\.blocks\.(\d+)\.", "vision.{}.conv"),
    (r"vision_model\.embeddings\.", "vision.embeddings"),
)
# a pooling head in the vision tower, a head in the text tower
_SIGLIP_HEADS: Rules = (
    (r"vision_model\.head\.", "vision.pooler"),
    (r"text_model\.head\.", "text.projection"),
)
# Parts outside the towers: projections, the classifier of an ``...ForImageClassification``, the
# scale.
_AROUND: Rules = (
    (r"visual_projection\.", "vision.projection"),
    (r"text_projection\.", "text.projection"),
    (r"classifier\.", "head"),
    (r"logit_scale$", "logit_scale"),
)
_ROOTS = ("vision_model.", "text_model.", "visual_projection.", "text_projection.", "logit_scale")
_BARE = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.", "final_layer_norm.")

# Settings that change the function but no shape, with the defaults of each library's class.


def _settings_reader(
    *, vision: Json, text: Json, both: Json | None = None
) -> Callable[[Json], Settings]:
    """Make the function that reads settings from a transformers config, of the whole model or of
    one tower.
    """

    def read_settings(config: Json) -> Settings:
        values = {"": {key: config.get(key, default) for key, default in (both or {}).items()}}
        for side, defaults in (("vision", vision), ("text", text)):
            is_lone = str(config.get("model_type")).endswith(f"_{side}_model")
            section = config if is_lone else stated_section(config, side)
            values[side] = {key: section.get(key, default) for key, default in defaults.items()}
        return values

    return read_settings


_CLIP_VIT: Json = {
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "num_attention_heads": 12,
    "patch_size": 32,
    "image_size": 224,
}
_BERT = {"hidden_act": "gelu", "num_attention_heads": 12, "layer_norm_eps": 1e-12}
_SIGLIP_TOWER = {
    "hidden_act": "gelu_pytorch_tanh",
    "num_attention_heads": 12,
    "layer_norm_eps": 1e-6,
}
_ANY_TOWER = dict.fromkeys(("model_type", "hidden_act", "num_attention_heads", "layer_norm_eps"))
_read_clip_settings = _settings_reader(
    vision=_CLIP_VIT,
    text={
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "num_attention_heads": 8,
        "eos_token_id": 49407,
        "vocab_size": 49408,
    },
    both={"projection_dim": 512},
)


def _clip_settings(config: Json) -> Settings:
    values = _read_clip_settings(config)
    words = values["text"].pop("vocab_size")
    if values["text"]["eos_token_id"] == 2 and isinstance(words, int):
        # as OpenAI's configurations say; transformers then takes the largest token, which is the
        # last word
        values["text"]["eos_token_id"] = words - 1
    return values


#: Both towers, one tower, or an image classifier made from it.
CLIP = Family(
    name="CLIP",
    model_type="clip",
    rules=(*_CLIP_VISION, *_CLIP_TEXT, *_AROUND),
    roots=_ROOTS,
    bare=_BARE,
    text_marks=("token_embedding.", "final_layer_norm."),
    settings=_clip_settings,
    model_class="CLIPModel",
    rank=0,
)
#: SigLIP 2 at a fixed resolution is published under this family's ``model_type`` too.
SIGLIP = Family(
    name="SigLIP",
    model_type="siglip",
    rules=(*_CLIP_VISION, *_CLIP_TEXT, *_SIGLIP_HEADS, *_AROUND, (r"logit_bias$", "logit_bias")),
    roots=(*_ROOTS, "logit_bias"),
    bare=(*_BARE, "head."),
    text_marks=("token_embedding.", "final_layer_norm."),
    settings=_settings_reader(
        vision={**_SIGLIP_TOWER, "patch_size": 16, "image_size": 224}, text=_SIGLIP_TOWER
    ),
    model_class="SiglipModel",
    reads_padding=True,
)
#: Two towers of any kind, such as ViT and BERT, which keep the names of their own libraries.
VISION_TEXT_DUAL_ENCODER = Family(
    name="VisionTextDualEncoder",
    model_type="vision-text-dual-encoder",
    rules=(*_blocks_of_any_tower("vision"), *_blocks_of_any_tower("text"), *_AROUND),
    roots=_ROOTS,
    renames=(
        # a CLIP tower, as transformers 4 wrote it
        (r"^(vision|text)_model\.\1_model\.", r"\1_model."),
        # ViT and similar models: transformers 5 uses these names in memory, and the old ones in
        # files
        (
            r"^vision_model\.layers\.(\d+)\.mlp\.fc1\.",
            r"vision_model.encoder.layer.\1.intermediate.dense.",
        ),
        (
            r"^vision_model\.layers\.(\d+)\.mlp\.fc2\.",
            r"vision_model.encoder.layer.\1.output.dense.",
        ),
        (r"^vision_model\.layers\.", "vision_model.encoder.layer."),
        (r"^(vision_model\.encoder\.layer\.\d+\.attention\.)q_proj\.", r"\1attention.query."),
        (r"^(vision_model\.encoder\.layer\.\d+\.attention\.)k_proj\.", r"\1attention.key."),
        (r"^(vision_model\.encoder\.layer\.\d+\.attention\.)v_proj\.", r"\1attention.value."),
        (r"^(vision_model\.encoder\.layer\.\d+\.attention\.)o_proj\.", r"\1output.dense."),
    ),
    settings=_settings_reader(
        vision={**_ANY_TOWER, "patch_size": None, "image_size": None},
        text=_ANY_TOWER,
        both={"projection_dim": 512},
    ),
    model_class="VisionTextDualEncoderModel",
    rank=9,
)

FAMILIES = (
    CLIP,
    # Meta's worldwide model: CLIP's architecture and names, its own configuration
    replace(
        CLIP,
        name="MetaCLIP 2",
        model_type="metaclip_2",
        model_class="MetaClip2Model",
        rank=Family.rank,
    ),
    SIGLIP,
    # any aspect ratio (NaFlex): SigLIP's names, images as sequences of patches
    replace(
        SIGLIP,
        name="SigLIP 2",
        model_type="siglip2",
        settings=_settings_reader(
            vision={**_SIGLIP_TOWER, "patch_size": 16, "num_patches": 256}, text=_SIGLIP_TOWER
        ),
        model_class="Siglip2Model",
    ),
    Family(
        name="AltCLIP",
        model_type="altclip",
        rules=(*_CLIP_VISION, *_ALTCLIP_TEXT, *_AROUND),
        roots=_ROOTS,
        bare=(*_BARE, "roberta.", "transformation.", "pre_LN."),
        text_marks=("word_embeddings.",),
        # transformers 5 writes "layer" in both towers, has "layers" in both in memory, and reads
        # either
        renames=(
            (r"^text_model\.roberta\.encoder\.layers\.", "text_model.roberta.encoder.layer."),
            (r"^vision_model\.encoder\.layer\.", "vision_model.encoder.layers."),
        ),
        settings=_settings_reader(
            vision=_CLIP_VIT,
            text={"hidden_act": "gelu", "num_attention_heads": 16, "layer_norm_eps": 1e-5},
            both={"projection_dim": 768},
        ),
        model_class="AltCLIPModel",
    ),
    Family(
        name="Chinese-CLIP",
        model_type="chinese_clip",
        rules=(*_CLIP_VISION, *_BERT_TEXT, *_AROUND),
        roots=_ROOTS,
        bare=(*_BARE, "pooler."),
        text_marks=("word_embeddings.",),
        settings=_settings_reader(vision=_CLIP_VIT, text=_BERT, both={"projection_dim": 512}),
        model_class="ChineseCLIPModel",
    ),
    Family(
        name="ALIGN",
        model_type="align",
        rules=(*_ALIGN_VISION, *_BERT_TEXT, *_AROUND, (r"temperature$", "logit_scale")),
        roots=("vision_model.", "text_model.", "text_projection.", "temperature"),
        bare=("embeddings.", "encoder.", "pooler."),
        text_marks=("word_embeddings.",),
        settings=_settings_reader(
            vision={"hidden_act": "swish", "pooling_type": "mean", "batch_norm_eps": 0.001},
            text=_BERT,
            both={"projection_dim": 640},
        ),
        model_class="AlignModel",
    ),
    VISION_TEXT_DUAL_ENCODER,
)
