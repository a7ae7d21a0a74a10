"""Meta's worldwide MetaCLIP 2: CLIP's architecture and names, its own configuration."""

from clipmerge.families import Family
from clipmerge.families._towers import AROUND, BARE, CLIP_TEXT, CLIP_VISION, ROOTS, transformers_settings

_MODEL_TYPES = {"metaclip_2": "full", "metaclip_2_vision_model": "vision", "metaclip_2_text_model": "text"}

FAMILY = Family(
    name="MetaCLIP 2",
    model_types=_MODEL_TYPES,
    rules=(*CLIP_VISION, *CLIP_TEXT, *AROUND),
    roots=ROOTS,
    bare=BARE,
    text_marks=("token_embedding.", "final_layer_norm."),
    settings=transformers_settings(
        _MODEL_TYPES,
        vision={"hidden_act": "quick_gelu", "num_attention_heads": 12, "patch_size": 32, "image_size": 224},
        text={"hidden_act": "quick_gelu", "num_attention_heads": 8},
        both={"projection_dim": 512},
    ),
    model_class="MetaClip2Model",
)
