"""Find and open checkpoints: a folder, a file, an index of shards or a Hub id.

An adapter is applied to its base.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from clipmerge.checkpoint.adapter import apply_adapter
from clipmerge.checkpoint.alignment import align_checkpoints
from clipmerge.checkpoint.architecture import with_architecture
from clipmerge.checkpoint.clip_lora import apply_clip_lora, is_clip_lora
from clipmerge.checkpoint.parametrised import form_weights
from clipmerge.checkpoint.source import (
    INDEX,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    WEIGHTS,
    Checkpoint,
    DerivedCheckpoint,
    LazyTensor,
    prefix_errors,
)
from clipmerge.checkpoint.wrappers import text_encoders, unwrap
from clipmerge.config import Missing
from clipmerge.conversion.keys import layout_of
from clipmerge.errors import CheckpointError, HubError, counted, did_you_mean, shorten
from clipmerge.families import is_known
from clipmerge.files.hashes import remember_state
from clipmerge.files.paths import is_plain_name, local_path, split_part
from clipmerge.files.reading import Unreadable, read_json, refusing
from clipmerge.files.safetensors import (
    DTYPES,
    FLOATS,
    PICKLE_SUFFIXES,
    TensorEntry,
    is_pickle,
    read_header,
    unique_keys,
)
from clipmerge.files.side_files import lies_in, read_side_json
from clipmerge.finding import Finding
from clipmerge.hub.ids import HubId, parse_hub_id
from clipmerge.types import Json

if TYPE_CHECKING:
    from clipmerge.hub.download import Snapshot

ADAPTER = "adapter_model.safetensors"
# Maximum number of a folder's entries that are searched for a name like a mistyped one.
_MAX_ENTRIES = 1000
_PICKLED_INDEX = "pytorch_model.bin.index.json"
# Files beside weights, and weights that are not read.
_OTHER_FILES = {".json", ".onnx", ".gguf", ".msgpack", ".h5", ".tflite"}
_HUB_PAGE = re.compile(r"https?://huggingface\.co/([\w.-]+/[\w.-]+)")
# Names of weight files before safetensors; other pickles in a folder may hold anything.
_PICKLES = ("pytorch_model.bin", _PICKLED_INDEX, "open_clip_pytorch_model.bin", "adapter_model.bin")
# Folders of a pipeline of diffusers that may hold a CLIP.
_DIFFUSERS = ("text_encoder", "text_encoder_2", "image_encoder")
# Weight files on the Hub that can be compared by their headers, with the configurations beside
# them.
_CONFIGS = {
    "model.safetensors": "config.json",
    "model.safetensors.index.json": "config.json",
    "open_clip_model.safetensors": "open_clip_config.json",
    "open_clip_pytorch_model.safetensors": "open_clip_config.json",
}
# The patch embedding of a vision tower inside another model.
_PATCHES = re.compile(r"(.+?\.)(?:vision_model\.)?embeddings\.patch_embedding\.weight")
# Names that each library adds to a module's weight, or uses instead of it.
_MARKS = (
    (
        r"\.(?:absmax|quant_map|nested_absmax|nested_quant_map|SCB|weight_format)$|\.quant_state\.",
        "bitsandbytes",
    ),
    (r"\.(?:qweight|qzeros|g_idx)$", "GPTQ or AWQ"),
    (
        r"\.(?:weight_packed|weight_scale|weight_scale_inv|weight_zero_point|input_scale)$",
        "compressed-tensors or FP8",
    ),
    (r"\.(?:_data|_scale|_packed)$", "quanto"),
    (r"\.W_q$", "HQQ"),
)


@dataclass(frozen=True)
class Source:
    """A checkpoint before it is opened: a place on disk, or a model on the Hub at one commit."""

    name: str  # as the user wrote it
    snapshot: Snapshot | None = None  # of a model on the Hub


def find_source(name: str) -> Source:
    """Find a checkpoint on disk, or ask the Hub for its commit: the only time in a run."""
    if not name.strip():
        raise CheckpointError(
            "the name of the checkpoint is empty; is a variable of your shell unset?"
        )
    if local_path(split_part(name)[0]).exists():
        return Source(name)
    hub_id = hub_id_of(name)
    from clipmerge.hub.download import resolve

    try:
        return Source(name, resolve(hub_id))
    except HubError as error:
        path = local_path(split_part(name)[0])
        if not (path.parent.name and path.parent.is_dir()):
            raise
        here = f"The folder {path.parent} on this machine holds no '{path.name}'."
        raise HubError(f"{error} {here}{_neighbour_hint(path)}") from None


def open_checkpoint(
    source: str | Source, *, base: Checkpoint | None = None, model: str | None = None
) -> Checkpoint:
    """Open a folder, a file, an index of shards or a Hub id without reading weights.

    Args:
        source: The checkpoint, or an adapter.
        base: The checkpoint that an adapter is applied to.
        model: open_clip's name of the architecture, if no configuration lies beside the weights.
    """
    source = find_source(source) if isinstance(source, str) else source
    opened = _open_source(source)
    is_of_clip_lora = is_clip_lora(opened.entries)
    if not is_of_clip_lora and not _is_adapter(opened.files[0]):
        return opened if model is None else with_architecture(opened, model)
    if base is None:
        raise CheckpointError(
            f"{source.name}: is a LoRA adapter, not a full model; make a checkpoint from it and its"
            f" base with `clipmerge merge BASE {source.name} --recipe wise-ft --set method.alpha=1"
            " --output DIR`"
        )
    if not is_of_clip_lora:
        return apply_adapter(base, opened)
    from clipmerge.checkpoint.state_dict import load_torch_file  # imports torch

    content, _ = load_torch_file(opened.files[0])
    return apply_clip_lora(base, opened, content)


def open_checkpoints(
    names: Sequence[str], *, missing: Missing = "error", model: str | None = None
) -> list[Checkpoint]:
    """Open a zero-shot checkpoint and its fine-tuned ones.

    A pair of which one is on the Hub and not in the cache is compared by its headers first, so that
    checkpoints that do not match are refused without a download.
    """
    sources = [find_source(name) for name in names]
    previews = [preview_checkpoint(source) for source in sources]
    if any(previews):
        base, *finetuned = _open_all(sources, previews, model)
        align_checkpoints(base, finetuned, missing=missing, mixed_dtypes=True)
    return _open_all(sources, [None] * len(sources), model)


def _open_all(
    sources: Sequence[Source], previews: Sequence[Checkpoint | None], model: str | None
) -> list[Checkpoint]:
    """Open a zero-shot checkpoint and its fine-tuned ones, unless they are previewed."""
    base = previews[0] or open_checkpoint(sources[0], model=model)
    finetuned = [
        preview or open_checkpoint(source, base=base, model=model)
        for source, preview in zip(sources[1:], previews[1:], strict=True)
    ]
    return [base, *finetuned]


def preview_checkpoint(source: Source) -> Checkpoint | None:
    """Describe a model on the Hub without its weights; ``None`` if it is here, in the cache, or no
    safetensors.

    Names, shapes and dtypes come from range requests, the configuration from its file.
    """
    snapshot = source.snapshot
    if snapshot is None or snapshot.note is not None:
        return None
    from clipmerge.hub.download import choose_weights, remote_metadata

    weights = choose_weights(snapshot.files, snapshot.hub_id)
    config = next((_CONFIGS[name] for name in sorted(weights) if name in _CONFIGS), None)
    files = tuple(Path(name) for name in sorted(weights) if name.endswith(".safetensors"))
    if config is None or not files or not snapshot.missing(weights):
        return None
    folder = snapshot.download([name for name in (config,) if name in snapshot.files])
    entries = {}
    for name, (dtype, shape) in remote_metadata(snapshot.hub_id, weights).items():
        if dtype not in DTYPES:
            kinds = ", ".join(sorted(FLOATS))
            raise CheckpointError(
                f"{snapshot.hub_id}, {name}: has dtype {dtype}; clipmerge merges {kinds}"
            )
        entries[name] = TensorEntry(Path(), dtype, shape, 0, math.prod(shape) * DTYPES[dtype][1])
    described = read_side_json(folder, config)
    refuse_quantised(source.name, entries, described)
    return Checkpoint(
        source.name, snapshot.revision, folder, files, entries, described, sharded=len(files) > 1
    )


def _is_adapter(file: Path) -> bool:
    """Whether a weight file is a peft adapter's, by the name given by peft."""
    return file.stem == Path(ADAPTER).stem


