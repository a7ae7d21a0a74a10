"""The files of an output folder: weights, streamed to files with their index, and the side files of
its layout (configuration, processor, tokenizer).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from clipmerge.checkpoint import Checkpoint, Inputs
from clipmerge.checkpoint.source import INDEX, OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, WEIGHTS
from clipmerge.errors import OutputError
from clipmerge.families import layout_of
from clipmerge.files.hashes import sha256_of
from clipmerge.files.safetensors import DTYPES, Array
from clipmerge.files.side_files import PROCESSORS, SIDE_FILES, VOCABULARIES, copy_side_file
from clipmerge.files.writer import OutputTensor, write_safetensors
from clipmerge.planning.record import BINS, TOP
from clipmerge.progress import Progress
from clipmerge.types import Names, Shape


def write_weights(
    folder: Path, tensors: list[OutputTensor], shards: dict[str, str], progress: Progress
) -> dict[str, str]:
    """Write the merged tensors to their files, with an index unless it is one file of its usual
    name.

    Returns:
        sha256 by name of each file written.
    """
    files: dict[str, list[OutputTensor]] = {}
    for tensor in tensors:
        files.setdefault(shards[tensor.key], []).append(tensor)
    total = sum(tensor.nbytes for tensor in tensors)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress.advance(done, total)

    hashes = {}
    for name in sorted(files):
        hashes[name] = write_safetensors(folder / name, files[name], advance)
    if not files.keys() <= {WEIGHTS, *OPEN_CLIP_WEIGHTS}:
        index = {"metadata": {"total_size": total}, "weight_map": shards}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / INDEX).write_text(text, encoding="utf-8")
        hashes[INDEX] = sha256_of(folder / INDEX)
    return hashes


def assign_shards(
    inputs: Inputs, tensors: list[OutputTensor], max_shard_size: int | None = None
) -> dict[str, str]:
    """Choose the file of each tensor: as the fine-tuned checkpoint has them, or by size."""
    single = inputs.family.weights
    if max_shard_size is not None:
        return _split_by_size(tensors, max_shard_size, single)
    layout = inputs.layout
    if single != WEIGHTS or not layout.sharded:
        return {tensor.key: single for tensor in tensors}
    files = {
        inputs.output_keys[name]: layout.entries[key].file
        for name, key in inputs.layout_keys.items()
    }
    first = next(iter(files.values()))  # for what only the other checkpoint has
    shards = {}
    for tensor in tensors:
        file = files.get(tensor.key, first)
        converted = f"{file.stem.removeprefix('pytorch_')}.safetensors"
        shards[tensor.key] = file.name if file.suffix == ".safetensors" else converted
    return shards


def _split_by_size(tensors: list[OutputTensor], max_shard_size: int, single: str) -> dict[str, str]:
    from huggingface_hub import split_state_dict_into_shards_factory

    split = split_state_dict_into_shards_factory(
        {tensor.key: tensor for tensor in tensors},
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    if not split.is_sharded:
        return {tensor.key: single for tensor in tensors}
    if single != WEIGHTS:
        raise OutputError(f"open_clip loads {single} but no shards; leave out `max_shard_size`")
    return split.tensor_to_filename


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
        if name == "config.json":
            _state_dtype(folder / name, dtype, inputs.layout)
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


def _state_dtype(path: Path, dtype: str, checkpoint: Checkpoint) -> None:
    """State the dtype of the weights in a config, because transformers follows it, not the file.

    If the weights keep their dtype, a config that states another one is corrected.
    """
    config = json.loads(path.read_text(encoding="utf-8-sig"))
    sections = [config, *(value for value in config.values() if isinstance(value, dict))]
    stated = []
    for section in sections:
        stated += [(section, key) for key in ("dtype", "torch_dtype") if section.get(key)]
    if dtype == "keep":
        dtypes = {entry.dtype for entry in checkpoint.entries.values() if entry.is_float}
        if len(dtypes) != 1:
            return
        dtype, _ = DTYPES[dtypes.pop()]
    elif not stated:
        stated = [(config, "dtype")]
    if all(section.get(key) == dtype for section, key in stated):
        return
    for section, key in stated:
        section[key] = dtype
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def histograms(coefficients: Mapping[str, Array], inputs: Inputs) -> dict[str, Shape]:
    """Count a model's entries by their coefficient, by tower."""
    counts: dict[str, Array] = {}
    for name, coefficient in coefficients.items():
        values = np.clip(coefficient, 0, TOP)
        found, _ = np.histogram(values, bins=BINS, range=(0, TOP))
        repeated = inputs.zeroshot_entry(name).size // max(1, values.size)
        tower = inputs.layer_of[name].partition(".")[0]
        before = counts.get(tower, np.zeros(BINS, int))
        counts[tower] = before + repeated * found
    return {tower: tuple(values.tolist()) for tower, values in counts.items()}
