"""The files of an output folder: weights in one file or in shards with their index, and the side
files of the output's layout (configuration, processor, tokenizer).
"""

from __future__ import annotations

import json
from pathlib import Path

from clipmerge.checkpoint import Checkpoint, Inputs
from clipmerge.checkpoint.source import INDEX, OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, WEIGHTS
from clipmerge.errors import OutputError
from clipmerge.files.hashes import sha256_of
from clipmerge.files.safetensors import DTYPES
from clipmerge.files.side_files import PROCESSORS, SIDE_FILES, VOCABULARIES, copy_side_file
from clipmerge.files.writer import OutputTensor, write_safetensors
from clipmerge.progress import Progress
from clipmerge.types import Names

_Files = dict[str, Path]


def write_weights(
    folder: Path, tensors: list[OutputTensor], shards: dict[str, str], progress: Progress
) -> dict[str, str]:
    """Write the merged tensors to their files, and an index if there are shards.

    Returns:
        sha256 by name of each file.
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
        text = json.dumps(index, indent=2, sort_keys=True)
        (folder / INDEX).write_text(f"{text}\n", encoding="utf-8")
        hashes[INDEX] = sha256_of(folder / INDEX)
    return hashes


def assign_shards(
    inputs: Inputs, tensors: list[OutputTensor], max_shard_size: int | None = None
) -> dict[str, str]:
    """Choose a file for each tensor, and return the files by key.

    The output has the shards of the fine-tuned checkpoint, or shards of at most ``max_shard_size``
    bytes.
    """
    single, layout = inputs.family.weights, inputs.layout
    if max_shard_size is not None:
        return _split_by_size(tensors, max_shard_size, single)
    if single != WEIGHTS or not layout.sharded:
        return {tensor.key: single for tensor in tensors}
    first = next(iter(layout.entries.values()))
    shards = {}
    for tensor in tensors:
        entry = layout.entries.get(tensor.key, first)  # only the zero-shot checkpoint has it
        stem = entry.file.stem.removeprefix("pytorch_")
        shards[tensor.key] = f"{stem}.safetensors"
    return shards


def _split_by_size(tensors: list[OutputTensor], max_shard_size: int, single: str) -> dict[str, str]:
    """Distribute tensors over shards of limited size. If one shard is enough, its name is
    ``single``.
    """
    from huggingface_hub import split_state_dict_into_shards_factory

    by_key = {tensor.key: tensor for tensor in tensors}
    split = split_state_dict_into_shards_factory(
        by_key,
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    if not split.is_sharded:
        return dict.fromkeys(by_key, single)
    if single != WEIGHTS:
        raise OutputError(f"open_clip loads {single} but no shards; leave out `max_shard_size`")
    return split.tensor_to_filename


def write_side_files(
    folder: Path, inputs: Inputs, dtype: str, progress: Progress
) -> dict[str, str]:
    """Copy configuration, processor and tokenizer, so that the output loads like its sources.

    The files come from the fine-tuned checkpoint and, where it lacks some, from the zero-shot one.
    If the output is a full model, but the fine-tuned checkpoint is only a tower, all come from the
    zero-shot one.

    Returns:
        sha256 by name of each file.
    """
    chosen = _find_side_files(inputs.layout)
    if inputs.layout is not inputs.zeroshot and not inputs.zeroshot.stored:
        chosen = _with_zeroshot_files(inputs, chosen, progress)
    hashes = {}
    for name in sorted(chosen):
        file = folder / name
        copy_side_file(chosen[name], file)
        if name == "config.json":
            _write_dtype_into_config(file, dtype, inputs.layout)
        hashes[name] = sha256_of(file)
    return hashes


def _find_side_files(checkpoint: Checkpoint) -> _Files:
    """Find the side files of a checkpoint, by name.

    Without a configuration, the result is empty: the files may belong to another model.
    """
    if checkpoint.config is None:
        return {}
    # a folder may hold both layouts, but the output has one
    is_open_clip = checkpoint.family.layout == "open-clip"
    other_layout = "config.json" if is_open_clip else OPEN_CLIP_CONFIG
    paths = {name: checkpoint.folder / name for name in SIDE_FILES - {other_layout}}
    return {name: path for name, path in paths.items() if path.is_file()}


def _with_zeroshot_files(inputs: Inputs, chosen: _Files, progress: Progress) -> _Files:
    """Add the zero-shot checkpoint's files where the fine-tuned one lacks some, and warn."""
    offered = _find_side_files(inputs.zeroshot)
    if inputs.layout.config is None:
        if offered:
            progress.warn(
                f"the fine-tuned checkpoint has no {inputs.family.config}; the zero-shot one's"
                " side files were copied"
            )
        return offered
    parts: dict[str, Names] = {}
    if not inputs.output.is_classifier:  # a classifier reads no texts
        parts["tokenizer"] = VOCABULARIES
    if inputs.zeroshot.family.layout != "open-clip":  # its configuration has the preprocessing
        parts["processor"] = PROCESSORS
    # the files of a part that the fine-tuned checkpoint has would contradict it
    unwanted = {"config.json", *VOCABULARIES, *PROCESSORS}
    is_lacking = False
    for part, names in parts.items():
        if chosen.keys().isdisjoint(names) and not offered.keys().isdisjoint(names):
            is_lacking = True
            unwanted.difference_update(names)
            progress.warn(
                f"the fine-tuned checkpoint has no {part}; the zero-shot one's was copied"
            )
    added = offered.keys() - unwanted if is_lacking else ()
    return {name: offered[name] for name in added} | chosen


def _write_dtype_into_config(path: Path, dtype: str, checkpoint: Checkpoint) -> None:
    """Write the dtype of the weights into a configuration.

    transformers loads weights in the dtype that the configuration names, not in their own. So if
    the weights keep their dtype, a configuration that names another one is corrected.
    """
    text = path.read_text(encoding="utf-8-sig")
    config = json.loads(text)
    if dtype == "keep":
        dtypes = {entry.dtype for entry in checkpoint.entries.values() if entry.is_float}
        if len(dtypes) != 1:
            return
        dtype = DTYPES[dtypes.pop()]
    else:
        config["dtype"] = dtype
    for section in (config, *config.values()):
        if not isinstance(section, dict):
            continue
        for key in ("dtype", "torch_dtype"):
            if section.get(key):
                section[key] = dtype
    if config != json.loads(text):
        text = json.dumps(config, indent=2)
        path.write_text(f"{text}\n", encoding="utf-8")
