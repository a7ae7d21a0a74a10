"""Open a checkpoint: a folder, a file, a sharded index or a Hub id, with tensors read on demand."""

from __future__ import annotations

import hashlib
import json
import mmap
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipmerge.checkpoint.header import DTYPES, STORED, TensorEntry, read_header, refuse_pickle, unique_keys
from clipmerge.conversion import layout_of
from clipmerge.errors import CheckpointError, shorten

if TYPE_CHECKING:
    from torch import Tensor

Array = np.ndarray[Any, Any]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: OpenCLIP's name for its weights, the one that is written; and an older one.
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
OPEN_CLIP_CONFIG = "open_clip_config.json"
ADAPTER = "adapter_model.safetensors"
# bytes read and hashed at a time
_PIECE = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, opened: names, shapes and dtypes are known, no weight has been read.

    Attributes:
        source: What the user wrote.
        revision: Commit sha for a Hub id, else ``None``.
        folder: Folder with the side files (config, processor, tokenizer).
        files: Weight files; several when sharded.
        entries: Key in the file to where the tensor lies.
        config: The parsed ``config.json``, or ``open_clip_config.json`` for weights in OpenCLIP's layout; ``None``
            when a bare file stands without one.
        note: Something the user should know about where the weights came from, such as an offline copy.
    """

    source: str
    revision: str | None
    folder: Path
    files: tuple[Path, ...]
    entries: dict[str, TensorEntry]
    config: dict[str, Any] | None
    sharded: bool = False
    note: str | None = None
    _maps: dict[Path, mmap.mmap] = field(default_factory=dict, repr=False, compare=False)

    def array(self, key: str, start: int = 0, stop: int | None = None) -> Array:
        """Map a run of one tensor's elements as they are stored, without copying and without torch.

        Args:
            key: Key in the file.
            start: First element, in memory order.
            stop: One past the last element; ``None`` for the end.

        Returns:
            1-D; bfloat16 as its bits, uint16. It is a view of the file, and read-only.
        """
        entry = self.entries[key]
        dtype = np.dtype(STORED[entry.dtype])
        stop = entry.size if stop is None else stop
        if stop <= start:
            return np.empty(0, dtype)
        offset = entry.begin + start * dtype.itemsize
        view = np.frombuffer(self._map(entry.file), dtype, count=stop - start, offset=offset)
        # a header that is not padded leaves tensors unaligned
        return view if view.flags.aligned else view.copy()

    def tensor(self, key: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Map one tensor, or a run of its elements, without copying.

        Args:
            key: Key in the file.
            start: First element, in memory order.
            stop: One past the last element; ``None`` for the end.

        Returns:
            The tensor in its own shape, or 1-D when a run was asked for. It is a view of the file: never write
            to it.
        """
        import torch

        entry = self.entries[key]
        with warnings.catch_warnings():  # the map is read-only, and so is every use of the view
            warnings.filterwarnings("ignore", message=".*not writable.*")
            view = torch.from_numpy(self.array(key, start, stop)).view(getattr(torch, DTYPES[entry.dtype][0]))
        return view.view(entry.shape) if start == 0 and stop is None else view

    def release(self, key: str) -> None:
        """Let go of a tensor's mapped pages; whoever reads it again gets them back from the system.

        Args:
            key: Key in the file.
        """
        entry = self.entries[key]
        begin = -(-entry.begin // mmap.PAGESIZE) * mmap.PAGESIZE
        length = entry.end // mmap.PAGESIZE * mmap.PAGESIZE - begin
        if length > 0 and entry.file in self._maps and hasattr(mmap, "MADV_DONTNEED"):  # absent on Windows
            self._maps[entry.file].madvise(mmap.MADV_DONTNEED, begin, length)

    def _map(self, file: Path) -> mmap.mmap:
        if file not in self._maps:
            with file.open("rb") as handle:
                self._maps[file] = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[file]

    @cached_property
    def hashes(self) -> dict[str, str]:
        """Name of each weight file to its sha256; read once, the files of a sharded checkpoint side by side."""
        with ThreadPoolExecutor(max_workers=2) as pool:
            return dict(zip((file.name for file in self.files), pool.map(sha256_of, self.files), strict=True))

    def provenance(self) -> dict[str, Any]:
        """Say what this checkpoint is, for records: ``{source, revision, files: {name: sha256}}``."""
        return {"source": self.source, "revision": self.revision, "files": self.hashes}

    @property
    def bytes(self) -> int:
        """Size of the weights."""
        return sum(entry.end - entry.begin for entry in self.entries.values())


def is_adapter_file(file: Path) -> bool:
    """Whether a weight file is a peft adapter's, by the name that peft gives it."""
    return file.stem == Path(ADAPTER).stem


def sha256_of(path: Path) -> str:
    """Hash one file, through a buffer that stays in the processor's cache: measured faster than its mapped pages.

    Returns:
        Hex digest.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_PIECE))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def open_checkpoint(source: str, *, base: Checkpoint | None = None) -> Checkpoint:
    """Open a checkpoint and check its headers; no weight is read.

    Args:
        source: A folder, a ``.safetensors`` file, a ``.safetensors.index.json``, ``org/name``,
            ``org/name@revision`` or ``hf://org/name@revision``. What exists on disk wins over a Hub id.
        base: What a peft adapter is put over; without it an adapter is refused.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: If there is nothing there, or it cannot be read safely.
        HubError: If the Hub refuses or cannot be reached.
    """
    if not source.strip():
        raise CheckpointError("an empty name is no checkpoint; is a variable of your shell unset?")
    opened = _open(source)
    if not is_adapter_file(opened.files[0]):
        return opened
    if base is None:
        raise CheckpointError(
            f"{source}: is a peft adapter, which changes a base model and is none itself; make a full checkpoint "
            f"of both with `clipmerge merge BASE {source} --recipe wise-ft --set method.alpha=1 --output DIR`"
        )
    from clipmerge.checkpoint.adapter import adapt

    return adapt(base, opened)


def _open(source: str) -> Checkpoint:
    path = Path(source).expanduser()
    if path.is_dir():
        return _open_folder(source, path)
    if path.is_file():
        return _open_file(source, path)
    from clipmerge.hub import fetch, parse_hub_id

    hub_id = parse_hub_id(source)
    if hub_id is None or source.startswith((".", "/", "~")) or path.suffix in (".safetensors", ".json"):
        raise CheckpointError(
            f"{source}: no such folder or file, and not a Hub id; "
            "give a folder, a .safetensors file, org/name or org/name@revision"
        )
    repo = fetch(hub_id)
    return _open_folder(source, repo.folder, revision=repo.revision, note=repo.note)


def _open_folder(source: str, folder: Path, *, revision: str | None = None, note: str | None = None) -> Checkpoint:
    weights, index, adapter = folder / WEIGHTS, folder / INDEX, folder / ADAPTER
    if adapter.exists() and (weights.exists() or index.exists()):
        raise CheckpointError(
            f"{source}: holds both a whole model and a peft adapter ({ADAPTER}); give the file you mean"
        )
    if weights.exists() and index.exists():
        raise CheckpointError(
            f"{source}: holds both {WEIGHTS} and {INDEX}, and one of them is stale; "
            "remove it, or give the file you mean"
        )
    if index.exists():
        return _open_index(source, index, revision=revision, note=note)
    if weights.exists():
        return _open_single(source, weights, revision=revision, note=note)
    for name in OPEN_CLIP_WEIGHTS:
        if (folder / name).exists():
            return _open_single(source, folder / name, revision=revision, note=note)
    if adapter.exists():
        return _open_single(source, adapter, revision=revision, note=note)
    raise _no_weights(source, folder)


def _no_weights(source: str, folder: Path) -> CheckpointError:
    others = sorted(folder.glob("*.safetensors"))
    if others:
        return CheckpointError(
            f"{source}: has no {WEIGHTS} but {shorten(f.name for f in others)}; give the file you mean"
        )
    for suffix in ("*.bin", "*.pt", "*.pth", "*.ckpt"):
        for pickle in sorted(folder.glob(suffix)):
            try:
                refuse_pickle(pickle)
            except CheckpointError as error:
                return error
    return CheckpointError(f"{source}: no {WEIGHTS} in this folder; is it the folder that save_pretrained wrote?")


def _open_file(source: str, path: Path) -> Checkpoint:
    if path.name.endswith(".safetensors.index.json"):
        return _open_index(source, path)
    return _open_single(source, path)


def _open_single(source: str, file: Path, *, revision: str | None = None, note: str | None = None) -> Checkpoint:
    entries, _ = read_header(file)
    if not entries:
        raise CheckpointError(f"{file}: holds no tensors")
    return Checkpoint(source, revision, file.parent, (file,), entries, _config(file.parent, entries), note=note)


def _open_index(source: str, index: Path, *, revision: str | None = None, note: str | None = None) -> Checkpoint:
    weight_map = _weight_map(index)
    files = tuple(index.parent / name for name in dict.fromkeys(weight_map.values()))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(f"{index}: {len(missing)} of {len(files)} shards are missing: {shorten(missing)}")
    entries: dict[str, TensorEntry] = {}
    for file in files:
        found, _ = read_header(file)
        twice = found.keys() & entries.keys()
        if twice:
            raise CheckpointError(f"{index}: key '{min(twice)}' stands in two shards, the second is {file.name}")
        entries.update(found)
    _check_index(index, weight_map, entries)
    return Checkpoint(
        source, revision, index.parent, files, entries, _config(index.parent, entries), sharded=True, note=note
    )


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = _read_json(index, unique=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map; it is not a safetensors index")
    for key, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or name in ("", ".", ".."):
            raise CheckpointError(
                f"{index}: '{key}' points outside its folder, to {name!r}; shards lie beside the index"
            )
    return weight_map


def _check_index(index: Path, weight_map: dict[str, str], entries: dict[str, TensorEntry]) -> None:
    absent = [key for key, name in weight_map.items() if key not in entries or entries[key].file.name != name]
    if absent:
        raise CheckpointError(f"{index}: {len(absent)} keys are not in the shard it names: {shorten(absent)}")
    extra = [key for key in entries if key not in weight_map]
    if extra:
        raise CheckpointError(f"{index}: {len(extra)} keys of the shards are not in the index: {shorten(extra)}")


def _config(folder: Path, keys: Iterable[str]) -> dict[str, Any] | None:
    """What describes the weights: folders on the Hub may hold both layouts and both configurations."""
    path = folder / (OPEN_CLIP_CONFIG if layout_of(keys) == "open-clip" else "config.json")
    return _read_json(path) if path.is_file() else None


def _read_json(path: Path, *, unique: bool = False) -> dict[str, Any]:
    hook = partial(unique_keys, path) if unique else None
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=hook)
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: is not a JSON object")
    return value
