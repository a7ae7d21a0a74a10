"""The weights of an output folder: streamed to files, with their index."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from clipmerge.checkpoint import Inputs
from clipmerge.checkpoint.source import INDEX, WEIGHTS
from clipmerge.errors import OutputError
from clipmerge.files.hashes import sha256_of
from clipmerge.files.safetensors import header_bytes
from clipmerge.files.writer import OutputTensor, iter_contents, output_file
from clipmerge.progress import Progress

# The order of safetensors' own save_file: widest dtype first, then by name.
_DTYPE_RANK = {
    name: rank
    for rank, name in enumerate(
        ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")
    )
}


def write_weights(
    folder: Path,
    tensors: list[OutputTensor],
    layout: dict[str, str] | None,
    progress: Progress,
    *,
    single: str = WEIGHTS,
    hashed: bool = True,
) -> dict[str, str | None]:
    """Write the merged tensors as safetensors, one file or shards with their index."""
    total = sum(tensor.nbytes for tensor in tensors)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress.advance(done, total)

    files: dict[str, list[OutputTensor]] = {}
    first = next(iter(layout.values())) if layout else single
    for tensor in tensors:
        files.setdefault(layout.get(tensor.key, first) if layout else first, []).append(tensor)
    hashes = {
        name: _write_file(folder / name, files[name], advance, hashed=hashed)
        for name in sorted(files)
    }
    if layout:
        index = {
            "metadata": {"total_size": total},
            "weight_map": {tensor.key: name for name in sorted(files) for tensor in files[name]},
        }
        (folder / INDEX).write_text(
            json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
        hashes[INDEX] = sha256_of(folder / INDEX)
    return hashes


def _write_file(
    path: Path, tensors: list[OutputTensor], advance: Callable[[int], None], *, hashed: bool
) -> str | None:
    tensors = sorted(tensors, key=lambda tensor: (_DTYPE_RANK[tensor.dtype], tensor.key))
    entries = {tensor.key: (tensor.dtype, tensor.shape) for tensor in tensors}
    header = np.frombuffer(header_bytes(entries, {"format": "pt"}), np.uint8)
    with output_file(
        path, len(header) + sum(tensor.nbytes for tensor in tensors), hashed=hashed
    ) as file:
        file.append(header)
        with contextlib.closing(iter_contents(tensors, file.reserve)) as contents:
            for chunk in itertools.chain.from_iterable(contents):
                file.append(chunk)
                advance(chunk.nbytes)
        return file.finish()


def assign_shards(
    inputs: Inputs, tensors: list[OutputTensor], max_shard_size: int | None = None
) -> dict[str, str] | None:
    """Choose the shard of each tensor."""
    layout = inputs.layout
    single = inputs.family.weights != WEIGHTS
    if max_shard_size is not None:
        from huggingface_hub import split_state_dict_into_shards_factory

        split = split_state_dict_into_shards_factory(
            {tensor.key: tensor for tensor in tensors},
            get_storage_size=lambda tensor: tensor.nbytes,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
        if split.is_sharded and single:
            raise OutputError(
                f"open_clip loads {inputs.family.weights} but no shards; leave out `max_shard_size`"
            )
        return split.tensor_to_filename if split.is_sharded else None
    if single or not layout.sharded:
        return None
    shards = {}
    for name, key in inputs.layout_keys.items():
        file = layout.entries[key].file
        converted = f"{file.stem.removeprefix('pytorch_')}.safetensors"
        shards[inputs.output_keys[name]] = file.name if file.suffix == ".safetensors" else converted
    return shards
