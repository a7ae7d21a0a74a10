"""Write one output file front to back: one block is computed while others are hashed and written to
disk. Its tensors are computed when they are written.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clipmerge.files.safetensors import DTYPES, STORED, Array
from clipmerge.types import Shape

if TYPE_CHECKING:
    from torch import Tensor

# Flushes early, so that the final sync has less to do; macOS and Windows have only fsync.
_flush = getattr(os, "fdatasync", os.fsync)


BLOCK = 4 << 20  # bytes of a block
BLOCKS = 6  # number of blocks in memory
FLUSH = 256 << 20  # bytes written through the page cache between two requests to flush it to disk
#: Returns a buffer for the next elements, given their number and dtype; it may be shorter.
BufferProvider = Callable[[int, str], Array]


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the output, with its content on demand."""

    key: str  # key in the output file
    name: str  # canonical parameter name
    dtype: str  # safetensors dtype
    shape: Shape
    # computes the content: runs of elements in memory order, 1-D, in stored form (bfloat16 as its
    # bits). Its argument returns a buffer for some of the next elements, such as ``numpy.empty``; a
    # run need not be in one
    chunks: Callable[[BufferProvider], Iterator[Array]]
    # whether the whole tensor is computed before the first run, as masks and combinations require
    is_whole: bool = False

    @property
    def nbytes(self) -> int:
        """Size of the content."""
        return math.prod(self.shape) * DTYPES[self.dtype][1]

    def tensor(self, content: Iterable[Array]) -> Tensor:
        """The whole content as a tensor of its own."""
        import torch

        stored = np.concatenate([np.empty(0, STORED[self.dtype]), *content])
        return torch.from_numpy(stored).view(getattr(torch, DTYPES[self.dtype][0])).view(self.shape)


def iter_contents(
    tensors: Sequence[OutputTensor], reserve: BufferProvider
) -> Generator[Iterable[Array]]:
    """Yield each tensor's content in turn; tensors computed as a whole are started early on other
    cores.
    """
    jobs = [(tensor.nbytes, partial(_prefetch, tensor)) for tensor in tensors if tensor.is_whole]
    if not jobs:
        yield from (tensor.chunks(reserve) for tensor in tensors)
        return
    from clipmerge.parallel import run_in_threads

    with contextlib.closing(run_in_threads(jobs)) as prefetched:
        for tensor in tensors:
            yield next(prefetched) if tensor.is_whole else tensor.chunks(reserve)


def _prefetch(tensor: OutputTensor) -> Iterable[Array]:
    """A tensor's content, computed as far as its first run, which is most of the work."""
    chunks = tensor.chunks(np.empty)
    return itertools.chain(list(itertools.islice(chunks, 1)), chunks)


class OutputFile:
    """A new file of known size; make one with `output_file`."""

    def __init__(self, file: int, threads: contextlib.ExitStack) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._hasher, self._writer, self._flusher = (
            threads.enter_context(ThreadPoolExecutor(1)) for _ in range(3)
        )
        self._unflushed = 0
        self._flushing = self._flusher.submit(lambda: None)
        self._free = deque(np.empty(BLOCK, np.uint8) for _ in range(BLOCKS))
        self._busy: deque[tuple[Array, list[Future[None]]]] = deque()
        self._block = self._free.popleft()
        self._filled = 0
        self._lent: Array | None = None

    def reserve(self, count: int, dtype: str) -> Array:
        """Return a buffer for the next elements to be appended: 1-D, at least one, at most
        ``count``.
        """
        width = np.dtype(dtype).itemsize
        left = (len(self._block) - self._filled) // width * width
        run = self._block[self._filled : self._filled + min(count * width, left)]
        self._lent = run.view(dtype) if len(run) else np.empty(count, dtype)
        return self._lent

    def append(self, data: Array) -> None:
        """Write the next elements: 1-D, perhaps the buffer from `reserve`; they must not be changed
        afterwards.
        """
        raw = data.view(np.uint8)
        if data is self._lent and np.shares_memory(
            data, self._block[self._filled : self._filled + 1]
        ):
            self._advance(len(raw))
            return
        while len(raw):
            count = min(len(raw), len(self._block) - self._filled)
            self._block[self._filled : self._filled + count] = raw[:count]
            self._advance(count)
            raw = raw[count:]

    def _advance(self, count: int) -> None:
        self._filled += count
        if self._filled == len(self._block):
            self._submit_block()
            if not self._free:
                self._finish_oldest()
            self._block = self._free.popleft()
            self._filled = 0

    def _submit_block(self) -> None:
        """Let the writer write the filled block, and the hasher hash it, in their threads."""
        data = self._block[: self._filled].data
        jobs = [
            self._writer.submit(self._write, data),
            self._hasher.submit(self._digest.update, data),
        ]
        self._busy.append((self._block, jobs))

    def _finish_oldest(self) -> None:
        block, jobs = self._busy.popleft()
        for job in jobs:
            job.result()
        self._free.append(block)

    def _write(self, data: memoryview) -> None:
        self._unflushed += len(data)
        while data:
            data = data[os.write(self._file, data) :]
        if self._unflushed > FLUSH and self._flushing.done():
            self._flushing.result()
            self._unflushed = 0
            self._flushing = self._flusher.submit(_flush, self._file)

    def finish(self) -> str:
        """Wait until everything is on disk; the sha256 of the file."""
        self._submit_block()
        while self._busy:
            self._finish_oldest()
        self._flushing.result()
        os.fsync(self._file)
        return self._digest.hexdigest()


@contextlib.contextmanager
def output_file(path: Path, size: int) -> Iterator[OutputFile]:
    """Create a file, if the disk has room for it."""
    with path.open("xb", buffering=0) as file, contextlib.ExitStack() as threads:
        disk = shutil.disk_usage(path.parent)
        # fail now, not after minutes of work, if the disk cannot hold the file; some network file
        # systems report 0 of 0
        if size > disk.free and disk.total:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield OutputFile(file.fileno(), threads)
