"""The command line, in which the second of several processes is lost after its first pass: it is
killed, or, where ``LOSE`` names a rank, that one runs out of memory; test_processes.py."""

import os
import signal

from clipmerge.__main__ import run
from clipmerge.learning.objective import Objective

tick = Objective.count_work


def ticked(self: Objective, cost: float) -> None:
    if os.environ["RANK"] == os.environ.get("LOSE"):
        raise MemoryError("no more memory")
    if os.environ["RANK"] == "1" and "LOSE" not in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
    tick(self, cost)


if __name__ == "__main__":
    Objective.count_work = ticked  # type: ignore[method-assign]
    run()
