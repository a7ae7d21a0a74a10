"""transformers' VisionTextDualEncoder: two towers of any kind, such as ViT and BERT, and two
projections.

The towers keep the names of their own libraries. The name of a transformer's block, and the half
that a module belongs to, follow from a few words that all of them share.
"""

from clipmerge.families import Family
from clipmerge.families._towers import AROUND, ROOTS, Rules, transformers_settings

_BLOCK = r"_model\.(?:encoder\.|transformer\.)?(?:layers?|blocks)\.(\d+)\."
_ATTENTION = (
    r"(?:attention|self_attn|layernorm_before|layer_norm1|norm1|layer_scale1|sa_layer_norm)\b"
)


def _tower(side: str) -> Rules:
    return (
        (rf"{side}{_BLOCK}{_ATTENTION}", f"{side}.{{}}.attn"),
        (rf"{side}{_BLOCK}", f"{side}.{{}}.mlp"),
        (rf"{side}_model\.embeddings\.", f"{side}.embeddings"),
        (rf"{side}_model\.pre_layrnorm\.", f"{side}.pre_norm"),
        (rf"{side}_model\.(?:layernorm|norm|post_layernorm|final_layer_norm)\.", f"{side}.norm"),
        (rf"{side}_model\.(?:pooler|head)\.", f"{side}.pooler"),
    )


_ANY_TOWER = dict.fromkeys(("model_type", "hidden_act", "num_attention_heads", "layer_norm_eps"))

FAMILY = Family(
    name="VisionTextDualEncoder",
    model_type="vision-text-dual-encoder",
    rules=(*_tower("vision"), *_tower("text"), *AROUND),
    roots=ROOTS,
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
    settings=transformers_settings(
        vision={**_ANY_TOWER, "patch_size": None, "image_size": None},
        text=_ANY_TOWER,
        both={"projection_dim": 512},
    ),
    model_class="VisionTextDualEncoderModel",
    rank=9,
)
