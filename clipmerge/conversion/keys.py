"""The tensors of a plain ViT CLIP in OpenCLIP's layout, with their counterparts in transformers'.

One list serves both directions. OpenCLIP keeps query, key and value stacked in one ``in_proj`` and
multiplies features by its projections from the right; transformers keeps three matrices and
multiplies from the left.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from clipmerge.errors import CheckpointError, counted, shorten
from clipmerge.types import Names

Layout = Literal["transformers", "open-clip"]

_BLOCK = {
    "open-clip": re.compile(r"(visual\.|text\.)?transformer\.resblocks\.(\d+)\."),
    "transformers": re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\."),
}
# Tensors that are not parameters: causal masks, position ids, and the integers of OpenAI's
# archives.
_BUFFERS = re.compile(
    r"(text\.)?attn_mask|(vision|text)_model\.embeddings\.position_ids|input_resolution|context_length|vocab_size"
)
_PARTS = ("weight", "bias")


@dataclass(frozen=True)
class Match:
    """The key of one tensor in OpenCLIP's layout, and its counterpart's in transformers'."""

    open_clip: str
    transformers: Names  # three keys if the tensors are stacked along the first dimension
    transposed: bool = False


def layout_of(keys: Iterable[str]) -> Layout:
    """Recognise the layout of a file's keys; a wrapper's ``module.`` is ignored.

    Example:
        >>> layout_of(["visual.conv1.weight"]), layout_of(["visual_projection.weight"])
        ('open-clip', 'transformers')
    """
    plain = (key.removeprefix("module.") for key in keys)
    return (
        "open-clip"
        if any(key.startswith("visual.") or ".resblocks." in key for key in plain)
        else "transformers"
    )


def is_not_converted(key: str) -> bool:
    """Whether a key is a mask or a counter, which each library creates itself, instead of a
    parameter.
    """
    return _BUFFERS.fullmatch(key) is not None


def match_keys(keys: Iterable[str], layout: Layout, *, text_prefix: str = "") -> tuple[Match, ...]:
    """Match every parameter of a plain ViT CLIP with the other layout's."""
    names = {key for key in keys if not is_not_converted(key)}
    blocks = {"vision": 0, "text": 0}
    for key in names:
        if block := _BLOCK[layout].match(key):
            tower = "vision" if block[1] in ("visual.", "vision") else "text"
            blocks[tower] = max(blocks[tower], int(block[2]) + 1)
    # a number in a name is arbitrary: do not list that many blocks
    if max(blocks.values()) > len(names):
        raise CheckpointError(
            f"a block has the number {max(blocks.values()) - 1}, but there are only {len(names)}"
            " tensors"
        )
    scale = Match("logit_scale", ("logit_scale",))
    matches = (
        *_vision_matches(blocks["vision"]),
        *_text_matches(blocks["text"], text_prefix),
        scale,
    )
    expected = {
        name
        for match in matches
        for name in ((match.open_clip,) if layout == "open-clip" else match.transformers)
    }
    other = "a transformers CLIPModel" if layout == "open-clip" else "OpenCLIP"
    if extra := sorted(names - expected):
        raise CheckpointError(
            f"{counted(len(extra), 'tensor has', 'tensors have')} no counterpart in {other}:"
            f" {shorten(extra, 3)}; only a plain ViT CLIP, with OpenCLIP's own text tower, has both"
            " layouts"
        )
    if missing := sorted(expected - names):
        raise CheckpointError(
            f"{counted(len(missing), 'tensor of a CLIP is', 'tensors of a CLIP are')} missing:"
            f" {shorten(missing, 3)}"
        )
    return matches


def _vision_matches(blocks: int) -> Iterator[Match]:
    embeddings = "vision_model.embeddings"
    yield Match("visual.class_embedding", (f"{embeddings}.class_embedding",))
    yield Match("visual.conv1.weight", (f"{embeddings}.patch_embedding.weight",))
    yield Match("visual.positional_embedding", (f"{embeddings}.position_embedding.weight",))
    yield from _weight_and_bias("visual.ln_pre", "vision_model.pre_layrnorm")
    for index in range(blocks):
        yield from _block_matches(
            f"visual.transformer.resblocks.{index}", f"vision_model.encoder.layers.{index}"
        )
    yield from _weight_and_bias("visual.ln_post", "vision_model.post_layernorm")
    yield Match("visual.proj", ("visual_projection.weight",), transposed=True)


