"""The command line, in which the second of several processes is lost after its first pass: it is
killed, or, where ``LOSE`` names a rank, that one runs out of memory; test_processes.py."""

import os
import signal

from clipmerge.__main__ import run
from clipmerge.learning.objective import Work

tick = Work.count


def ticked(self: Work, work: float) -> None:
    if os.environ["RANK"] == os.environ.get("LOSE"):
        raise MemoryError("no more memory")
    if os.environ["RANK"] == "1" and "LOSE" not in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
    tick(self, work)


if __name__ == "__main__":
    Work.count = ticked  # type: ignore[method-assign]
    run()
