"""The number of torch's threads, and tensors computed in parallel, each on one thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
#: Limit on the total bytes of the tensors in progress and the one in use; a larger tensor is
#: computed alone. The computation needs a few times as much.
HELD_BYTES = 64 << 20


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread: with more, sums are split by their number, which changes the last
    bits.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run_in_threads(
    jobs: Iterable[tuple[int, Callable[[], T]]], *, held_bytes: int = HELD_BYTES
) -> Generator[T]:
    """Run jobs with one thread each, as many at a time as torch has threads.

    Close the iterator (`contextlib.closing`) if it may not be exhausted: torch is limited to one
    thread until then.
    """
    import torch

    threads = torch.get_num_threads()
    if threads == 1:
        yield from (job() for _, job in jobs)
        return
    waiting = deque(jobs)
    running = deque[tuple[int, Future[T]]]()
    bytes_in_use = 0
    with (
        one_thread(),
        ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        try:
            while waiting or running:
                while waiting and (not running or bytes_in_use + waiting[0][0] <= held_bytes):
                    size, job = waiting.popleft()
                    running.append((size, pool.submit(job)))
                    bytes_in_use += size
                size, future = running.popleft()
                yield future.result()
                bytes_in_use -= size  # the caller is done with it
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
