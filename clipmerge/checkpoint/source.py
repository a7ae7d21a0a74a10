"""A checkpoint: names, shapes and dtypes at once, tensors read on demand."""

from __future__ import annotations

import contextlib
import mmap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipmerge.errors import CheckpointError
from clipmerge.families import Family
from clipmerge.files.hashes import FileState, changed_error, remembered_sha256, require_unchanged
from clipmerge.files.safetensors import STORED, Array, TensorEntry
from clipmerge.types import Json, Names

if TYPE_CHECKING:
    from torch import Tensor


WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: OpenCLIP's names for its weights: the current one, which is written, and an older one.
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
OPEN_CLIP_CONFIG = "open_clip_config.json"


@dataclass(frozen=True)
class Checkpoint:
    """One opened checkpoint: names, shapes and dtypes are known, weights have not been read."""

    source: str  # the source as the user wrote it
    revision: str | None  # commit sha for a Hub id, else ``None``
    folder: Path  # folder with the side files (config, processor, tokenizer)
    files: tuple[Path, ...]  # weight files; several if sharded
    states: dict[Path, FileState] = field(repr=False, compare=False)  # when they were opened
    entries: dict[str, TensorEntry]  # place of each tensor, by key in the file
    # the parsed ``config.json``, or ``open_clip_config.json`` for weights in OpenCLIP's layout;
    # ``None`` for a bare file without one
    config: Json | None
    family: Family
    sharded: bool = False
    notes: Names = ()  # for the user, about the origin of the weights
    has_built_head: bool = False  # whether its head was built from class prompts
    is_adapted: bool = False  # whether it is a base with an adapter
    # the checkpoint as it is stored, with its own configuration and side files, if this one has
    # another one's layout
    stored: Checkpoint | None = field(default=None, repr=False, compare=False)
    # open_clip's name of the architecture, where it was named for weights without a configuration
    architecture: str | None = None
    _maps: dict[Path, mmap.mmap] = field(default_factory=dict, repr=False, compare=False)
    _hashes: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def array(self, key: str, start: int = 0, stop: int | None = None) -> Array:
        """Read a run of one tensor's elements in memory order, without torch: 1-D, bfloat16 as its
        bits (uint16).

        The values may be views of the file: never write to them.
        """
        entry = self.entries[key]
        dtype = np.dtype(STORED[entry.dtype])
        stop = entry.size if stop is None else stop
        if stop <= start:
            return np.empty(0, dtype)
        offset = entry.begin + start * dtype.itemsize
        mapped = self._map(entry.file)
        count = stop - start
        view = np.frombuffer(mapped, dtype, count, offset)
        # tensors are unaligned if the header is not padded
        return view if view.flags.aligned else view.copy()

    def tensor(self, key: str, start: int = 0, stop: int | None = None) -> Tensor:
        """View `array` as a torch tensor: in the tensor's own shape, or 1-D for a run of its
        elements.
        """
        torch = _torch_for_views()
        values = self.array(key, start, stop)
        view: Tensor = torch.from_numpy(values)
        if view.dtype == torch.uint16:
            view = view.view(torch.bfloat16)
        if start == 0 and stop is None:
            return view.view(self.entries[key].shape)
        return view

    def release(self, key: str) -> None:
        """Release a tensor's mapped pages; the system maps them again if the tensor is read
        again.
        """
        entry = self.entries[key]
        page = mmap.PAGESIZE
        begin = -(-entry.begin // page) * page
        end = entry.end // page * page
        length = end - begin
        mapped = self._maps.get(entry.file)
        # absent on Windows
        if mapped is not None and length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED, begin, length)

    def _map(self, file: Path) -> mmap.mmap:
        mapped = self._maps.get(file)
        if mapped is None:
            try:
                with file.open("rb") as handle:
                    mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:  # ValueError: it is now empty
                require_unchanged(self.states)
                raise CheckpointError(f"{file}: cannot be read any more ({error})") from None
            require_unchanged(self.states)
            self._maps[file] = mapped
        if mapped.size() < len(mapped):  # reading it would end the process by a fault
            raise changed_error(file)
        return mapped

    def provenance(self, *, hashed: bool = True) -> Json:
        """Describe this checkpoint for records: ``{source, revision, files: {name: sha256}}``, each
        ``None`` if unhashed. A file is hashed once.
        """
        require_unchanged(self.states)
        for file in self.files if hashed else ():
            if file.name in self._hashes:
                continue
            try:
                self._hashes[file.name] = remembered_sha256(file)
            except (OSError, ValueError) as error:
                # ValueError: shorter than when it was opened
                require_unchanged(self.states)
                raise CheckpointError(f"{file}: cannot be read any more ({error})") from None
        require_unchanged(self.states)
        files = {file.name: self._hashes.get(file.name) for file in self.files}
        return {"source": self.source, "revision": self.revision, "files": files}


@contextlib.contextmanager
def prefix_errors(source: object) -> Iterator[None]:
    """Put the name of a checkpoint or a file before what is wrong with it."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None


@cache
def _torch_for_views() -> Any:
    """Import torch and silently trigger its once-per-process warning that a view of an array is
    read-only.

    The maps are read-only, and so is every use of the views. Warning filters must not be changed in
    threads.
    """
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        torch.from_numpy(np.frombuffer(bytes(1), np.uint8))
    return torch
