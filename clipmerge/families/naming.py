"""Name the layer of a parameter by its module path: `vision.3.attn`, `text.norm`, `logit_scale`.

The first word of a path gives the tower, words such as ``layers.3`` the block, and two sets of
keywords the half of a block: attention, or MLP; what is neither is ``conv``. Outside the blocks the
first module gives the part; an unknown one is a layer named after the module.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from clipmerge.layers import HEAD

# Starts of names, and the tower or layer that they are in.
_WHOLE = (
    ("logit_scale", "logit_scale"),
    ("temperature", "logit_scale"),  # ALIGN's
    ("logit_bias", "logit_bias"),
    ("classifier.", HEAD),
    ("classification_head.", HEAD),
    ("visual_projection.", "vision.projection"),
    ("vision_model.head.", "vision.pooler"),  # of SigLIP
    ("text_projection", "text.projection"),
)
_TOWERS = (
    ("text_decoder.", "decoder"),
    ("text_model.", "text"),
    ("text.", "text"),
    ("transformer.", "text"),
    ("token_embedding.", "text"),
    ("positional_embedding", "text"),
    ("cls_emb", "text"),
    ("ln_final.", "text"),
)
# The numbers of a block: of a stage and of a block in it, or of a block alone.
_BLOCK = re.compile(
    r"(?:^|\.)(?:layers?|blocks?|resblocks|stages|cross_attn)\.?(\d+)"
    r"(?:\.(?:(?:layers?|blocks?)\.)?(\d+))?(?=\.)"
)
# What makes patches of an image, with blocks of its own in hybrid towers.
_STEM = re.compile(r"(?:trunk\.)?(?:patch_embed|stem)\.")
# Words of a path in a block: attention with the norm before it, and MLP likewise.
_ATTENTION = re.compile(
    r"attn|attention|(?:ln|norm|ls)_?1|gamma_1|layer_?scale_?1|layernorm_before|sa_layer_norm",
    re.IGNORECASE,
)
_MLP = re.compile(
    r"mlp|(?:ln|norm|ls)_?[23]|gamma_2|layer_?scale_?2|layernorm_after|intermediate|output|dense"
    r"|fc[12]|ffn|lin[12]|final_layer_norm",
    re.IGNORECASE,
)
# Modules outside the blocks that only hold others.
_CONTAINERS = re.compile(r"^(?:(?:trunk|transformer|encoder|roberta|backbone|model)\.)+(?=\w)")
_PARTS = (
    (r"pool|transformation|final_conv|conv_head", "pooler"),
    (r"pre_layrnorm|ln_pre|norm_pre", "pre_norm"),
    (r"emb|cls_|class_|token|stem|patch|^conv\d*$|^bn\d$|rel_pos|shared", "embeddings"),
    (r"norm|^ln_|pre_LN", "norm"),
    (r"proj|head|^fc$|classifier|last_linear", "projection"),
)


def layers_of(names: Iterable[str]) -> dict[str, str]:
    """Name the layer of each parameter, from all names of a checkpoint: blocks in stages are
    numbered consecutively.

    Example:
        >>> names = ["visual.layer1.0.conv1.weight", "visual.layer2.0.conv1.weight", "visual.proj"]
        >>> list(layers_of(names).values())
        ['vision.0.conv', 'vision.1.conv', 'vision.projection']
    """
    places = {name: _place(name) for name in names}
    blocks: dict[str, set[tuple[int, ...]]] = {}
    for tower, numbers, _ in places.values():
        if numbers:
            blocks.setdefault(tower, set()).add(numbers)
    depths = {}
    for tower, found in blocks.items():
        in_stages = any(len(numbers) > 1 for numbers in found)
        for rank, numbers in enumerate(sorted(found)):
            depths[tower, numbers] = rank if in_stages else numbers[0]
    return {
        name: f"{tower}.{depths[tower, numbers]}.{part}"
        if numbers
        else f"{tower}.{part}".strip(".")
        for name, (tower, numbers, part) in places.items()
    }


def _place(name: str) -> tuple[str, tuple[int, ...], str]:
    """The tower of a parameter, the numbers of its block if it is in one, and its part."""
    for start, layer in _WHOLE:
        if name.startswith(start):
            return layer, (), ""
    tower = next((tower for start, tower in _TOWERS if name.startswith(start)), "vision")
    _, _, inside = name.partition(".")
    path = inside if name.startswith(_PREFIXES) else name
    block = None if _STEM.match(path) else _BLOCK.search(path)
    if block:
        numbers = tuple(int(number) for number in block.groups() if number is not None)
        if "cross_attn" in block[0]:
            return tower, numbers, "cross"
        rest = path[block.end() :]
        part = "attn" if _ATTENTION.search(rest) else "mlp" if _MLP.search(rest) else "conv"
        return tower, numbers, part
    module = _CONTAINERS.sub("", path).partition(".")[0]
    part = next((part for pattern, part in _PARTS if re.search(pattern, module)), module)
    return tower, (), part


# Starts of names that are a tower's own, unlike those of a model without such an attribute.
_PREFIXES = ("vision_model.", "visual.", "text_model.", "text.", "text_decoder.", "transformer.")
