"""Read and write the headers of safetensors files, and check that values are finite.

The library checks a header but does not return offsets, which are needed to map a tensor. Its
errors do not distinguish a Git-LFS pointer or a pickle from a damaged file, although the remedies
differ.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clipmerge.errors import CheckpointError
from clipmerge.types import Json, Shape

#: A tensor's values in numpy; bfloat16 as its bits.
Array = np.ndarray[Any, Any]
#: torch's name of each safetensors dtype.
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "BF16": "bfloat16",
    "F16": "float16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
#: safetensors dtype by torch dtype name
SAFETENSORS_NAME = {torch_name: name for name, torch_name in DTYPES.items()}
FLOATS = frozenset({"F64", "F32", "BF16", "F16"})
#: numpy dtype of the stored bytes by safetensors dtype; numpy has no bfloat16, so its bits are kept
STORED = DTYPES | {"BF16": "uint16"}

_LFS_POINTER = b"version https://git-lfs"
#: Suffixes of PyTorch files.
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class TensorEntry:
    """Dtype, shape and place of one tensor in a file; or the function that computes it."""

    file: Path
    dtype: str  # safetensors dtype, such as ``F32``
    shape: Shape
    begin: int = 0  # first byte, counted from the start of the file
    # computes the elements, 1-D, if they are not stored as they are
    form: Callable[[], Array] | None = field(default=None, repr=False, compare=False)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether the values are floats, which are merged; integers and booleans are copied."""
        return self.dtype in FLOATS


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Read the entries of all tensors in a safetensors file, by key.

    The file begins with the length of the header in 8 bytes and the header in JSON.
    """
    from safetensors import SafetensorError, safe_open

    try:
        # also checks that the tensors fill the file without gaps
        with safe_open(path, framework="numpy"), path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except SafetensorError as error:
        raise _header_error(path, error) from None
    header.pop("__metadata__", None)
    data = 8 + length
    entries = {}
    for name, described in header.items():
        dtype = described["dtype"]
        if dtype not in DTYPES:
            raise CheckpointError(
                f"{path}: {name} has dtype {dtype}; clipmerge merges {', '.join(sorted(FLOATS))}."
                " Dequantise the checkpoint first"
            )
        shape = tuple(described["shape"])
        begin, _ = described["data_offsets"]
        entries[name] = TensorEntry(path, dtype, shape, data + begin)
    return entries


def _header_error(path: Path, error: Exception) -> CheckpointError:
    """Make the error for a file that safetensors cannot read."""
    with path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
    if start == _LFS_POINTER:
        return CheckpointError(
            f"{path}: is a Git-LFS pointer, not the weights; run `git lfs pull` in its"
            " repository, or give the Hub id instead of the clone"
        )
    if is_pickle(path):
        return CheckpointError(f"{path}: is a pickle instead of safetensors; rename it to .pt")
    reason = str(error).removeprefix("Error while deserializing header: ")
    return CheckpointError(
        f"{path}: is truncated, damaged or not a safetensors file ({reason}); download or copy"
        " it again"
    )


def is_pickle(path: Path) -> bool:
    """Whether a file is one of PyTorch's, by its first bytes."""
    with path.open("rb") as file:
        start = file.read(9)
    # 0x80 0x02 followed by zeros may be the length of a header
    return start.startswith(_PICKLE_STARTS) and not start.endswith(b"{")


def byte_size(dtype: str, shape: Shape) -> int:
    """Compute the size in bytes of a tensor of this safetensors dtype and shape."""
    return math.prod(shape) * np.dtype(STORED[dtype]).itemsize


def header_bytes(tensors: Mapping[str, tuple[str, Shape]]) -> bytes:
    """Make the header of a file with tensors of these dtypes and shapes, in this order."""
    header: Json = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, (dtype, shape) in tensors.items():
        end = begin + byte_size(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def is_finite(values: Any) -> bool:
    """Whether no entry of a numpy array or a tensor is NaN or Inf."""
    with np.errstate(all="ignore"):
        # A sum is the cheapest pass: NaN or Inf makes it NaN or Inf. A sum of finite entries may
        # overflow, so then each entry is checked: only NaN and Inf minus themselves are not zero.
        if math.isfinite(values.sum()):
            return True
        return bool((values - values == 0).all())


def require_finite(values: Any, name: str, source: str) -> None:
    """Raise an error if a tensor has NaN or Inf, with its name and its checkpoint."""
    if not is_finite(values):
        kind = "NaN" if bool((values != values).any()) else "Inf"
        raise CheckpointError(
            f"{source}: tensor {name} holds {kind}; the checkpoint is broken, merge an earlier one"
        )
