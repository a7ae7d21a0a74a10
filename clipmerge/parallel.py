"""The number of threads that torch computes with, and tensors computed side by side, each on one thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
#: Bytes that the tensors under way and the one in use may hold together; a larger tensor is computed alone. Computing
#: takes a few times that.
HELD_BYTES = 64 << 20


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: with more, sums are split by their number, and the last bits with them."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def side_by_side(jobs: Iterable[tuple[int, Callable[[], T]]], *, held_bytes: int = HELD_BYTES) -> Generator[T]:
    """Run jobs that compute with one thread each, as many at a time as torch may use threads.

    Close the iterator (`contextlib.closing`) if it may not be used up: torch keeps to one thread until then.

    Args:
        jobs: Bytes of the tensor that a job looks at, and the job; begun in order, shortly before their results are
            asked for.
        held_bytes: Bytes that may be held together by the jobs under way and the result in use.

    Yields:
        Their results, in order; the first that raises ends it.
    """
    import torch

    threads = torch.get_num_threads()
    if threads == 1:
        yield from (job() for _, job in jobs)
        return
    waiting, running, held = deque(jobs), deque[tuple[int, Future[T]]](), 0
    with one_thread(), ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            while waiting or running:
                while waiting and (not running or held + waiting[0][0] <= held_bytes):
                    size, job = waiting.popleft()
                    running.append((size, pool.submit(job)))
                    held += size
                size, future = running.popleft()
                yield future.result()
                held -= size  # the caller is done with it
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
