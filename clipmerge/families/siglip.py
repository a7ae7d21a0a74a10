"""Google's SigLIP: a pooling head in the vision tower, a head in the text tower, a scale and a bias.

SigLIP 2 at a fixed resolution is published under this family's ``model_type`` too.
"""

from clipmerge.families import Family
from clipmerge.families._towers import SIGLIP, SIGLIP_BARE, SIGLIP_ROOTS, SIGLIP_TOWER, transformers_settings

_MODEL_TYPES = {"siglip": "full", "siglip_vision_model": "vision", "siglip_text_model": "text"}

FAMILY = Family(
    name="SigLIP",
    model_types=_MODEL_TYPES,
    rules=SIGLIP,
    roots=SIGLIP_ROOTS,
    bare=SIGLIP_BARE,
    text_marks=("token_embedding.", "final_layer_norm."),
    settings=transformers_settings(
        _MODEL_TYPES, vision={**SIGLIP_TOWER, "patch_size": 16, "image_size": 224}, text=SIGLIP_TOWER
    ),
    model_class="SiglipModel",
    reads_padding=True,
)
