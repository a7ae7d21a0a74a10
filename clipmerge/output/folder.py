"""The files of an output folder: weights, streamed to files with their index, and the side files of
its layout (configuration, processor, tokenizer).
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from clipmerge.checkpoint import Checkpoint, Inputs
from clipmerge.checkpoint.source import INDEX, OPEN_CLIP_CONFIG, WEIGHTS
from clipmerge.errors import OutputError
from clipmerge.families import layout_of
from clipmerge.files.hashes import sha256_of
from clipmerge.files.safetensors import header_bytes
from clipmerge.files.side_files import PROCESSORS, SIDE_FILES, VOCABULARIES, copy_side_file
from clipmerge.files.writer import OutputTensor, iter_contents, output_file
from clipmerge.progress import Progress
from clipmerge.types import Names

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
) -> dict[str, str]:
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
    hashes = {name: _write_file(folder / name, files[name], advance) for name in sorted(files)}
    if layout:
        hashes[INDEX] = _write_index(folder / INDEX, files)
    return hashes


def _write_index(path: Path, files: dict[str, list[OutputTensor]]) -> str:
    total = sum(tensor.nbytes for tensors in files.values() for tensor in tensors)
    weight_map = {tensor.key: name for name in sorted(files) for tensor in files[name]}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return sha256_of(path)


def _write_file(path: Path, tensors: list[OutputTensor], advance: Callable[[int], None]) -> str:
    tensors = sorted(tensors, key=lambda tensor: (_DTYPE_RANK[tensor.dtype], tensor.key))
    entries = {tensor.key: (tensor.dtype, tensor.shape) for tensor in tensors}
    header = np.frombuffer(header_bytes(entries, {"format": "pt"}), np.uint8)
    with output_file(path, len(header) + sum(tensor.nbytes for tensor in tensors)) as file:
        file.append(header)
        with contextlib.closing(iter_contents(tensors, file.reserve)) as contents:
            for chunk in itertools.chain.from_iterable(contents):
                file.append(chunk)
                advance(chunk.nbytes)
        return file.finish()


def assign_shards(
    inputs: Inputs, tensors: list[OutputTensor], max_shard_size: int | None = None
) -> dict[str, str] | None:
    """Choose the shard of each tensor: as the fine-tuned checkpoint has them, or by size."""
    if max_shard_size is not None:
        return _split_by_size(tensors, max_shard_size, inputs.family.weights)
    layout = inputs.layout
    if inputs.family.weights != WEIGHTS or not layout.sharded:
        return None
    shards = {}
    for name, key in inputs.layout_keys.items():
        file = layout.entries[key].file
        converted = f"{file.stem.removeprefix('pytorch_')}.safetensors"
        shards[inputs.output_keys[name]] = file.name if file.suffix == ".safetensors" else converted
    return shards


def _split_by_size(
    tensors: list[OutputTensor], max_shard_size: int, single: str
) -> dict[str, str] | None:
    from huggingface_hub import split_state_dict_into_shards_factory

    split = split_state_dict_into_shards_factory(
        {tensor.key: tensor for tensor in tensors},
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    if split.is_sharded and single != WEIGHTS:
        raise OutputError(f"open_clip loads {single} but no shards; leave out `max_shard_size`")
    return split.tensor_to_filename if split.is_sharded else None


def write_side_files(folder: Path, inputs: Inputs, dtype: str) -> tuple[dict[str, str], list[str]]:
    """Copy configuration, processor and tokenizer, so that the output can be loaded like its
    sources.

    They are those of the fine-tuned checkpoint, unchanged except for the config's dtype. What it
    lacks, and all files if it is one tower of a full model, are the zero-shot checkpoint's.

    Returns:
        sha256 by name of each file written, and notes for the user.
    """
    chosen = _side_files(inputs.layout)
    notes: list[str] = []
    if not chosen.keys() & set(VOCABULARIES) or not chosen.keys() & set(PROCESSORS):
        chosen, notes = _lend_side_files(inputs, chosen)
    hashes = {}
    for name, path in sorted(chosen.items()):
        copy_side_file(path, folder / name)
        if name == "config.json" and dtype != "keep":
            _state_dtype(folder / name, dtype)
        hashes[name] = sha256_of(folder / name)
    return hashes, notes


def _side_files(checkpoint: Checkpoint) -> dict[str, Path]:
    if checkpoint.config is None:  # whatever lies beside a bare file
        return {}
    # a folder may hold both layouts; files of the other layout do not describe the output
    strange = "config.json" if layout_of(checkpoint.entries) == "open-clip" else OPEN_CLIP_CONFIG
    paths = {name: checkpoint.folder / name for name in SIDE_FILES - {strange}}
    return {name: path for name, path in paths.items() if path.is_file()}


def _lend_side_files(inputs: Inputs, chosen: dict[str, Path]) -> tuple[dict[str, Path], list[str]]:
    """Complete the files by those of the zero-shot checkpoint, if they are for the same library."""
    if inputs.layout is inputs.zeroshot or inputs.zeroshot.stored:
        return chosen, []
    others = _side_files(inputs.zeroshot)
    if inputs.layout.config is None:
        made = f"the fine-tuned checkpoint has no {inputs.family.config}; the zero-shot one's side"
        return others, [f"{made} files were copied"] if others else []
    parts: dict[str, Names] = {}
    if not inputs.keeps_head:  # a classifier needs none
        parts["tokenizer"] = VOCABULARIES
    if layout_of(inputs.zeroshot.entries) != "open-clip":  # whose config holds the preprocessing
        parts["processor"] = PROCESSORS
    notes = []
    for part, names in parts.items():
        if others.keys() & set(names) and not chosen.keys() & set(names):
            unlike = {"config.json", *(PROCESSORS if part == "tokenizer" else VOCABULARIES)}
            chosen = {name: p for name, p in others.items() if name not in unlike} | chosen
            notes.append(f"the fine-tuned checkpoint has no {part}; the zero-shot one's was copied")
    return chosen, notes


def _state_dtype(path: Path, dtype: str) -> None:
    """State the dtype of the weights in a config, because transformers follows it, not the file."""
    config = json.loads(path.read_text(encoding="utf-8-sig"))
    is_stated = False
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in [key for key in ("dtype", "torch_dtype") if section.get(key) is not None]:
            section[key] = dtype
            is_stated = True
    if not is_stated:
        config["dtype"] = dtype
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
