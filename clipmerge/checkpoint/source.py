"""An opened checkpoint: the names, shapes and dtypes of its tensors, which are read on demand."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clipmerge.errors import CheckpointError
from clipmerge.families import Family
from clipmerge.files.hashes import FileState, require_unchanged, sha256_of
from clipmerge.files.safetensors import STORED, Array, TensorEntry
from clipmerge.types import Json, Names

if TYPE_CHECKING:
    from torch import Tensor


WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: OpenCLIP's names for its weights: the current one, which is written, and an older one.
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
OPEN_CLIP_CONFIG = "open_clip_config.json"
# Name that transformers gives to a row without one.
_NO_NAME = re.compile(r"LABEL_\d+")


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; weights are read when they are needed."""

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
    # the original, with its own configuration and side files, if this is converted to another
    # layout
    stored: Checkpoint | None = field(default=None, repr=False, compare=False)
    # open_clip's name of the architecture, if the user gave one
    architecture: str | None = None
    _latest: dict[str, Array] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def row_names(self) -> Names:
        """Class names in the order of the head's rows; empty if the configuration states none."""
        stated = self.config or {}
        # transformers' field, or timm's
        names = stated.get("id2label") or stated.get("label_names")
        if isinstance(names, dict):  # JSON sorts "10" before "2"
            names = [names.get(str(row)) for row in range(len(names))]
        if not isinstance(names, list) or None in names:
            return ()
        known = tuple(map(str, names))
        return () if all(map(_NO_NAME.fullmatch, known)) else known

    def array(self, key: str, start: int = 0, stop: int | None = None) -> Array:
        """Read elements ``start`` to ``stop`` of a tensor, 1-D; bfloat16 as its bits (uint16).

        Do not write to the array: all readers share its memory. The file of the last tensor stays
        mapped.
        """
        values = self._latest.get(key)
        if values is None:  # several threads may get here, each with its own key
            self._latest.clear()  # first, so that memory never holds two
            form = self.entries[key].form
            values = self._map(key) if form is None else form()
            self._latest[key] = values
        run = values[start:stop]
        # a header that is not padded leaves tensors unaligned
        return run if run.flags.aligned else run.copy()

    def tensor(self, key: str) -> Tensor:
        """Read a tensor in its own shape."""
        import torch

        view = torch.from_numpy(self.array(key))
        if view.dtype == torch.uint16:
            view = view.view(torch.bfloat16)
        return view.view(self.entries[key].shape)

    def _map(self, key: str) -> Array:
        """Map one tensor into memory; the mapping ends with the last view of it."""
        entry = self.entries[key]
        dtype = STORED[entry.dtype]
        if not entry.size:
            return np.empty(0, dtype)
        require_unchanged({entry.file: self.states[entry.file]})
        # torch wants memory that can be written to; in mode "c" the file never changes
        return np.asarray(np.memmap(entry.file, dtype, "c", entry.begin, entry.size))

    def provenance(self, *, hashed: bool = True) -> Json:
        """Describe where the weights come from: ``{source, revision, files: {name: sha256}}``.

        Without ``hashed``, each sha256 is ``None``.
        """
        require_unchanged(self.states)
        files = self._hashes if hashed else dict.fromkeys(file.name for file in self.files)
        require_unchanged(self.states)
        return {"source": self.source, "revision": self.revision, "files": files}

    @cached_property
    def _hashes(self) -> dict[str, str]:
        """The sha256 of each file, by name."""
        return {file.name: sha256_of(file) for file in self.files}


def stored_array(values: Tensor) -> Array:
    """Convert a tensor to the form that `Checkpoint.array` returns."""
    import torch

    flat = values.detach().flatten()
    if flat.dtype == torch.bfloat16:
        bits: Array = flat.view(torch.int16).numpy()
        return bits.view(np.uint16)
    return np.asarray(flat.numpy())


@contextlib.contextmanager
def prefix_errors(source: object) -> Iterator[None]:
    """Put the name of a checkpoint or a file before the errors of a block."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
