"""The tensors of a plain ViT CLIP in OpenCLIP's layout, with their counterparts in transformers'.

One list serves both directions, for pairs of two layouts. OpenCLIP keeps query, key and value
stacked in one ``in_proj`` and multiplies features by its projections from the right; transformers
keeps three matrices and multiplies from the left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from clipmerge.errors import CheckpointError, counted, shorten
from clipmerge.families import Layout
from clipmerge.types import Names

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


def match_keys(keys: Iterable[str], layout: Layout, *, text_prefix: str = "") -> tuple[Match, ...]:
    """Match every parameter of a plain ViT CLIP with the other layout's."""
    names = {key for key in keys if not _BUFFERS.fullmatch(key)}
    blocks = {"vision": 0, "text": 0}
    for key in names:
        if block := _BLOCK[layout].match(key):
            tower = "vision" if block[1] in ("visual.", "vision") else "text"
            blocks[tower] = max(blocks[tower], int(block[2]) + 1)
    scale = Match("logit_scale", ("logit_scale",))
    matches = (
        *_match_vision_keys(blocks["vision"]),
        *_match_text_keys(blocks["text"], text_prefix),
        scale,
    )
    expected: set[str] = set()
    for match in matches:
        expected |= {match.open_clip} if layout == "open-clip" else {*match.transformers}
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


def _match_vision_keys(blocks: int) -> Iterator[Match]:
    embeddings = "vision_model.embeddings"
    yield Match("visual.class_embedding", (f"{embeddings}.class_embedding",))
    yield Match("visual.conv1.weight", (f"{embeddings}.patch_embedding.weight",))
    yield Match("visual.positional_embedding", (f"{embeddings}.position_embedding.weight",))
    yield from _weight_and_bias("visual.ln_pre", "vision_model.pre_layrnorm")
    for index in range(blocks):
        yield from _match_block_keys(
            f"visual.transformer.resblocks.{index}", f"vision_model.encoder.layers.{index}"
        )
    yield from _weight_and_bias("visual.ln_post", "vision_model.post_layernorm")
    yield Match("visual.proj", ("visual_projection.weight",), transposed=True)


def _match_text_keys(blocks: int, prefix: str) -> Iterator[Match]:
    embeddings = "text_model.embeddings"
    yield Match(f"{prefix}token_embedding.weight", (f"{embeddings}.token_embedding.weight",))
    yield Match(f"{prefix}positional_embedding", (f"{embeddings}.position_embedding.weight",))
    for index in range(blocks):
        yield from _match_block_keys(
            f"{prefix}transformer.resblocks.{index}", f"text_model.encoder.layers.{index}"
        )
    yield from _weight_and_bias(f"{prefix}ln_final", "text_model.final_layer_norm")
    yield Match(f"{prefix}text_projection", ("text_projection.weight",), transposed=True)


def _match_block_keys(ours: str, theirs: str) -> Iterator[Match]:
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
