"""The command line, in which the process whose rank is ``LOSE`` runs out of memory after its first
pass; test_processes.py."""

import os

from clipmerge.__main__ import run
from clipmerge.learning.objective import Work

tick = Work.count


def ticked(self: Work, work: float) -> None:
    if os.environ["RANK"] == os.environ["LOSE"]:
        raise MemoryError("no more memory")
    tick(self, work)


if __name__ == "__main__":
    Work.count = ticked  # type: ignore[method-assign]
    run()
