"""OpenCLIP's and transformers' layouts: corresponding tensors, and translated configurations."""

from clipmerge.conversion.config import open_clip_config, transformers_config
from clipmerge.conversion.keys import Layout, Match, is_made_anew, layout_of, match_keys
from clipmerge.conversion.shapes import check_shapes

__all__ = [
    "Layout",
    "Match",
    "check_shapes",
    "is_made_anew",
    "layout_of",
    "match_keys",
    "open_clip_config",
    "transformers_config",
]