def _open_source(source: Source) -> Checkpoint:
    name, part = split_part(source.name)
    path = local_path(name)
    revision = None
    notes: tuple[Finding, ...] = ()
    if source.snapshot is not None:
        from clipmerge.hub.download import download_model

        path = download_model(source.snapshot)
        revision = source.snapshot.revision
        notes = (source.snapshot.note,) if source.snapshot.note else ()
    if path.is_dir():
        path, about_weights = _find_weights(source.name, path)
        notes += about_weights
    elif not path.is_file():
        raise CheckpointError(f"{source.name}: is neither a file nor a folder; give one of them")
    elif path.suffix == ".distcp":
        raise _no_weights_error(source.name, path.parent)
    is_index = path.name.endswith((".safetensors.index.json", ".bin.index.json"))
    if path.suffix in _OTHER_FILES and not is_index:
        raise CheckpointError(
            f"{source.name}: is no file of weights that is read; give its folder, {path.parent}, or"
            " a .safetensors or .pt file"
        )
    files: tuple[Path, ...] = (path,)
    lazy: dict[str, LazyTensor] = {}
    remember_state(path)
    if is_index:
        files, entries, lazy = _read_index(path)
    elif is_pickle(path):
        from clipmerge.checkpoint.state_dict import read_state_dict  # imports torch

        lazy, entries, about = read_state_dict(path, part)
        notes += tuple(about)
        part = None
    else:
        entries = read_header(path)
    return _build_checkpoint(source.name, files, entries, lazy, part, revision, notes, is_index)


