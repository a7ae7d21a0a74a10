"""The file that CLIP-LoRA writes, as a full checkpoint: its base with the changes applied, tensor
by tensor.

It has factors for the attention of some blocks, numbered in the order of training: the text tower's
blocks come before the vision tower's. Its metadata say which blocks these are, and the scale.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from clipmerge.checkpoint.adapter import AdaptedCheckpoint
from clipmerge.checkpoint.source import Checkpoint, LazyTensor, stored_array
from clipmerge.conversion.keys import layout_of
from clipmerge.errors import CheckpointError
from clipmerge.files.safetensors import Array
from clipmerge.parallel import one_thread
from clipmerge.types import Json

_FACTOR = re.compile(r"layer_(\d+)\.(q_proj|k_proj|v_proj|proj)\.w_lora_([AB])")
# The first matrix of a block's attention, by layout and tower.
_ATTENTION = {
    ("open-clip", "text"): (r"((?:text\.)?transformer\.resblocks\.(\d+)\.attn\.)in_proj_weight"),
    ("open-clip", "vision"): r"(visual\.transformer\.resblocks\.(\d+)\.attn\.)in_proj_weight",
    ("transformers", "text"): (r"(text_model\.encoder\.layers\.(\d+)\.self_attn\.)q_proj\.weight"),
    ("transformers", "vision"): (
        r"(vision_model\.encoder\.layers\.(\d+)\.self_attn\.)q_proj\.weight"
    ),
}
# The first and the last block of a position, as shares of all blocks.
_SPANS = {
    "all": (0, 1),
    "half-bottom": (0, 1 / 2),
    "half-up": (1 / 2, 1),
    "bottom": (0, 1 / 3),
    "mid": (1 / 3, 2 / 3),
    "up": (2 / 3, 1),
}
_LAST = {"top": 1, "top1": 1, "top2": 2, "top3": 3}
_STACKED = ("q_proj", "k_proj", "v_proj")


class _Metadata(BaseModel):
    """The settings of CLIP-LoRA that the arithmetic needs."""

    r: int = Field(gt=0)
    alpha: float = Field(allow_inf_nan=False)
    encoder: str = Field(pattern="^(text|vision|both)$")
    position: str


def flatten_factors(content: Any) -> Json:
    """The factors in what ``torch.load`` read, by layer, matrix and factor; empty if it is no file
    of CLIP-LoRA.
    """
    layers = content.get("weights") if isinstance(content, Mapping) else None
    if not isinstance(layers, Mapping) or "metadata" not in content:
        return {}
    return {
        f"{layer}.{matrix}.{factor}": tensor
        for layer, matrices in layers.items()
        if isinstance(matrices, Mapping)
        for matrix, factors in matrices.items()
        if isinstance(factors, Mapping)
        for factor, tensor in factors.items()
        if _FACTOR.fullmatch(f"{layer}.{matrix}.{factor}")
    }


def is_clip_lora(keys: Iterable[str]) -> bool:
    """Whether these are the keys of a file that CLIP-LoRA wrote."""
    keys = list(keys)
    return bool(keys) and all(map(_FACTOR.fullmatch, keys))


def apply_clip_lora(base: Checkpoint, adapter: Checkpoint, content: Any) -> Checkpoint:
    """Apply the factors of a CLIP-LoRA file, whose ``content`` is what ``torch.load`` read, to the
    base that they were trained on.
    """
    metadata = _read_metadata(adapter.files[0], content)
    blocks = _attention_prefixes(base, adapter, metadata)
    changes: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for name in adapter.entries:
        if (match := _FACTOR.fullmatch(name)) and match[3] == "A":
            key, index = _target_key(blocks[int(match[1])], match[2])
            changes[key].append((index, name))
    scale = metadata.alpha / math.sqrt(metadata.r)
    for key, factors in changes.items():
        for _, name in factors:
            _check_shapes(base, adapter, key, name, metadata.r)
    lazy = {
        key: LazyTensor((key,), partial(_form_changed, base, adapter, key, factors, scale))
        for key, factors in changes.items()
    }
    return AdaptedCheckpoint.of(
        base,
        lazy,
        source=adapter.source,
        revision=adapter.revision,
        files=adapter.files,
        _hashes={},
        notes=adapter.notes,
    )


def _read_metadata(file: Path, content: Any) -> _Metadata:
    try:
        return _Metadata.model_validate(content["metadata"])
    except (KeyError, TypeError, ValidationError) as error:
        raise CheckpointError(
            f"{file}: has factors of CLIP-LoRA, but not its settings ({type(error).__name__}); save"
            " it with CLIP-LoRA's save_lora"
        ) from None


def _attention_prefixes(base: Checkpoint, adapter: Checkpoint, metadata: _Metadata) -> list[str]:
    """The prefix of the attention in the base for each numbered layer of the file."""
    layout = layout_of(base.entries)
    blocks: list[str] = []
    for tower in ("text", "vision"):
        if metadata.encoder in (tower, "both"):
            pattern = re.compile(_ATTENTION[layout, tower])
            matches = [match for key in base.entries if (match := pattern.fullmatch(key))]
            prefixes = {int(match[2]): match[1] for match in matches}
            positions = _block_indices(metadata.position, len(prefixes))
            blocks += [prefixes[index] for index in positions if index in prefixes]
    numbers = {int(match[1]) for name in adapter.entries if (match := _FACTOR.fullmatch(name))}
    if numbers != set(range(len(blocks))):
        raise CheckpointError(
            f"{adapter.source}: changes {len(numbers)} blocks, and position"
            f" '{metadata.position}' of {base.source} has {len(blocks)}; give the base that it was"
            " trained on"
        )
    return blocks


def _block_indices(position: str, count: int) -> range:
    if position in _LAST:
        return range(count - _LAST[position], count)
    first, last = _SPANS.get(position, (0, 0))
    return range(round(first * count), round(last * count))


def _target_key(attention: str, name: str) -> tuple[str, int]:
    """The base's key that a factor changes, and its place among matrices that are stacked."""
    if attention.endswith(".self_attn."):
        return f"{attention}{'out_proj' if name == 'proj' else name}.weight", 0
    if name == "proj":
        return f"{attention}out_proj.weight", 0
    return f"{attention}in_proj_weight", _STACKED.index(name)


def _check_shapes(base: Checkpoint, adapter: Checkpoint, key: str, name: str, rank: int) -> None:
    other = name[:-1] + "B"
    columns = base.entries[key].shape[1]
    if (
        other not in adapter.entries
        or adapter.entries[name].shape != (rank, columns)
        or adapter.entries[other].shape != (columns, rank)
    ):
        raise CheckpointError(
            f"{adapter.source}: {name} is {adapter.entries[name].shape}, the base's {key}"
            f" {base.entries[key].shape}, and the rank {rank}; give the base that it was trained on"
        )


@one_thread()
def _form_changed(
    base: Checkpoint, adapter: Checkpoint, key: str, factors: list[tuple[int, str]], scale: float
) -> Array:
    """theta_1 of one parameter, unrounded."""
    import torch

    original = base.tensor(key)  # a view of the file, which must not be written to
    weight = original.to(torch.float64 if original.dtype.itemsize > 4 else torch.float32, copy=True)
    for index, name in factors:
        down = adapter.tensor(name).to(weight.dtype)
        up = adapter.tensor(name[:-1] + "B").to(weight.dtype)
        rows = slice(index * len(up), (index + 1) * len(up))
        weight[rows] += scale * (up @ down)
    return stored_array(weight.flatten())
