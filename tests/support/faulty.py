"""The command line with a fault in its first pass; test_processes.py.

``FAULT`` is ``signal`` for a signal in a finalizer, or the rank of a process without memory.
"""

import os
import signal

from clipmerge.__main__ import run
from clipmerge.learning.objective import Work

tick = Work.count


class Interrupted:
    """Python ignores what its finalizer raises."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def ticked(self: Work, work: float) -> None:
    fault = os.environ["FAULT"]
    if fault == "signal":
        Interrupted()
    if fault == os.environ.get("RANK"):
        raise MemoryError("no more memory")
    tick(self, work)


if __name__ == "__main__":
    Work.count = ticked  # type: ignore[method-assign]
    run()
