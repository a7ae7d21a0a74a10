"""Read, check and write the header of a safetensors file, without touching the weights.

The safetensors library checks the header. A Git-LFS pointer and a pickle, which it cannot tell
apart, are recognised before that: a user needs to know which one it is, and what to do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clipmerge.errors import CheckpointError
from clipmerge.files.limits import MAX_DIMENSIONS, MAX_HEADER_BYTES, MAX_NAME_LENGTH, MAX_TENSORS
from clipmerge.files.reading import open_regular, parse_json
from clipmerge.types import Json, Shape

#: A tensor's values in numpy; bfloat16 as its bits.
Array = np.ndarray[Any, Any]
#: (torch dtype name, bytes per element) by safetensors dtype
DTYPES: dict[str, tuple[str, int]] = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "BF16": ("bfloat16", 2),
    "F16": ("float16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
#: safetensors dtype by torch dtype name
SAFETENSORS_NAME = {torch_name: name for name, (torch_name, _) in DTYPES.items()}
FLOATS = frozenset({"F64", "F32", "BF16", "F16"})
#: numpy dtype of the stored bytes by safetensors dtype; numpy has no bfloat16, so its bits are kept
STORED: dict[str, str] = {
    name: {"BF16": "uint16"}.get(name, torch_name) for name, (torch_name, _) in DTYPES.items()
}

_LFS_POINTER = b"version https://git-lfs"
#: Suffixes of PyTorch files.
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class TensorEntry:
    """Type and place of one tensor."""

    file: Path
    dtype: str  # safetensors dtype, such as ``F32``
    shape: Shape
    begin: int  # first byte, counted from the start of the file
    end: int  # one past the last byte

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether the tensor is merged (others are copied)."""
        return self.dtype in FLOATS


def is_pickle(path: Path) -> bool:
    """Whether a file is a PyTorch file, by its first bytes, or by its suffix if they are not
    conclusive.
    """
    try:
        with open_regular(path) as file:
            start = file.read(len(_LFS_POINTER))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    # as the length of a header, the first bytes of both kinds of pickle are an absurd number; but
    # 0x80 0x02 followed by zeros is a header of 640 bytes
    is_header = int.from_bytes(start[:8], "little") <= MAX_HEADER_BYTES and start[8:9] == b"{"
    if is_header or start == _LFS_POINTER:
        return False
    return path.suffix in PICKLE_SUFFIXES or start.startswith(_PICKLE_STARTS)


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Read the header of a safetensors file: its length in 8 bytes, little-endian, JSON, data."""
    from safetensors import SafetensorError, safe_open

    try:
        if is_pickle(path):
            raise CheckpointError(
                f"{path}: is a pickle instead of safetensors; give the file itself, or remove it"
            )
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            raw = file.read(min(length, MAX_HEADER_BYTES))
        if raw.startswith(_LFS_POINTER[8:]):
            raise CheckpointError(
                f"{path}: is a Git-LFS pointer, not the weights; run `git lfs pull` in its"
                " repository, or give the Hub id instead of the clone"
            )
        if not raw or length > MAX_HEADER_BYTES:
            size = path.stat().st_size
            raise CheckpointError(
                f"{path}: is not a safetensors file ({size} bytes, no valid header); download or"
                " copy it again"
            )
        # checks that the tensors fill the file, one after another
        with safe_open(path, framework="numpy"):
            header = parse_json(raw.decode("utf-8"), pairs=partial(unique_keys, path))
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise CheckpointError(
            f"{path}: is truncated or damaged ({reason}); download or copy it again"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: its header cannot be read ({error})") from None
    header.pop("__metadata__", None)
    check_names(path, header)
    entries = {}
    for name, described in header.items():
        dtype, shape, (begin, end) = (
            described["dtype"],
            tuple(described["shape"]),
            described["data_offsets"],
        )
        if dtype not in DTYPES or len(shape) > MAX_DIMENSIONS:
            raise CheckpointError(
                f"{path}: {name} has dtype {dtype} and {len(shape)} dimensions; clipmerge merges"
                f" {', '.join(sorted(FLOATS))} of at most {MAX_DIMENSIONS}. Dequantise the"
                " checkpoint first"
            )
        entries[name] = TensorEntry(path, dtype, shape, 8 + length + begin, 8 + length + end)
    return entries


def check_names(path: Path, names: Collection[str]) -> None:
    """Refuse more tensors or longer names than any CLIP has, because both cost time and memory."""
    if len(names) > MAX_TENSORS:
        raise CheckpointError(
            f"{path}: holds {len(names)} tensors, more than {MAX_TENSORS}; it is not a CLIP"
        )
    if any(len(name) > MAX_NAME_LENGTH for name in names):
        raise CheckpointError(
            f"{path}: a tensor's name has more than {MAX_NAME_LENGTH} characters; the file is"
            " damaged"
        )


def header_bytes(
    tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str]
) -> bytes:
    """Make the header of a file whose tensors follow one another in the given order."""
    header: Json = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + math.prod(shape) * DTYPES[dtype][1]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def unique_keys(path: Path, pairs: Iterable[tuple[str, Any]]) -> Json:
    """Build a JSON object and refuse duplicate keys; an ``object_pairs_hook`` of ``json.loads``."""
    result: Json = {}
    for key, value in pairs:
        if key in result:
            raise CheckpointError(
                f"{path}: key '{key}' occurs twice; the file is damaged, save it again"
            )
        result[key] = value
    return result
