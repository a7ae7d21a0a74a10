"""Match the keys of a plain ViT CLIP in OpenCLIP's layout with those in transformers'.

One table serves both directions. OpenCLIP stacks query, key and value in one ``in_proj`` and
multiplies features by its projections from the right; transformers keeps three matrices and
multiplies from the left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import filterfalse

from clipmerge.errors import CheckpointError, counted, shorten
from clipmerge.families import Layout, is_index_buffer
from clipmerge.types import Names

_BLOCK = re.compile(r"(?:resblocks|layers)\.(\d+)\.")
# Keys outside the blocks, without the tower's prefix: OpenCLIP's, then transformers'.
_VISION = {
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
_TEXT = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_PROJECTIONS = (
    ("visual.proj", ("visual_projection.weight",)),
    ("text_projection", ("text_projection.weight",)),
)
# Modules of a block, each with a weight and a bias.
_MODULES = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


@dataclass(frozen=True)
class Match:
    """Names of the same values in a checkpoint's layout and in the other one."""

    stored: Names  # three if they are stacked along the first dimension of the other tensor
    wanted: Names  # three if they are parts of one stacked tensor
    transposed: bool


def match_keys(keys: Iterable[str], layout: Layout) -> list[Match]:
    """Match each canonical name of a plain ViT CLIP, or of a part of one, with its counterpart in
    the other layout.
    """
    names = set(filterfalse(is_index_buffer, keys))
    blocks = sorted({int(block[1]) for key in names if (block := _BLOCK.search(key))})
    pairs = [
        ("logit_scale", ("logit_scale",)),
        *_PROJECTIONS,
        *_match_tower("visual.", "vision_model.", _VISION, blocks),
        *_match_tower("", "text_model.", _TEXT, blocks),
    ]
    found = []
    for pair in pairs:
        ours, theirs = pair
        stored, wanted = ((ours,), theirs) if layout == "open-clip" else (theirs, (ours,))
        if names.issuperset(stored):
            found.append(Match(stored, wanted, pair in _PROJECTIONS))
            names.difference_update(stored)
    if names:
        other = "a transformers CLIPModel" if layout == "open-clip" else "OpenCLIP"
        raise CheckpointError(
            f"{counted(len(names), 'tensor has', 'tensors have')} no counterpart in {other}:"
            f" {shorten(sorted(names), 3)}; only a plain ViT CLIP, with OpenCLIP's own text tower,"
            " has both layouts"
        )
    return found


def _match_tower(
    ours: str, theirs: str, outside: dict[str, str], blocks: list[int]
) -> Iterator[tuple[str, Names]]:
    """Yield OpenCLIP's and transformers' names of one tower, which begin with ``ours`` and
    ``theirs``.
    """
    for name, other in outside.items():
        yield ours + name, (theirs + other,)
    for number in blocks:
        block, layer = f"{ours}transformer.resblocks.{number}", f"{theirs}encoder.layers.{number}"
        for part in ("weight", "bias"):
            stacked = tuple(f"{layer}.self_attn.{name}_proj.{part}" for name in "qkv")
            yield f"{block}.attn.in_proj_{part}", stacked
            for name, other in _MODULES.items():
                yield f"{block}.{name}.{part}", (f"{layer}.{other}.{part}",)
