"""The command line, in which the process whose rank is ``LOSE`` runs out of memory after its first
pass; test_processes.py."""

import os

from clipmerge.__main__ import run
from clipmerge.learning.objective import Objective

tick = Objective.count_work


def ticked(self: Objective, cost: float) -> None:
    if os.environ["RANK"] == os.environ["LOSE"]:
        raise MemoryError("no more memory")
    tick(self, cost)


if __name__ == "__main__":
    Objective.count_work = ticked  # type: ignore[method-assign]
    run()
