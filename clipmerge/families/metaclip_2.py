"""Meta's worldwide MetaCLIP 2: CLIP's architecture and names, its own configuration."""

from dataclasses import replace

from clipmerge.families import Family
from clipmerge.families.clip import FAMILY as CLIP
from clipmerge.families.clip import clip_settings

_MODEL_TYPES = {"metaclip_2": "full", "metaclip_2_vision_model": "vision", "metaclip_2_text_model": "text"}

FAMILY: Family = replace(
    CLIP,
    name="MetaCLIP 2",
    model_types=_MODEL_TYPES,
    settings=clip_settings(_MODEL_TYPES),
    model_class="MetaClip2Model",
    rank=Family.rank,
)
