"""Google's SigLIP 2 at any aspect ratio (NaFlex): SigLIP's names, images as sequences of
patches.
"""

from dataclasses import replace

from clipmerge.families import Family
from clipmerge.families._towers import transformers_settings
from clipmerge.families.siglip import FAMILY as SIGLIP
from clipmerge.families.siglip import TOWER

FAMILY: Family = replace(
    SIGLIP,
    name="SigLIP 2",
    model_type="siglip2",
    settings=transformers_settings(
        vision={**TOWER, "patch_size": 16, "num_patches": 256}, text=TOWER
    ),
    model_class="Siglip2Model",
)
