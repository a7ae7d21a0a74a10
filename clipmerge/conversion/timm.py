"""timm's ViTs of CLIP (``vit_base_patch32_clip_224`` and the like): the vision tower in OpenCLIP's
names, and a head.

The tensors are the same ones, two of them with leading dimensions of one. timm's head reads
features before the projection.
"""

from __future__ import annotations

import re
from collections.abc import Collection

# Parameters that together are in these models alone.
_MARKS = {"cls_token", "pos_embed", "patch_embed.proj.weight", "norm_pre.weight"}
_BLOCK, _THEIRS = r"blocks\.(\d+)\.", r"visual.transformer.resblocks.\1."
_NAMES = (
    (r"cls_token$", "visual.class_embedding"),
    (r"pos_embed$", "visual.positional_embedding"),
    (r"patch_embed\.proj\.", "visual.conv1."),
    (r"norm_pre\.", "visual.ln_pre."),
    (rf"{_BLOCK}norm1\.", rf"{_THEIRS}ln_1."),
    (rf"{_BLOCK}attn\.qkv\.", rf"{_THEIRS}attn.in_proj_"),
    (rf"{_BLOCK}attn\.proj\.", rf"{_THEIRS}attn.out_proj."),
    (rf"{_BLOCK}norm2\.", rf"{_THEIRS}ln_2."),
    (rf"{_BLOCK}mlp\.fc1\.", rf"{_THEIRS}mlp.c_fc."),
    (rf"{_BLOCK}mlp\.fc2\.", rf"{_THEIRS}mlp.c_proj."),
    (r"norm\.", "visual.ln_post."),
    (r"head\.", "classifier."),
)


def is_timm_vit(keys: Collection[str]) -> bool:
    """Whether a file's keys are those of one of timm's ViTs of CLIP."""
    return set(keys) >= _MARKS


def open_clip_name(key: str) -> str:
    """Translate a key, or leave it under ``visual.`` if the models have no such parameter.

    Example:
        >>> keys = ("blocks.3.attn.qkv.bias", "head.weight", "fc_norm.weight")
        >>> [open_clip_name(key) for key in keys]
        ['visual.transformer.resblocks.3.attn.in_proj_bias', 'classifier.weight',
        'visual.fc_norm.weight']
    """
    for pattern, replacement in _NAMES:
        if re.match(pattern, key):
            return re.sub(rf"^{pattern}", replacement, key)
    return f"visual.{key}"
