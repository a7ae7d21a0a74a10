"""Translate image preprocessing between ``preprocess_cfg`` and ``preprocessor_config.json``."""

from __future__ import annotations

from typing import Any

from clipmerge.errors import CheckpointError

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
# Pillow's numbers; OpenCLIP's "random" is bicubic outside training.
_RESAMPLE = {"bilinear": 2, "bicubic": 3, "random": 3}
_INTERPOLATION = {2: "bilinear", 3: "bicubic"}


def image_processor_config(preprocess_cfg: dict[str, Any], image_size: int) -> dict[str, Any]:
    """Translate OpenCLIP's preprocessing to transformers' ``preprocessor_config.json``."""
    mode = preprocess_cfg.get("resize_mode", "shortest")
    if mode not in ("shortest", "squash"):
        raise CheckpointError(
            f"preprocess_cfg.resize_mode={mode} has no counterpart in transformers'"
            " CLIPImageProcessor"
        )
    square = {"height": image_size, "width": image_size}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": square if mode == "squash" else {"shortest_edge": image_size},
        "resample": _RESAMPLE[preprocess_cfg.get("interpolation", "bicubic")],
        "do_center_crop": mode == "shortest",
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess_cfg.get("mean", _MEAN)),
        "image_std": list(preprocess_cfg.get("std", _STD)),
        "do_convert_rgb": True,
    }


def preprocess_cfg(processor: dict[str, Any], image_size: int) -> tuple[dict[str, Any], list[str]]:
    """Translate transformers' preprocessing to OpenCLIP's ``preprocess_cfg``."""
    size = _edges(processor.get("size", image_size))
    crop = (
        _edges(processor.get("crop_size", image_size))
        if processor.get("do_center_crop", True)
        else None
    )
    resample = processor.get("resample", 3)
    notes = []
    if set(size.values()) != {image_size} or (crop and set(crop.values()) != {image_size}):
        edges = " x ".join(map(str, size.values()))
        notes.append(
            f"images are resized to {edges} there, but OpenCLIP resizes to the model's {image_size}"
            " pixels: accuracy may differ a little"
        )
    if resample not in _INTERPOLATION:
        notes.append(
            f"images are resampled with Pillow's filter {resample} there, which OpenCLIP lacks;"
            " bicubic was set"
        )
    normalises = processor.get("do_normalize", True)
    return {
        "mean": list(processor.get("image_mean", _MEAN)) if normalises else [0.0] * 3,
        "std": list(processor.get("image_std", _STD)) if normalises else [1.0] * 3,
        "interpolation": _INTERPOLATION.get(resample, "bicubic"),
        "resize_mode": "shortest" if "shortest_edge" in size else "squash",
    }, notes


def _edges(size: Any) -> dict[str, int]:
    return size if isinstance(size, dict) else {"shortest_edge": int(size)}
