"""The command line, in which one process of several is killed or fails after its first pass; see test_processes.py."""

from __future__ import annotations

import os
import signal
import sys
import time

from clipmerge.calibration.objective import Work
from clipmerge.cli.app import main
from clipmerge.errors import DataError

LOST = "lost at "


def lose(rank: str, how: str) -> None:
    tick = Work.tick

    def ticked(self: Work, cost: float) -> None:
        if os.environ["RANK"] == rank:
            sys.stderr.write(f"{LOST}{time.time()}\n")
            sys.stderr.flush()
            if how == "fail":
                raise DataError("images/7.png: cannot be read")
            os.kill(os.getpid(), getattr(signal, how))
        tick(self, cost)

    Work.tick = ticked  # type: ignore[method-assign]


if __name__ == "__main__":
    lose(*sys.argv[1:3])
    del sys.argv[1:3]
    main()
