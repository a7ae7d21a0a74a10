"""Google's SigLIP 2 at any aspect ratio (NaFlex): SigLIP's names, images as sequences of patches."""

from dataclasses import replace

from clipmerge.families import Family
from clipmerge.families._towers import transformers_settings
from clipmerge.families.siglip import FAMILY as SIGLIP
from clipmerge.families.siglip import TOWER

_MODEL_TYPES = {"siglip2": "full", "siglip2_vision_model": "vision", "siglip2_text_model": "text"}

FAMILY: Family = replace(
    SIGLIP,
    name="SigLIP 2",
    model_types=_MODEL_TYPES,
    settings=transformers_settings(_MODEL_TYPES, vision={**TOWER, "patch_size": 16, "num_patches": 256}, text=TOWER),
    model_class="Siglip2Model",
)
