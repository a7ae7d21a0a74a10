"""Random CLIP checkpoints of real sizes, under transformers' key names, written without building a
model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

Shapes = dict[str, tuple[int, ...]]
SHARD_BYTES = 2_000_000_000

_TEXT_SIZES = {"vocab_size": 49408, "max_position_embeddings": 77}


def clip_config(size: str, gigabytes: float = 20.0) -> dict[str, Any]:
    """The config of a CLIP: ``b32``, ``l14``, or ``sharded``, as wide as ViT-bigG and as deep as
    ``gigabytes`` ask."""
    if size == "sharded":
        shallow = _config((1664, 8192, 1, 16, 14), (1280, 5120, 32, 20), 1280)
        spare = gigabytes * 1e9 - weight_bytes(shallow)
        layer = weight_bytes(
            _config((1664, 8192, 2, 16, 14), (1280, 5120, 32, 20), 1280)
        ) - weight_bytes(shallow)
        return _config(
            (1664, 8192, 1 + max(0, round(spare / layer)), 16, 14), (1280, 5120, 32, 20), 1280
        )
    if size == "b32":
        return _config((768, 3072, 12, 12, 32), (512, 2048, 12, 8), 512)
    return _config((1024, 4096, 24, 16, 14), (768, 3072, 12, 12), 768)


def _config(vision: tuple[int, ...], text: tuple[int, ...], projection: int) -> dict[str, Any]:
    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "patch_size",
    )
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "dtype": "float32",
        "projection_dim": projection,
        "logit_scale_init_value": 2.6592,
        "vision_config": dict(zip(names, vision, strict=True))
        | {"image_size": 224, "projection_dim": projection},
        "text_config": dict(zip(names, text, strict=False))
        | _TEXT_SIZES
        | {"projection_dim": projection},
    }


def clip_shapes(config: dict[str, Any]) -> Shapes:
    """Shapes of all tensors of a CLIPModel, by key."""
    vision, text, projection = (
        config["vision_config"],
        config["text_config"],
        config["projection_dim"],
    )
    wide, narrow, patch = vision["hidden_size"], text["hidden_size"], vision["patch_size"]
    shapes: Shapes = {
        "logit_scale": (),
        "visual_projection.weight": (projection, wide),
        "text_projection.weight": (projection, narrow),
        "vision_model.embeddings.class_embedding": (wide,),
        "vision_model.embeddings.patch_embedding.weight": (wide, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": (
            (vision["image_size"] // patch) ** 2 + 1,
            wide,
        ),
        "text_model.embeddings.token_embedding.weight": (text["vocab_size"], narrow),
        "text_model.embeddings.position_embedding.weight": (
            text["max_position_embeddings"],
            narrow,
        ),
    }
    for norm in ("vision_model.pre_layrnorm", "vision_model.post_layernorm"):
        shapes |= {f"{norm}.weight": (wide,), f"{norm}.bias": (wide,)}
    shapes |= {f"text_model.final_layer_norm.{part}": (narrow,) for part in ("weight", "bias")}
    for tower, section in (("vision_model", vision), ("text_model", text)):
        for number in range(section["num_hidden_layers"]):
            shapes |= _block(
                f"{tower}.encoder.layers.{number}",
                section["hidden_size"],
                section["intermediate_size"],
            )
    return shapes


def _block(prefix: str, width: int, inner: int) -> Shapes:
    shapes: Shapes = {}
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= {
            f"{prefix}.self_attn.{name}.weight": (width, width),
            f"{prefix}.self_attn.{name}.bias": (width,),
        }
    for name in ("layer_norm1", "layer_norm2"):
        shapes |= {f"{prefix}.{name}.weight": (width,), f"{prefix}.{name}.bias": (width,)}
    shapes |= {f"{prefix}.mlp.fc1.weight": (inner, width), f"{prefix}.mlp.fc1.bias": (inner,)}
    return shapes | {f"{prefix}.mlp.fc2.weight": (width, inner), f"{prefix}.mlp.fc2.bias": (width,)}


def weight_bytes(config: dict[str, Any]) -> int:
    """Size of the weights in float32."""
    return sum(4 * int(np.prod(shape)) for shape in clip_shapes(config).values())


def make_pair(folder: Path, config: dict[str, Any], *, sharded: bool) -> tuple[Path, Path]:
    """Write ``zeroshot`` and ``finetuned`` unless they are there already: random weights, and those
    moved by 5%."""
    paths = (folder / "zeroshot", folder / "finetuned")
    for moved, path in zip((0.0, 0.05), paths, strict=True):
        if not (path / "config.json").exists():
            path.mkdir(parents=True, exist_ok=True)
            _write(path, config, moved, sharded=sharded)
            # written last, so that a half-written folder is written again
            (path / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return paths


def _write(path: Path, config: dict[str, Any], moved: float, *, sharded: bool) -> None:
    rng, steps = np.random.default_rng(0), np.random.default_rng(1)
    shards = list(_shards(clip_shapes(config), SHARD_BYTES if sharded else None))
    weight_map = {}
    for number, shapes in enumerate(shards, start=1):
        name = (
            f"model-{number:05}-of-{len(shards):05}.safetensors" if sharded else "model.safetensors"
        )
        tensors = {key: _random(rng, shape) for key, shape in shapes.items()}
        if moved:
            for values in tensors.values():
                values += np.float32(moved) * _random(steps, values.shape)
        save_file(tensors, path / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shapes, name)
    if sharded:
        index = {"metadata": {"total_size": weight_bytes(config)}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(
            json.dumps(index, indent=2), encoding="utf-8"
        )


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    values: np.ndarray[Any, Any] = np.asarray(rng.standard_normal(shape, dtype=np.float32))
    values *= np.float32(0.02)
    return values


def _shards(shapes: Shapes, limit: int | None) -> Iterator[Shapes]:
    shard: Shapes = {}
    size = 0
    for key, shape in shapes.items():
        needed = 4 * int(np.prod(shape))
        if limit and shard and size + needed > limit:
            yield shard
            shard, size = {}, 0
        shard[key] = shape
        size += needed
    yield shard