def _text_matches(blocks: int, prefix: str) -> Iterator[Match]:
    embeddings = "text_model.embeddings"
    yield Match(f"{prefix}token_embedding.weight", (f"{embeddings}.token_embedding.weight",))
    yield Match(f"{prefix}positional_embedding", (f"{embeddings}.position_embedding.weight",))
    for index in range(blocks):
        yield from _block_matches(
            f"{prefix}transformer.resblocks.{index}", f"text_model.encoder.layers.{index}"
        )
    yield from _weight_and_bias(f"{prefix}ln_final", "text_model.final_layer_norm")
    yield Match(f"{prefix}text_projection", ("text_projection.weight",), transposed=True)


def _block_matches(ours: str, theirs: str) -> Iterator[Match]:
    yield from _weight_and_bias(f"{ours}.ln_1", f"{theirs}.layer_norm1")
    for part in _PARTS:
        stacked = tuple(f"{theirs}.self_attn.{name}_proj.{part}" for name in "qkv")
        yield Match(f"{ours}.attn.in_proj_{part}", stacked)
    yield from _weight_and_bias(f"{ours}.attn.out_proj", f"{theirs}.self_attn.out_proj")
    yield from _weight_and_bias(f"{ours}.ln_2", f"{theirs}.layer_norm2")
    yield from _weight_and_bias(f"{ours}.mlp.c_fc", f"{theirs}.mlp.fc1")
    yield from _weight_and_bias(f"{ours}.mlp.c_proj", f"{theirs}.mlp.fc2")


def _weight_and_bias(ours: str, theirs: str) -> Iterator[Match]:
    for part in _PARTS:
        yield Match(f"{ours}.{part}", (f"{theirs}.{part}",))


# timm's ViTs of CLIP (``vit_base_patch32_clip_224`` and the like): the vision tower, and a head
# that reads features before the projection. Two tensors have leading dimensions of one.

# Parameters that together are in these models alone.
_TIMM_MARKS = {"cls_token", "pos_embed", "patch_embed.proj.weight", "norm_pre.weight"}
_TIMM_BLOCK = r"blocks\.(\d+)\."
_OPEN_CLIP_BLOCK = r"visual.transformer.resblocks.\1."
_TIMM_NAMES = (
    (r"cls_token$", "visual.class_embedding"),
    (r"pos_embed$", "visual.positional_embedding"),
    (r"patch_embed\.proj\.", "visual.conv1."),
    (r"norm_pre\.", "visual.ln_pre."),
    (rf"{_TIMM_BLOCK}norm1\.", rf"{_OPEN_CLIP_BLOCK}ln_1."),
    (rf"{_TIMM_BLOCK}attn\.qkv\.", rf"{_OPEN_CLIP_BLOCK}attn.in_proj_"),
    (rf"{_TIMM_BLOCK}attn\.proj\.", rf"{_OPEN_CLIP_BLOCK}attn.out_proj."),
    (rf"{_TIMM_BLOCK}norm2\.", rf"{_OPEN_CLIP_BLOCK}ln_2."),
    (rf"{_TIMM_BLOCK}mlp\.fc1\.", rf"{_OPEN_CLIP_BLOCK}mlp.c_fc."),
    (rf"{_TIMM_BLOCK}mlp\.fc2\.", rf"{_OPEN_CLIP_BLOCK}mlp.c_proj."),
    (r"norm\.", "visual.ln_post."),
    (r"head\.", "classifier."),
)


def is_timm_vit(keys: Collection[str]) -> bool:
    """Whether a file's keys are those of one of timm's ViTs of CLIP."""
    return set(keys) >= _TIMM_MARKS


def open_clip_name(key: str) -> str:
    """Translate a key, or leave it under ``visual.`` if the models have no such parameter.

    Example:
        >>> [open_clip_name(key) for key in ("head.weight", "fc_norm.weight")]
        ['classifier.weight', 'visual.fc_norm.weight']
    """
    for pattern, replacement in _TIMM_NAMES:
        if re.match(pattern, key):
            return re.sub(rf"^{pattern}", replacement, key)
    return f"visual.{key}"
