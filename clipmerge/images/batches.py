"""Decode and preprocess images in batches, and share the batches among processes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from PIL.Image import Image
from torch import Tensor

from clipmerge.distributed import to_device
from clipmerge.images.decoding import Encoded, open_picture
from clipmerge.images.image_set import Pictures
from clipmerge.parallel import cores_per_process

T = TypeVar("T")
# More threads do not decode faster, because Pillow holds Python's lock for part of the work.
_MAX_WORKERS = 16
# The bootstrap resamples batches, so there should be several even if images are few.
_MAX_BATCH = 128
_MIN_BATCHES = 8


@dataclass(frozen=True)
class Batch:
    """One batch of preprocessed images."""

    number: int  # index among the batches of all processes
    pixels: Tensor  # (batch, 3, height, width), float32
    labels: Tensor  # (batch,), class indices, int64

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Batch:
        """Copy the batch to another device."""
        pixels = to_device(self.pixels, device)
        labels = to_device(self.labels, device)
        return Batch(self.number, pixels, labels)

    def take(self, positions: Tensor) -> Batch:
        """Select images, in the order of the positions."""
        positions = positions.to(self.labels.device)
        return Batch(self.number, self.pixels[positions], self.labels[positions])

    def pieces(self, size: int | None) -> list[Batch]:
        """Split the batch into numbered pieces of at most ``size`` images, or leave it whole."""
        size = size or len(self)
        pixels = torch.split(self.pixels, size)
        labels = torch.split(self.labels, size)
        return list(map(Batch, range(len(labels)), pixels, labels))


def batch_size_for(images: int, wanted: int | None, world_size: int = 1) -> int:
    """Choose a batch size of at most 128 that gives at least eight batches, and at least one per
    process.

    Example:
        >>> batch_size_for(1024, None), batch_size_for(160, None), batch_size_for(160, 64)
        (128, 20, 64)
        >>> batch_size_for(1024, None, world_size=16)
        64
    """
    batches = max(_MIN_BATCHES, world_size)
    size = math.ceil(images / batches)
    return wanted or min(max(1, size), _MAX_BATCH)


def read_pixels(
    pictures: Pictures,
    batch_size: int,
    to_pixels: Callable[[list[Image]], Tensor],
    share: tuple[int, int] = (0, 1),
) -> Generator[tuple[int, Tensor], None, None]:
    """Yield the index and the pixels of each batch of this process, in order, on the CPU. Threads
    prepare the next batch while the caller uses this one.

    Each thread decodes and preprocesses one image at a time, so memory holds at most two batches of
    pixels and one decoded image per thread. Processes take batches in turn; ``share`` is
    (index of this process, number of processes).
    """
    rank, world_size = share
    positions = range(len(pictures))
    batches = [positions[start : start + batch_size] for start in positions[::batch_size]]
    mine = range(rank, len(batches), world_size)

    def preprocess(position: int, encoded: Encoded) -> Tensor:
        return to_pixels([open_picture(pictures.name_of(position), encoded)])

    workers = min(cores_per_process(), _MAX_WORKERS)
    # torch gets one thread per worker, or the workers would compete for cores
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as decoding:
        try:
            # items are read in this thread, because not every data set is thread-safe
            jobs = (
                partial(preprocess, at, pictures[at]) for number in mine for at in batches[number]
            )
            images = prefetch(decoding, batch_size, jobs)
            for number in mine:
                yield number, torch.cat([next(images) for _ in batches[number]])
        finally:
            decoding.shutdown(wait=False, cancel_futures=True)
            # or threads that start later would inherit the one thread of the workers
            torch.set_num_threads(torch.get_num_threads())


def prefetch(pool: ThreadPoolExecutor, count: int, jobs: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Run jobs in a pool, and yield their results in order; ``count`` jobs run ahead."""
    running: deque[Future[T]] = deque()
    for job in jobs:
        running.append(pool.submit(job))
        if len(running) > count:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()
