"""Read files of ``torch.save`` (``.bin``, ``.pt``): tensors are memory-mapped, no code runs.

``torch.load(weights_only=True)`` builds tensors and plain containers, and fails on everything else.
Other content of a file (an optimiser, an epoch) is ignored.
"""

from __future__ import annotations

import argparse
import re
import warnings
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipmerge.checkpoint.source import stored_array
from clipmerge.errors import CheckpointError, shorten
from clipmerge.files.safetensors import FLOATS, SAFETENSORS_NAME, TensorEntry

# Keys under which training scripts store the model's weights, in order of preference.
_INSIDE = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
# Words in torch's message about a file that contains code.
_CODE = ("TorchScript", "GLOBAL", "Unsupported class")
# Classes that many training runs save beside weights. They hold values and run no code. The same
# function of numpy has two names, because numpy moved it once.
_SCALAR = np.float64(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    type(np.dtype("float64")),
    type(np.dtype("float32")),
    type(np.dtype("int64")),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
]


def read_state_dict(
    file: Path, part: str | None, notes: list[str]
) -> tuple[dict[str, TensorEntry], str | None]:
    """Map the weights in a file that ``torch.save`` wrote, and return their entries by key.

    ``part`` names a dictionary in the file, a prefix of keys, or both. The prefix is returned, too,
    because the caller selects the keys. If the file has more weights, a note names them.
    """
    loaded = _load_torch_file(file)
    while part and isinstance(loaded, Mapping):
        name = part if part in loaded else part.partition(".")[0]
        if name not in loaded:
            break  # the rest is a prefix of keys
        loaded, part = loaded[name], part[len(name) + 1 :]
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{file}: holds a {type(loaded).__name__}, not a state_dict")
    weights = {
        str(name): value
        for name, value in loaded.items()
        if isinstance(value, Mapping) and any(isinstance(each, Tensor) for each in value.values())
    }
    known = [name for name in _INSIDE if name in weights]
    if known:
        loaded = weights.pop(known[0])
        if others := list(weights):
            notes.append(
                f"{file}: the weights under {known[0]} are used; there are others under"
                f" {shorten(others)} (use {file.name}#{others[0]} for these)"
            )
    entries = {}
    for key, value in loaded.items():
        if isinstance(value, Tensor):
            entries[str(key)] = _make_entry(file, str(key), value)
    if not entries:
        raise CheckpointError(
            f"{file}: holds no weights under a known name ({', '.join(_INSIDE)}), but"
            f" {shorten(map(str, loaded)) or 'nothing'}; give their key (FILE#KEY), or"
            " save the state_dict alone: torch.save(model.state_dict(), FILE)"
        )
    return entries, part or None


def _load_torch_file(file: Path) -> Any:
    """Load a file of PyTorch, memory-mapped if torch 1.6 or newer wrote it."""
    is_zip = zipfile.is_zipfile(file)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
            warnings.simplefilter("ignore")  # about TorchScript, which is refused below
            return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # a damaged pickle can raise anything
        _, _, text = " ".join(str(error).split()).rpartition("WeightsUnpickler error: ")
        if any(words in text for words in _CODE):
            found = re.search(r"GLOBAL (\S+)", text)
            what = f" ({found[1]})" if found else ""
            raise CheckpointError(
                f"{file}: holds code{what} besides tensors, which loading would run, so it is not"
                " opened; if you trust it, load it where it was trained, and save the weights"
                " alone: safetensors.torch.save_file(model.state_dict(), FILE)"
            ) from None
        raise CheckpointError(
            f"{file}: is damaged or not a PyTorch file ({text[:80] or type(error).__name__});"
            " download or copy it again"
        ) from None


def _make_entry(file: Path, key: str, tensor: Tensor) -> TensorEntry:
    """Describe a loaded tensor as an entry. Raise an error if it is sparse or quantised."""
    name = str(tensor.dtype).removeprefix("torch.")
    dtype = SAFETENSORS_NAME.get(name)
    if dtype is None or tensor.layout != torch.strided:
        raise CheckpointError(
            f"{file}: {key} is a {tensor.layout} tensor of {name}; clipmerge merges plain tensors"
            f" of {', '.join(sorted(FLOATS))}. Dequantise the checkpoint first"
        )
    form = partial(stored_array, tensor)
    return TensorEntry(file, dtype, tuple(tensor.shape), form=form)