def hub_id_of(source: str) -> HubId:
    """Read a source that is not on disk as a Hub id, or refuse it."""
    address, _ = split_part(source)
    hub_id = parse_hub_id(address)
    if hub_id is None:
        path = local_path(address)
        hint = _neighbour_hint(path)
        if page := _HUB_PAGE.match(address):
            hint = f" Did you mean '{page[1]}'?"
        raise CheckpointError(
            f"{source}:"
            f" {'is a link to nothing' if path.is_symlink() else 'no such folder or file'}, and not"
            " a Hub id; give a folder, a .safetensors or .pt file, org/name or"
            f" org/name@revision{f'.{hint}' if hint else ''}"
        )
    return hub_id


def _neighbour_hint(path: Path) -> str:
    """Suggest a file or folder beside a path that does not exist."""
    beside = itertools.islice(path.parent.glob("*"), _MAX_ENTRIES)
    hint = did_you_mean(path.name, [neighbour.name for neighbour in beside])
    return hint.replace("'", f"'{path.parent}/", 1) if path.parent.name else hint


def _find_weights(source: str, folder: Path) -> tuple[Path, tuple[Finding, ...]]:
    """The file of weights in a folder, or an index of shards, with notes about where it lies."""

    def present_of(*names: str) -> list[str]:
        return [name for name in names if (folder / name).exists()]

    model_files = present_of(WEIGHTS, INDEX) or present_of(*OPEN_CLIP_WEIGHTS)[:1]
    present = model_files + present_of(ADAPTER)
    if not present and any(folder.glob("*.safetensors")):
        others = shorten(sorted(file.name for file in folder.glob("*.safetensors")))
        raise CheckpointError(f"{source}: has no {WEIGHTS} but {others}; give the file you mean")
    present = present or present_of(*_PICKLES)
    inner, kind = (None, "") if present else _inner_clip(source, folder)
    if inner is not None:
        note = Finding.of("inner-folder", source=source, library=kind, folder=inner.name)
        path, notes = _find_weights(source, inner)
        return path, (note, *notes)
    if len(present) > 1:
        raise CheckpointError(
            f"{source}: holds both {' and '.join(present[:2])}, and only one of them can be meant; "
            "remove the other, or give the file you mean"
        )
    if not present:
        raise _no_weights_error(source, folder)
    return folder / present[0], ()


