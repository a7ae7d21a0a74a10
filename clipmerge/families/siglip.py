"""Google's SigLIP: a pooling head in the vision tower, a head in the text tower, a scale and a
bias.

SigLIP 2 at a fixed resolution is published under this family's ``model_type`` too.
"""

from clipmerge.families import Family
from clipmerge.families._towers import (
    AROUND,
    BARE,
    CLIP_TEXT,
    CLIP_VISION,
    ROOTS,
    transformers_settings,
)

_HEADS = ((r"vision_model\.head\.", "vision.pooler"), (r"text_model\.head\.", "text.projection"))
TOWER = {"hidden_act": "gelu_pytorch_tanh", "num_attention_heads": 12, "layer_norm_eps": 1e-6}

FAMILY = Family(
    name="SigLIP",
    model_type="siglip",
    rules=(*CLIP_VISION, *CLIP_TEXT, *_HEADS, *AROUND, (r"logit_bias$", "logit_bias")),
    roots=(*ROOTS, "logit_bias"),
    bare=(*BARE, "head."),
    text_marks=("token_embedding.", "final_layer_norm."),
    settings=transformers_settings(
        vision={**TOWER, "patch_size": 16, "image_size": 224}, text=TOWER
    ),
    model_class="SiglipModel",
    reads_padding=True,
)
