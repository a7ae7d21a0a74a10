"""The files of an output folder: weights, streamed to files with their index, and the side files of
its layout (configuration, processor, tokenizer).
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

# Files of which a checkpoint needs one to have a part of its processor.
_PARTS = {"tokenizer": VOCABULARIES, "processor": PROCESSORS}


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
        hashes[INDEX] = _write_index(folder / INDEX, shards, total)
    return hashes


def _write_index(file: Path, shards: dict[str, str], total: int) -> str:
    index = {"metadata": {"total_size": total}, "weight_map": shards}
    text = json.dumps(index, indent=2, sort_keys=True)
    file.write_text(f"{text}\n", encoding="utf-8")
    return sha256_of(file)


def assign_shards(
    inputs: Inputs, tensors: list[OutputTensor], max_shard_size: int | None = None
) -> dict[str, str]:
    """Choose the file of each tensor: as the fine-tuned checkpoint has them, or by size."""
    single = inputs.family.weights
    if max_shard_size is not None:
        return _split_by_size(tensors, max_shard_size, single)
    if single == WEIGHTS and inputs.layout.sharded:
        return _shards_of_layout(inputs, tensors)
    return {tensor.key: single for tensor in tensors}


def _shards_of_layout(inputs: Inputs, tensors: list[OutputTensor]) -> dict[str, str]:
    layout = inputs.layout
    keys = inputs.finetuned_keys[0]
    if layout is inputs.zeroshot:
        keys = inputs.zeroshot_keys
    first = next(iter(keys.values()))
    shards = {}
    for tensor in tensors:
        key = keys.get(tensor.name, first)  # only the other checkpoint may have it
        stem = layout.entries[key].file.stem
        shards[tensor.key] = f"{stem.removeprefix('pytorch_')}.safetensors"
    return shards


def _split_by_size(tensors: list[OutputTensor], max_shard_size: int, single: str) -> dict[str, str]:
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
    """Copy configuration, processor and tokenizer, so that the output can be loaded like its
    sources.

    The fine-tuned checkpoint's files are copied, and only the config's dtype is changed. Files that
    it lacks come from the zero-shot checkpoint, and so do all if it is one tower of a full model.

    Returns:
        sha256 by name of each file written.
    """
    chosen = _find_side_files(inputs.layout)
    if inputs.layout is not inputs.zeroshot and not inputs.zeroshot.stored:
        chosen, notes = _lend_side_files(inputs, chosen)
        for note in notes:
            progress.warn(note)
    hashes = {}
    for name in sorted(chosen):
        file = folder / name
        copy_side_file(chosen[name], file)
        if name == "config.json":
            _write_dtype_into_config(file, dtype, inputs.layout)
        hashes[name] = sha256_of(file)
    return hashes


def _find_side_files(checkpoint: Checkpoint) -> dict[str, Path]:
    if checkpoint.config is None:  # files beside a bare file need not belong to it
        return {}
    # a folder may hold both layouts; files of the other layout do not describe the output
    strange = OPEN_CLIP_CONFIG
    if checkpoint.family.layout == "open-clip":
        strange = "config.json"
    files = {}
    for name in SIDE_FILES - {strange}:
        path = checkpoint.folder / name
        if path.is_file():
            files[name] = path
    return files


def _lend_side_files(inputs: Inputs, chosen: dict[str, Path]) -> tuple[dict[str, Path], list[str]]:
    """Complete the fine-tuned checkpoint's files by those of the zero-shot one, and say so."""
    lent = _find_side_files(inputs.zeroshot)
    if inputs.layout.config is None:
        note = (
            f"the fine-tuned checkpoint has no {inputs.family.config}; the zero-shot one's"
            " side files were copied"
        )
        return lent, [note] if lent else []
    needs = {
        "tokenizer": not inputs.output.is_classifier,  # a classifier has no texts
        # the configuration of open_clip holds the preprocessing
        "processor": inputs.zeroshot.family.layout != "open-clip",
    }
    notes = []
    unwanted = {"config.json"}
    for part, names in _PARTS.items():
        is_lacking = needs[part] and chosen.keys().isdisjoint(names)
        if is_lacking and not lent.keys().isdisjoint(names):
            notes.append(f"the fine-tuned checkpoint has no {part}; the zero-shot one's was copied")
        else:
            unwanted.update(names)
    if notes:
        chosen = {name: lent[name] for name in lent.keys() - unwanted} | chosen
    return chosen, notes


def _write_dtype_into_config(path: Path, dtype: str, checkpoint: Checkpoint) -> None:
    """State the dtype of the weights in a config, because transformers follows it, not the file.

    If the weights keep their dtype, a config that states another one is corrected.
    """
    text = path.read_text(encoding="utf-8-sig")
    config = json.loads(text)
    if dtype == "keep":
        dtypes = {entry.dtype for entry in checkpoint.entries.values() if entry.is_float}
        if len(dtypes) != 1:
            return
        dtype, _ = DTYPES[dtypes.pop()]
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
