"""Batches of labelled images: decoded, preprocessed and dealt out to processes."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from PIL.Image import Image
from torch import Tensor

from clipmerge.distributed import cores_per_process, to_device
from clipmerge.images.dataset import LabelledImages
from clipmerge.images.decoding import Encoded, decode
from clipmerge.images.store import Pixels, Store

T = TypeVar("T")
# More threads than this do not decode faster: part of Pillow's work holds Python's lock.
_MOST_WORKERS = 16
# A batch is the unit of the bootstrap, so there should be a few of them even when images are
# scarce.
_LARGEST_BATCH = 128
_FEWEST_BATCHES = 8


@dataclass(frozen=True)
class Batch:
    """One batch of preprocessed images."""

    number: int  # its index among the batches of all processes
    pixels: Tensor  # (batch, 3, height, width), float32
    labels: Tensor  # (batch,), class indices, int64

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        place = torch.device(device)
        return Batch(self.number, to_device(self.pixels, place), to_device(self.labels, place))

    def pieces(self, size: int | None) -> list[Batch]:
        """Split the batch into pieces of at most ``size`` images; ``None`` leaves it whole."""
        size = size or len(self)
        parts = zip(torch.split(self.pixels, size), torch.split(self.labels, size), strict=True)
        return [Batch(self.number, pixels, labels) for pixels, labels in parts]


def batch_size_for(images: int, wanted: int | None, world_size: int = 1) -> int:
    """Choose the batch size: at most 128, and small enough for eight batches, or for one per
    process if there are more.

    Example:
        >>> batch_size_for(1024, None), batch_size_for(160, None), batch_size_for(160, 64)
        (128, 20, 64)
        >>> batch_size_for(1024, None, world_size=16)
        64
    """
    return wanted or max(1, min(_LARGEST_BATCH, -(-images // max(_FEWEST_BATCHES, world_size))))


def read_batches(
    images: LabelledImages,
    batch_size: int,
    to_pixels: Callable[[list[Image]], Tensor],
    *,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Decode and preprocess this process's batches in their order, on the CPU; the next one while
    this one is used.

    One thread reads the encoded images of a batch, several decode and preprocess them one by one,
    so that at most two batches of pixels, and as many decoded images as there are threads, are in
    memory. ``share`` is this process's index and the number of processes; batches are dealt out in
    turn.
    """
    with contextlib.closing(
        read_pixels(images.store, len(images), batch_size, to_pixels, share)
    ) as reading:
        for number, pixels in reading:
            labels = images.labels[number * batch_size : (number + 1) * batch_size]
            yield Batch(number, pixels, torch.tensor(labels))


def read_pixels(
    store: Store,
    count: int,
    batch_size: int,
    to_pixels: Callable[[list[Image]], Tensor],
    share: tuple[int, int] = (0, 1),
) -> Generator[tuple[int, Tensor], None, None]:
    """The number and the pixels of this process's batches, for images without labels too; see
    `read_batches`.
    """
    rank, world = share
    batches = {
        number: range(number * batch_size, min((number + 1) * batch_size, count))
        for number in range(-(-count // batch_size))
        if number % world == rank
    }
    if isinstance(store, Pixels):
        yield from ((number, store.batch(positions)) for number, positions in batches.items())
        return
    with contextlib.closing(
        _decoded(store, list(batches.values()), to_pixels, cores_per_process())
    ) as pixels:
        yield from zip(batches, pixels, strict=True)


def _decoded(
    store: Store, batches: Sequence[range], to_pixels: Callable[[list[Image]], Tensor], workers: int
) -> Generator[Tensor, None, None]:
    def ready(position: int, encoded: Encoded) -> Tensor:
        return to_pixels([decode(store.name(position), encoded)])

    workers = min(workers, _MOST_WORKERS)
    # threads of torch in every worker would only get in one another's way
    decoding = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    with ThreadPoolExecutor(1) as reading, decoding:
        try:
            contents = _ahead(reading, 1, (partial(store.read, batch) for batch in batches))
            jobs = (
                partial(ready, position, encoded)
                for batch, content in zip(batches, contents, strict=True)
                for position, encoded in zip(batch, content, strict=True)
            )
            images = _ahead(decoding, max(map(len, batches), default=1), jobs)
            for batch in batches:
                yield torch.cat([next(images) for _ in batch])
        finally:
            reading.shutdown(wait=False, cancel_futures=True)
            decoding.shutdown(wait=False, cancel_futures=True)
            torch.set_num_threads(
                torch.get_num_threads()
            )  # threads that are started later do not get the workers' one


def _ahead(pool: ThreadPoolExecutor, count: int, jobs: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Results in order; up to ``count`` further jobs are started before a result is asked for."""
    running: deque[Future[T]] = deque()
    for job in jobs:
        running.append(pool.submit(job))
        if len(running) > count:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()
