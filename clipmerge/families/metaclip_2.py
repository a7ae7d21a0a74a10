"""Meta's worldwide MetaCLIP 2: CLIP's architecture and names, its own configuration."""

from dataclasses import replace

from clipmerge.families import Family
from clipmerge.families.clip import FAMILY as CLIP

FAMILY: Family = replace(
    CLIP,
    name="MetaCLIP 2",
    model_type="metaclip_2",
    model_class="MetaClip2Model",
    rank=Family.rank,
)
