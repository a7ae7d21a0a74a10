"""Write a safetensors file; while one block is computed, others are hashed and written."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clipmerge.files.safetensors import DTYPES, STORED, Array, byte_size, header_bytes
from clipmerge.types import Shape

if TYPE_CHECKING:
    from torch import Tensor

#: Elements computed at a time; so few that a core keeps all steps in its cache.
RUN = 1 << 15
BLOCK = 4 << 20  # bytes of a block, a multiple of every dtype's width
BLOCKS = 6  # number of blocks in memory
# The order of safetensors' own save_file: widest dtype first, then by name.
_DTYPE_ORDER = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")


@dataclass(frozen=True)
class OutputTensor:
    """A tensor of the output, computed on demand.

    Attributes:
        key: Key in the output file.
        name: Canonical parameter name.
        dtype: safetensors dtype.
        shape: Lengths of its dimensions.
        fill: Computes a run of elements. Its arguments are the index of the first element, a 1-D
            array to fill (bfloat16 as its bits), and the result of ``change``.
        change: Computes the change of the whole tensor, 1-D, for a mask or a combination; ``None``
            if neither needs it.
    """

    key: str
    name: str
    dtype: str
    shape: Shape
    fill: Callable[[int, Array, Array | None], None]
    change: Callable[[], Array] | None = None

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return byte_size(self.dtype, self.shape)


def tensors_in_memory(tensors: Sequence[OutputTensor]) -> Iterator[Tensor]:
    """Compute tensors as torch tensors, without a file, one after another."""
    import torch

    for tensor, change in _with_changes(tensors):
        size = math.prod(tensor.shape)
        stored = np.empty(size, STORED[tensor.dtype])
        for start in range(0, size, RUN):
            tensor.fill(start, stored[start : start + RUN], change)
        dtype = getattr(torch, DTYPES[tensor.dtype])
        yield torch.from_numpy(stored).view(dtype).view(tensor.shape)


def write_safetensors(
    path: Path, tensors: Sequence[OutputTensor], advance: Callable[[int], None]
) -> str:
    """Write tensors to a new safetensors file, as the library would.

    Args:
        path: The file, which must not exist.
        tensors: Its tensors.
        advance: Called after every block with its number of bytes.

    Returns:
        Its sha256.
    """
    tensors = sorted(tensors, key=lambda tensor: (_DTYPE_ORDER.index(tensor.dtype), tensor.key))
    header = header_bytes({tensor.key: (tensor.dtype, tensor.shape) for tensor in tensors})
    digest = hashlib.sha256(header)
    jobs = deque[Future[object]]()
    with path.open("xb") as file, ThreadPoolExecutor(1) as writer, ThreadPoolExecutor(1) as hasher:
        file.write(header)
        for block in _compute_blocks(tensors):
            jobs.append(writer.submit(file.write, block))
            jobs.append(hasher.submit(digest.update, block))
            while len(jobs) > 2 * (BLOCKS - 1):  # the next block overwrites the oldest one
                jobs.popleft().result()
            advance(len(block))
        for job in jobs:
            job.result()
    return digest.hexdigest()


def _compute_blocks(tensors: Sequence[OutputTensor]) -> Iterator[memoryview]:
    """Yield the bytes of the tensors in blocks; a block is valid until `BLOCKS` more are made."""
    memory = itertools.cycle([np.empty(BLOCK, np.uint8) for _ in range(BLOCKS)])
    block = next(memory)
    filled = 0
    for tensor, change in _with_changes(tensors):
        start = 0
        size = math.prod(tensor.shape)
        while start < size:
            if filled == BLOCK:
                yield block.data
                block = next(memory)
                filled = 0
            rest = block[filled:].view(STORED[tensor.dtype])
            out = rest[: min(RUN, size - start)]
            tensor.fill(start, out, change)
            start += len(out)
            filled += out.nbytes
    yield block[:filled].data


def _with_changes(
    tensors: Sequence[OutputTensor],
) -> Generator[tuple[OutputTensor, Array | None]]:
    """Yield each tensor and its change, if it has one; other threads compute changes ahead."""
    from clipmerge.parallel import run_in_threads

    jobs = [(tensor.nbytes, tensor.change) for tensor in tensors if tensor.change]
    with contextlib.closing(run_in_threads(jobs)) as changes:
        for tensor in tensors:
            yield tensor, next(changes) if tensor.change else None
