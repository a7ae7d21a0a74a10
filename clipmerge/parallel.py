"""Tensors computed in parallel, each on one thread, and torch on one thread."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
#: Limit on the total bytes of the tensors in progress and the one in use; a larger tensor is
#: computed alone. The computation needs a few times as much.
HELD_BYTES = 64 << 20

_lock = threading.Lock()
_inside = 0  # number of threads in `one_thread`
_threads_outside = 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread; it splits a sum by the number of threads, which changes the last
    bits.
    """
    import torch

    global _inside, _threads_outside
    with _lock:
        if _inside == 0:
            _threads_outside = torch.get_num_threads()
        _inside += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                torch.set_num_threads(_threads_outside)


def thread_count() -> int:
    """Number of threads to compute with: those of ``OMP_NUM_THREADS``, as in torch, or the
    processors of this process.
    """
    named = os.environ.get("OMP_NUM_THREADS", "")
    if named.isdigit() and int(named):
        return int(named)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_in_threads(
    jobs: Iterable[tuple[int, Callable[[], T]]], *, held_bytes: int = HELD_BYTES
) -> Generator[T]:
    """Run jobs, given by the bytes of their results, in as many threads as there are processors;
    the results are in order.

    Close the iterator (`contextlib.closing`) if it may not be exhausted.
    """
    threads = thread_count()
    if threads == 1:
        yield from (job() for _, job in jobs)
        return
    waiting = deque(jobs)
    running = deque[tuple[int, Future[T]]]()
    bytes_in_use = 0
    with ThreadPoolExecutor(threads) as pool:
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
