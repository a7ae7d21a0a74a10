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
    """Shapes of the tensors that show every size of a model."""
    vision, text = (transformers_section(config, side) for side in ("vision", "text"))
    patch, patches = vision["patch_size"], (vision["image_size"] // vision["patch_size"]) ** 2
    words, positions = text["vocab_size"], text["max_position_embeddings"]
    shapes: dict[str, Shape] = {
        "vision_model.embeddings.patch_embedding.weight": (vision["hidden_size"], 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": (patches + 1, vision["hidden_size"]),
        "text_model.embeddings.token_embedding.weight": (words, text["hidden_size"]),
        "text_model.embeddings.position_embedding.weight": (positions, text["hidden_size"]),
    }
    for tower, projection, section in (("vision_model", "visual", vision), ("text_model", "text", text)):
        shapes[f"{projection}_projection.weight"] = (config.get("projection_dim", 512), section["hidden_size"])
        for index in range(section["num_hidden_layers"]):
            block = f"{tower}.encoder.layers.{index}"
            shapes[f"{block}.self_attn.q_proj.weight"] = (section["hidden_size"], section["hidden_size"])
            shapes[f"{block}.mlp.fc1.weight"] = (section["intermediate_size"], section["hidden_size"])
    return shapes
