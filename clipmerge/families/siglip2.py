"""Google's SigLIP 2 at any aspect ratio (NaFlex): SigLIP's names, images as sequences of patches."""

from clipmerge.families import Family
from clipmerge.families._towers import SIGLIP, SIGLIP_BARE, SIGLIP_ROOTS, transformers_settings

_MODEL_TYPES = {"siglip2": "full", "siglip2_vision_model": "vision", "siglip2_text_model": "text"}
_TANH = "gelu_pytorch_tanh"

FAMILY = Family(
    name="SigLIP 2",
    model_types=_MODEL_TYPES,
    rules=SIGLIP,
    roots=SIGLIP_ROOTS,
    bare=SIGLIP_BARE,
    text_marks=("token_embedding.", "final_layer_norm."),
    settings=transformers_settings(
        _MODEL_TYPES,
        vision={"hidden_act": _TANH, "num_attention_heads": 12, "patch_size": 16, "num_patches": 256},
        text={"hidden_act": _TANH, "num_attention_heads": 12},
    ),
    model_class="Siglip2Model",
    reads_padding=True,
)
