"""Open a checkpoint: a folder, a file, an index of shards, a Hub id or an adapter."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG, Checkpoint
from clipmerge.checkpoint.wrappers import unwrap
from clipmerge.errors import CheckpointError, did_you_mean_path, shorten
from clipmerge.families import family_of, is_open_clip
from clipmerge.files import IN_MEMORY, local_path, split_part
from clipmerge.files.hashes import file_state
from clipmerge.files.safetensors import PICKLE_SUFFIXES, TensorEntry, is_pickle, read_header
from clipmerge.files.side_files import SIDE_FILES, read_side_json

if TYPE_CHECKING:
    from clipmerge.hub import Snapshot

_INDICES = (".safetensors.index.json", ".bin.index.json")
# Subfolders with the CLIP, in models of sentence-transformers and in pipelines of diffusers.
_FOLDERS = ("0_CLIPModel/", "text_encoder/")
# Files of weights in the order of preference: the first one in a folder is read.
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "adapter_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
    "adapter_model.bin",
)
# Beginnings of the names of files that training saves beside weights.
_NOT_WEIGHTS = ("optimizer.", "scheduler.", "scaler.", "rng_state", "training_args.")


def open_checkpoints(names: Sequence[str], models: Sequence[str | None]) -> list[Checkpoint]:
    """Open the zero-shot checkpoint and the fine-tuned ones. All are located before the first
    download.

    Args:
        names: Their sources.
        models: For each, open_clip's name of its architecture, if the user gave one.
    """
    opened: list[Checkpoint] = []
    snapshots = [_find_snapshot(name) for name in names]
    for name, snapshot, model in zip(names, snapshots, models, strict=True):
        base = opened[0] if opened else None
        opened.append(open_checkpoint(name, snapshot=snapshot, base=base, model=model))
    return opened


def open_checkpoint(
    source: str,
    *,
    snapshot: Snapshot | None = None,
    base: Checkpoint | None = None,
    model: str | None = None,
) -> Checkpoint:
    """Open a folder, a file, an index of shards, a Hub id or an adapter, without reading weights.

    Args:
        source: The checkpoint, or an adapter, as the user wrote it.
        snapshot: The commit on the Hub, if it is known already.
        base: The checkpoint that an adapter is applied to.
        model: open_clip's name of the architecture, if no configuration lies beside the weights.
    """
    snapshot = snapshot or _find_snapshot(source)
    address, part = split_part(source)
    path = local_path(address)
    if snapshot is not None:
        path = _download_snapshot(snapshot)
    elif path.is_dir():
        # other libraries save the CLIP in a subfolder
        files = (*path.glob("*"), *path.glob("*/*"))
        names = [file.relative_to(path).as_posix() for file in files]
        path /= _choose_weights(source, names)
    if path.parent.parent.name.startswith(IN_MEMORY):
        source = path.parent.name
    if path.stem == "adapter_model":
        from clipmerge.checkpoint.adapter import apply_adapter

        checkpoint = apply_adapter(base, path.parent, source)
    else:
        checkpoint = _open_file(source, path, part)
    if snapshot is not None:
        notes = (*snapshot.notes, *checkpoint.notes)
        checkpoint = replace(checkpoint, revision=snapshot.revision, notes=notes)
    if model is not None:
        from clipmerge.checkpoint.architecture import with_architecture

        checkpoint = with_architecture(checkpoint, model)
    return checkpoint


def _find_snapshot(name: str) -> Snapshot | None:
    """Ask the Hub for the commit of a checkpoint; ``None`` if the checkpoint is on disk."""
    if not name.strip():
        raise CheckpointError("the name of the checkpoint is empty; is a shell variable unset?")
    address, _ = split_part(name)
    path = local_path(address)
    if path.exists():
        return None
    from clipmerge.hub import find_snapshot

    snapshot = find_snapshot(address)
    if snapshot is None:
        raise CheckpointError(
            f"{name}: no such folder or file, and not a Hub id; give a folder, a .safetensors or"
            f" .pt file, org/name or org/name@revision.{did_you_mean_path(path)}"
        )
    return snapshot


def _download_snapshot(snapshot: Snapshot) -> Path:
    """Download one set of weights and the small files beside it."""
    weights = _choose_weights(str(snapshot), snapshot.files)
    folder, slash, file = weights.rpartition("/")
    patterns = [glob.escape(weights)]
    for name in (*SIDE_FILES, "adapter_config.json"):
        patterns.append(f"{folder}{slash}{name}")
    if file.endswith(_INDICES):
        stem, _, _ = file.partition(".")
        patterns.append(f"{folder}{slash}{stem}-*")
    return snapshot.download(patterns) / weights


def _choose_weights(source: str, names: Sequence[str]) -> str:
    """Choose the file to read in a folder: weights, or an index of shards."""
    for folder in ("", *_FOLDERS):
        for name in _WEIGHTS:
            if folder + name in names:
                return folder + name
    found = []
    for name in sorted(names):
        has_weights = name.endswith((".safetensors", *PICKLE_SUFFIXES)) and "/" not in name
        if has_weights and not name.startswith(_NOT_WEIGHTS):
            found.append(name)
    if len(found) > 1:
        raise CheckpointError(
            f"{source}: has no {_WEIGHTS[0]} but {shorten(found)}; give the file you mean"
        )
    if not found:
        raise CheckpointError(
            f"{source}: no weights in this folder, such as {_WEIGHTS[0]}; give the folder that"
            " save_pretrained wrote. If training saved pieces (DeepSpeed, FSDP), join them first"
        )
    return found[0]


def _open_file(source: str, path: Path, part: str | None) -> Checkpoint:
    """Open a file of weights or an index of shards; ``part`` names a model among several in it."""
    is_index = path.name.endswith(_INDICES)
    files = _shard_files(path) if is_index else (path,)
    states = {file: file_state(file) for file in files}
    entries: dict[str, TensorEntry] = {}
    notes: list[str] = []
    for file in files:
        if file.suffix != ".safetensors" and is_pickle(file):
            from clipmerge.checkpoint.state_dict import read_state_dict  # imports torch

            stored, part = read_state_dict(file, part, notes)
        else:
            stored = read_header(file)
        entries |= stored
    if not entries:
        raise CheckpointError(f"{path}: holds no tensors; give a checkpoint with weights")
    entries = unwrap(path, entries, part, notes)
    # folders on the Hub may hold both layouts and both configurations
    config_name = OPEN_CLIP_CONFIG if is_open_clip(entries) else "config.json"
    config = read_side_json(path.parent, config_name)
    return Checkpoint(
        source=source,
        revision=None,
        folder=path.parent,
        files=files,
        states=states,
        entries=entries,
        config=config,
        family=family_of(config, entries, source),
        sharded=is_index,
        notes=tuple(notes),
    )


def _shard_files(index: Path) -> tuple[Path, ...]:
    """Find the shards that an index names beside it."""
    content = read_side_json(index.parent, index.name) or {}
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map; it is not an index of shards")
    beside = {file.name for file in index.parent.iterdir() if file.is_file()}
    names = list(dict.fromkeys(weight_map.values()))
    if missing := [str(name) for name in names if name not in beside]:
        raise CheckpointError(
            f"{index}: lacks {len(missing)} of its {len(names)} shards in its folder:"
            f" {shorten(missing)}; download or copy them too"
        )
    return tuple(index.parent / name for name in names)