def _no_weights_error(source: str, folder: Path) -> CheckpointError:
    if pieces := _describe_pieces(folder):
        return CheckpointError(f"{source}: {pieces}")
    if others := sorted(file.name for file in folder.iterdir() if file.suffix in PICKLE_SUFFIXES):
        return CheckpointError(
            f"{source}: has no {WEIGHTS} but {shorten(others)}; give the file you mean"
        )
    patterns = (f"*/{WEIGHTS}", f"snapshots/*/{WEIGHTS}")  # the latter in the Hub's cache
    inner = sorted(str(file.parent) for pattern in patterns for file in folder.glob(pattern))
    inner = inner or sorted(
        str(file) for file in folder.glob("*/*") if file.suffix in PICKLE_SUFFIXES
    )
    what = "is it the folder that save_pretrained wrote?"
    if inner:
        what = f"give the one that you mean: {shorten(inner)}"
    elif any(file.suffix.lower() in (".jpg", ".jpeg", ".png") for file in folder.glob("*/*")):
        what = "it holds images, which are given as `data`"
    return CheckpointError(f"{source}: no {WEIGHTS} in this folder; {what}")


def _inner_clip(source: str, folder: Path) -> tuple[Path | None, str]:
    """The folder of the CLIP inside one of sentence-transformers or diffusers, and the library's
    name.
    """
    if (folder / "model_index.json").is_file():
        inner = [path for name in _DIFFUSERS if (path := folder / name / "config.json").is_file()]
        clips = [path.parent for path in inner if lies_in(folder, path.parent)]
        if len(clips) == 1:
            return clips[0], "diffusers"
        if clips:
            raise CheckpointError(
                f"{source}: is a folder of diffusers with {len(clips)} encoders; give the one that"
                f" you mean: {' or '.join(map(str, clips))}"
            )
    listed = []
    with contextlib.suppress(Unreadable):
        listed = read_json(folder / "modules.json")
    modules = (
        [module for module in listed if isinstance(module, dict)]
        if isinstance(listed, list)
        else []
    )
    for name in (str(module.get("path")) for module in modules):  # such as 0_CLIPModel
        if (
            is_plain_name(name)
            and (folder / name / "config.json").is_file()
            and lies_in(folder, folder / name)
        ):
            return folder / name, "sentence-transformers"
    return None, ""


def _describe_pieces(folder: Path) -> str | None:
    """Describe a training checkpoint that lies in pieces, with the command that puts them
    together.
    """
    is_step = any(folder.glob("*_model_states.pt"))
    parts = [
        parent
        for parent in (folder, *sorted(folder.glob("*/")))
        if (parent / ".metadata").is_file()
    ]
    if is_step or any(folder.glob("global_step*/*_model_states.pt")):
        root = folder.parent if is_step else folder
        kind = "DeepSpeed checkpoint"
        words = ["deepspeed.utils.zero_to_fp32", str(root), f"{root}-weights"]
    elif parts:
        kind = "checkpoint of torch.distributed.checkpoint (FSDP)"
        words = [
            "torch.distributed.checkpoint.format_utils",
            "dcp_to_torch",
            str(parts[0]),
            f"{parts[0]}.pt",
        ]
    else:
        return None
    command = shlex.join(["python", "-m", *words])
    return (
        f"is a {kind}, whose weights lie in pieces; put them together with `{command}`, and give"
        " the result"
    )


def _read_index(
    index: Path,
) -> tuple[tuple[Path, ...], dict[str, TensorEntry], dict[str, LazyTensor]]:
    """The shards that an index names, and their tensors."""
    with refusing(CheckpointError, f"{index}: cannot be read as JSON"):
        value = read_json(index, pairs=partial(unique_keys, index))
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map; it is not a safetensors index")
    for key, name in weight_map.items():
        if not is_plain_name(name):
            raise CheckpointError(
                f"{index}: '{key}' points outside its folder, to {name!r}; shards lie beside the"
                " index"
            )
    files = tuple(index.parent / name for name in dict.fromkeys(weight_map.values()))
    if missing := [file.name for file in files if not file.is_file()]:
        lacks = f"lacks {len(missing)} of its {len(files)} shards: {shorten(missing)}"
        raise CheckpointError(f"{index}: {lacks}; download or copy them too")
    entries: dict[str, TensorEntry] = {}
    lazy: dict[str, LazyTensor] = {}
    for file in files:
        remember_state(file)
        if index.name == _PICKLED_INDEX and is_pickle(file):
            from clipmerge.checkpoint.state_dict import read_state_dict

            mapped, stored, _ = read_state_dict(file)
            lazy |= mapped
        else:
            stored = read_header(file)
        entries.update(stored)
    file_names = {key: entry.file.name for key, entry in entries.items()}
    if wrong := [
        key for key in {**weight_map, **file_names} if weight_map.get(key) != file_names.get(key)
    ]:
        raise CheckpointError(
            f"{index}: {counted(len(wrong), 'key is', 'keys are')} not in the shards as it says:"
            f" {shorten(wrong)}; download or copy it again"
        )
    return files, entries, lazy


