"""Find and open checkpoints: a folder, a file, an index of shards or a Hub id.

An adapter is applied to its base.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG, Checkpoint, prefix_errors
from clipmerge.errors import CheckpointError, did_you_mean, shorten
from clipmerge.families import layout_of
from clipmerge.files.hashes import remember_state
from clipmerge.files.paths import is_plain_name, local_path, split_part
from clipmerge.files.reading import read_json, refusing
from clipmerge.files.safetensors import PICKLE_SUFFIXES, TensorEntry, is_pickle, read_header
from clipmerge.files.side_files import SIDE_FILES, read_side_json

if TYPE_CHECKING:
    from clipmerge.checkpoint.derived import LazyTensor
    from clipmerge.hub.download import Snapshot
    from clipmerge.hub.ids import HubId

_INDICES = (".safetensors.index.json", ".bin.index.json")
# Names of weights in a folder, the first that is there is read.
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
# Keys of whole models without wrappers, which end in a usual parameter's name.
_PLAIN = re.compile(
    r"(?!.*(?:lora_|_orig_mod|_module\.|parametri))(?:vision_model|text_model|visual|transformer)\."
    r".*(?:(?:\.|_proj_)(?:weight|bias)|position_ids|class_embedding|positional_embedding|proj)"
    r"|visual_projection\.weight|text_projection(?:\.weight)?|logit_scale|logit_bias"
    r"|token_embedding\.weight|positional_embedding|ln_final\.(?:weight|bias)"
)
# What training leaves beside weights.
_NOT_WEIGHTS = ("optimizer.", "scheduler.", "scaler.", "rng_state", "training_args.")


@dataclass(frozen=True)
class CheckpointRef:
    """A checkpoint before it is opened: a place on disk, or a model on the Hub at one commit."""

    name: str  # as the user wrote it
    snapshot: Snapshot | None = None  # of a model on the Hub


def find_checkpoint(name: str) -> CheckpointRef:
    """Find a checkpoint on disk, or ask the Hub for its commit: the only time in a run."""
    if not name.strip():
        raise CheckpointError("the name of the checkpoint is empty; is a shell variable unset?")
    if local_path(split_part(name)[0]).exists():
        return CheckpointRef(name)
    hub_id = hub_id_of(name)
    from clipmerge.hub.download import resolve

    return CheckpointRef(name, resolve(hub_id))


def hub_id_of(source: str) -> HubId:
    """Read a source that is not on disk as a Hub id, or refuse it."""
    from clipmerge.hub.ids import parse_hub_id

    address, _ = split_part(source)
    hub_id = parse_hub_id(address)
    if hub_id is None:
        path = local_path(address)
        beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise CheckpointError(
            f"{source}: no such folder or file, and not a Hub id; give a folder, a .safetensors or"
            f" .pt file, org/name or org/name@revision.{did_you_mean(path.name, beside)}"
        )
    return hub_id


def open_checkpoints(names: Sequence[str], *, model: str | None = None) -> list[Checkpoint]:
    """Open a zero-shot checkpoint and its fine-tuned ones; all are found before one is
    downloaded.
    """
    base, *finetuned = [find_checkpoint(name) for name in names]
    zeroshot = open_checkpoint(base, model=model)
    return [zeroshot, *(open_checkpoint(ref, base=zeroshot, model=model) for ref in finetuned)]


def open_checkpoint(
    source: str | CheckpointRef, *, base: Checkpoint | None = None, model: str | None = None
) -> Checkpoint:
    """Open a folder, a file, an index of shards or a Hub id without reading weights.

    Args:
        source: The checkpoint, or an adapter.
        base: The checkpoint that an adapter is applied to.
        model: open_clip's name of the architecture, if no configuration lies beside the weights.
    """
    ref = find_checkpoint(source) if isinstance(source, str) else source
    name, part = split_part(ref.name)
    path = local_path(name)
    revision = None
    notes: tuple[str, ...] = ()
    if ref.snapshot is not None:
        revision = ref.snapshot.revision
        notes = (ref.snapshot.note,) if ref.snapshot.note else ()
        path = _download(ref.snapshot)
    if path.is_dir():
        names = [file.name for file in path.iterdir()]
        path = path / _choose_weights(ref.name, names)
    if path.stem == "adapter_model":
        from clipmerge.checkpoint.adapter import MERGE_IT, apply_adapter

        if base is None:
            raise CheckpointError(f"{ref.name}: is an adapter, not a full model; {MERGE_IT}")
        return apply_adapter(base, path.parent, ref.name, revision)
    checkpoint = _open_file(ref.name, path, part)
    checkpoint = replace(checkpoint, revision=revision, notes=(*notes, *checkpoint.notes))
    if model is None:
        return checkpoint
    from clipmerge.checkpoint.architecture import with_architecture

    return with_architecture(checkpoint, model)


def _download(snapshot: Snapshot) -> Path:
    """Download one set of weights and the small files beside it."""
    root = [name for name in snapshot.files if "/" not in name]
    weights = _choose_weights(str(snapshot.hub_id), root)
    wanted = [weights]
    stem, _, _ = weights.partition(".")
    for name in root:
        is_shard = weights.endswith(_INDICES) and name.startswith(f"{stem}-")
        if is_shard or name in SIDE_FILES or name == "adapter_config.json":
            wanted.append(name)
    return snapshot.download(wanted)


def _choose_weights(source: str, names: Sequence[str]) -> str:
    """The file of weights, or the index of shards, among the names in a folder."""
    for name in _WEIGHTS:
        if name in names:
            return name
    others = []
    for name in sorted(names):
        is_of_weights = name.endswith((".safetensors", *PICKLE_SUFFIXES))
        if is_of_weights and not name.startswith(_NOT_WEIGHTS):
            others.append(name)
    if len(others) == 1:
        return others[0]
    if others:
        raise CheckpointError(
            f"{source}: has no {_WEIGHTS[0]} but {shorten(others)}; give the file you mean"
        )
    raise CheckpointError(
        f"{source}: no weights in this folder, such as {_WEIGHTS[0]}; give the folder that"
        " save_pretrained wrote (in a pipeline, that of its CLIP). Checkpoints in pieces"
        " (DeepSpeed, FSDP) must be put together first"
    )


def _open_file(source: str, path: Path, part: str | None) -> Checkpoint:
    """Open a file of weights, or an index of shards; ``part`` names what is meant in it."""
    if not path.is_file():
        raise CheckpointError(f"{source}: is neither a file nor a folder; give one of them")
    if path.suffix == ".json" and not path.name.endswith(_INDICES):
        raise CheckpointError(f"{path}: holds no weights; give its folder, {path.parent}")
    is_index = path.name.endswith(_INDICES)
    files = _shards(path) if is_index else (path,)
    entries: dict[str, TensorEntry] = {}
    lazy: dict[str, LazyTensor] = {}
    notes: list[str] = []
    for file in files:
        remember_state(file)
        if file.suffix != ".safetensors" and is_pickle(file):
            from clipmerge.checkpoint.state_dict import read_state_dict  # imports torch

            formed, stored, part, about = read_state_dict(file, part)
            lazy |= formed
            notes += about
        else:
            stored = read_header(file)
        entries |= stored
    if not entries:
        raise CheckpointError(f"{path}: holds no tensors; give a checkpoint with weights")
    keys = {key: key for key in entries}
    if part is not None or not all(map(_PLAIN.fullmatch, entries)):
        from clipmerge.checkpoint.wrappers import unwrap

        with prefix_errors(path):
            keys, left_out = unwrap(entries, part)
        if left_out is not None:
            notes.append(f"{path}: {left_out}")
    chosen = {name: entries[key] for name, key in keys.items()}
    # folders on the Hub may hold both layouts and both configurations
    is_open_clip = layout_of(chosen) == "open-clip"
    config = read_side_json(path.parent, OPEN_CLIP_CONFIG if is_open_clip else "config.json")
    if (config or {}).get("quantization_config"):
        raise CheckpointError(
            f"{source}: is quantised (quantization_config in its config.json), so its tensors are"
            " codes and cannot be averaged; give the checkpoint that it was made from"
        )
    checkpoint = Checkpoint(
        source=source,
        revision=None,
        folder=path.parent,
        files=files,
        entries=chosen,
        config=config,
        sharded=is_index,
        notes=tuple(notes),
    )
    if not lazy:
        return checkpoint
    from clipmerge.checkpoint.derived import DerivedCheckpoint

    formed = {name: lazy[key] for name, key in keys.items() if key in lazy}
    return DerivedCheckpoint.of(checkpoint, formed)


def _shards(index: Path) -> tuple[Path, ...]:
    """The shards that an index names, which lie beside it."""
    with refusing(CheckpointError, f"{index}: cannot be read as JSON"):
        value = read_json(index)
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map; it is not an index of shards")
    names = list(dict.fromkeys(weight_map.values()))
    for name in names:
        if not is_plain_name(name):
            raise CheckpointError(
                f"{index}: points outside its folder, to {name!r}; shards lie beside the index"
            )
    files = tuple(index.parent / name for name in names)
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(
            f"{index}: lacks {len(missing)} of its {len(files)} shards: {shorten(missing)};"
            " download or copy them too"
        )
    return files
