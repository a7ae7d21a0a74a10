"""Write safetensors files byte by byte, so that a header can say anything, and edit those and JSON
files."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def raw_file(path: Path, header: bytes, data: bytes = b"") -> Path:
    """Save a header, which may be wrong, and data."""
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def edit(folder: Path, **changes: torch.Tensor | None) -> Path:
    """Replace, add or (``None``) remove tensors of a checkpoint folder; dots are written ``__``."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for key, value in changes.items():
        name = key.replace("__", ".")
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def edit_json(file: Path, **changes: Any) -> Path:
    """Set values of a JSON file, and inside a dictionary those that are named; ``...`` removes
    one."""
    file.write_text(json.dumps(_changed(json.loads(file.read_text()), changes)))
    return file


def _changed(content: Any, changes: dict[str, Any]) -> dict[str, Any]:
    result = dict(content) if isinstance(content, dict) else {}
    for key, value in changes.items():
        if value is ...:
            result.pop(key, None)
        else:
            result[key] = _changed(result.get(key), value) if isinstance(value, dict) else value
    return result


def rename_keys(folder: Path, rename: Any) -> Path:
    """Pass every key of a checkpoint folder through ``rename``."""
    file = folder / "model.safetensors"
    tensors = {rename(key): value for key, value in load_file(file).items()}
    save_file(tensors, folder / "renamed", metadata={"format": "pt"})
    (folder / "renamed").replace(file)  # others may have mapped it
    return folder


def shard(folder: Path) -> Path:
    """Turn a folder's one file into three shards with an index, keys dealt out in turn."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    weight_map = {}
    for at in range(3):
        name = f"model-{at + 1:05}-of-00003.safetensors"
        keys = sorted(tensors)[at::3]
        weight_map |= dict.fromkeys(keys, name)
        save_file({key: tensors[key] for key in keys}, folder / name, metadata={"format": "pt"})
    file.unlink()
    text = json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)
    return folder
