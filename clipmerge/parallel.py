"""Jobs in threads with bounded memory, and torch limited to one thread."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
#: Limit of the total size in bytes of the results of jobs that run at once. A job with a larger
#: result runs alone. The computation of a tensor needs a few times as much memory.
MAX_BYTES = 64 << 20

_lock = threading.Lock()
_inside = 0  # number of threads that are in `one_thread`
_threads_outside = 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread during a block: more threads change the last bits of sums."""
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


def cores_per_process() -> int:
    """Count the CPU cores for this process: those it may use, shared by the run's processes."""
    every = os.cpu_count() or 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else every
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def run_in_threads(
    jobs: Iterable[tuple[int, Callable[[], T]]], *, max_bytes: int = MAX_BYTES
) -> Generator[T]:
    """Run jobs in threads, and yield their results in order.

    ``OMP_NUM_THREADS`` sets the number of threads, as in torch; by default there is one per core.
    Close the iterator (`contextlib.closing`) if it may not be exhausted.

    Args:
        jobs: The size of each result in bytes, and the function that computes it.
        max_bytes: See `MAX_BYTES`.
    """
    named = os.environ.get("OMP_NUM_THREADS", "")
    threads = (int(named) if named.isdigit() else 0) or cores_per_process()
    if threads == 1:
        yield from (job() for _, job in jobs)
        return
    waiting = deque(jobs)
    running = deque[tuple[int, Future[T]]]()
    bytes_in_use = 0
    with ThreadPoolExecutor(threads) as pool:
        try:
            while waiting or running:
                while waiting and (not running or bytes_in_use + waiting[0][0] <= max_bytes):
                    size, job = waiting.popleft()
                    running.append((size, pool.submit(job)))
                    bytes_in_use += size
                size, future = running.popleft()
                yield future.result()
                bytes_in_use -= size  # the caller is done with it
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