def _build_checkpoint(
    source: str,
    files: tuple[Path, ...],
    entries: dict[str, TensorEntry],
    lazy: dict[str, LazyTensor],
    part: str | None,
    revision: str | None,
    notes: tuple[Finding, ...],
    sharded: bool,
) -> Checkpoint:
    if not entries:
        raise CheckpointError(f"{files[0]}: holds no tensors")
    folder = files[0].parent
    if _is_adapter(files[0]):  # an adapter's own reader knows every tensor it may have
        keys = {key: key for key in entries}
        left_out = None
    else:
        with prefix_errors(files[0]):
            keys, left_out = unwrap(entries, part)
    if left_out is not None:
        notes += (Finding.of("unwrapped", file=str(files[0]), **left_out),)

    def viewed(keys: dict[str, str], config: Json | None) -> Checkpoint:
        """View some tensors of the files under other names."""
        chosen = {name: entries[key] for name, key in keys.items()}
        made = {name: lazy[key] for name, key in keys.items() if key in lazy}
        checkpoint = Checkpoint(source, revision, folder, files, chosen, config, sharded, notes)
        return DerivedCheckpoint.of(checkpoint, made) if made else checkpoint

    config = _config_beside(source, folder, keys, entries, part)
    refuse_quantised(source, keys, config)
    checkpoint = viewed(keys, config)
    if _is_adapter(files[0]):
        return checkpoint
    others = [name for name in text_encoders(entries) if part is not None and name != part]
    if part in text_encoders(entries):
        encoders = {name: viewed(unwrap(entries, name)[0], None) for name in others}
        checkpoint = replace(checkpoint, other_encoders=encoders)
    return form_weights(checkpoint)


def _config_beside(
    source: str, folder: Path, names: Iterable[str], keys: Iterable[str], part: str | None
) -> Json | None:
    """The configuration of the weights: the file of their layout, or a tower's section of it."""
    # folders on the Hub may hold both layouts and both configurations
    is_open_clip = layout_of(names) == "open-clip"
    config = read_side_json(folder, OPEN_CLIP_CONFIG if is_open_clip else "config.json")
    whole = config or (read_side_json(folder, "config.json") if is_open_clip else None) or {}
    model_type = whole.get("model_type")
    if model_type is None or is_known(str(model_type)) or "vision_config" not in whole:
        return config
    if any(key.startswith(("vision_model.", "text_model.")) for key in keys):  # not inside another
        return config
    towers = {
        name: section
        for name, section in whole.items()
        if isinstance(section, dict) and is_known(str(section.get("model_type")))
    }
    if part is not None:
        side = "vision" if any("patch_embedding" in name for name in names) else "text"
        return towers.get(f"{side}_config")
    if "vision_config" not in towers:
        raise CheckpointError(
            f"{source}: is a '{model_type}' model, without a tower of a CLIP or a SigLIP, so there"
            " is nothing in it to merge"
        )
    patches = (_PATCHES.fullmatch(key) for key in keys)
    tower = next((match[1].removesuffix(".") for match in patches if match), None)
    way = f"; give {source}#{tower} to merge that tower" if tower else ""
    raise CheckpointError(
        f"{source}: is a '{model_type}' model, whose vision tower is a"
        f" {towers['vision_config']['model_type']}{way}"
    )


def refuse_quantised(source: str, keys: Iterable[str], config: Json | None) -> None:
    """Refuse a quantised checkpoint, because averages of codes are meaningless."""
    keys = list(keys)
    settings = (config or {}).get("quantization_config")
    how = (
        settings.get("quant_method", "a method it does not name")
        if isinstance(settings, dict)
        else None
    )
    signs = [f"quantization_config in its config.json: {how or settings}"] if settings else []
    signs += [
        f"{mark}: {key}" for pattern, mark in _MARKS for key in keys if re.search(pattern, key)
    ]
    if signs:
        raise CheckpointError(
            f"{source}: is quantised ({signs[0]}), so its tensors are codes and cannot be averaged;"
            " give the checkpoint it was made from, or save it dequantised:"
            " model.dequantize().save_pretrained(FOLDER)"
        )
