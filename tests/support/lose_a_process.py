"""The command line, in which one process of several is lost, slow or hangs after its first pass;
test_processes.py."""

import os
import signal
import sys
import time
from datetime import timedelta

from clipmerge import distributed
from clipmerge.__main__ import run
from clipmerge.errors import DataError
from clipmerge.learning.objective import Objective

LOST = "lost at "
#: Seconds after which a process that hangs is given up here.
LIMIT = 10


def fail() -> None:
    raise DataError("images/7.png: cannot be read")


# what happens to the process: a signal to it or to its launcher, an error, a pause after every
# pass, or a long one
HOW = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "launcher": lambda: (os.kill(os.getppid(), signal.SIGTERM), time.sleep(LIMIT)),
    "fails": fail,
    "slow": lambda: time.sleep(0.3),
    "hangs": lambda: time.sleep(60 * LIMIT),
}


def lose(rank: str, how: str) -> None:
    tick = Objective.tick

    def ticked(self: Objective, cost: float) -> None:
        if os.environ["RANK"] == rank:
            sys.stderr.write(f"{LOST}{time.time()}\n")
            sys.stderr.flush()
            HOW[how]()
        tick(self, cost)

    Objective.tick = ticked  # type: ignore[method-assign]
    if how == "hangs":
        distributed.timedelta = lambda minutes: timedelta(seconds=LIMIT)  # type: ignore[misc,assignment]


if __name__ == "__main__":
    lose(*sys.argv[1:3])
    del sys.argv[1:3]
    run()
