"""Check that a configuration and the weights beside it belong to the same model."""

from __future__ import annotations

import re
from typing import Any

from clipmerge.conversion.config import transformers_section
from clipmerge.errors import CheckpointError

Shape = tuple[int, ...]


def check_shapes(config: dict[str, Any], shapes: dict[str, Shape], file: str) -> None:
    """Refuse weights that do not match a configuration in transformers' form; ``file`` is its name in the message."""
    # blocks first, because the list of tensors for a wrong number of blocks may not fit in memory
    for side in ("vision", "text"):
        blocks = transformers_section(config, side)["num_hidden_layers"]
        norm = re.compile(rf"{side}_model\.encoder\.layers\.\d+\.layer_norm1\.weight")
        actual = sum(norm.fullmatch(name) is not None for name in shapes)
        if blocks != actual:
            raise CheckpointError(
                f"{file} says that the {side} tower has {blocks} layers, but the weights have {actual}"
            )
    for name, shape in _expected(config).items():
        has = shapes.get(name)
        if has != shape:
            raise CheckpointError(
                f"{file} requires {name} of shape {shape} (with defaults for missing settings), but the weights have "
                f"{'no such tensor' if has is None else f'the shape {has}'}"
            )


def _expected(config: dict[str, Any]) -> dict[str, Shape]:
    vision, text = (transformers_section(config, side) for side in ("vision", "text"))
    features = config.get("projection_dim", 512)
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    width, patch = vision["hidden_size"], vision["patch_size"]
    text_width = text["hidden_size"]
    return {
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": (patches + 1, width),
        **_norm("vision_model.pre_layrnorm", width),
        **_blocks("vision_model", vision),
        **_norm("vision_model.post_layernorm", width),
        "visual_projection.weight": (features, width),
        "text_model.embeddings.token_embedding.weight": (text["vocab_size"], text_width),
        "text_model.embeddings.position_embedding.weight": (text["max_position_embeddings"], text_width),
        **_blocks("text_model", text),
        **_norm("text_model.final_layer_norm", text_width),
        "text_projection.weight": (features, text_width),
        "logit_scale": (),
    }


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, inputs: int, outputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _blocks(tower: str, section: dict[str, Any]) -> dict[str, Shape]:
    width, hidden = section["hidden_size"], section["intermediate_size"]
    shapes: dict[str, Shape] = {}
    for index in range(section["num_hidden_layers"]):
        block = f"{tower}.encoder.layers.{index}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{block}.self_attn.{name}", width, width)
        shapes |= _linear(f"{block}.mlp.fc1", width, hidden) | _linear(f"{block}.mlp.fc2", hidden, width)
        shapes |= _norm(f"{block}.layer_norm1", width) | _norm(f"{block}.layer_norm2", width)
    return shapes
