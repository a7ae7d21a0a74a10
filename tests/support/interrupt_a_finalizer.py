"""The command line, in which a signal arrives in a finalizer of its first pass; test_processes.py."""

import signal

from clipmerge.__main__ import run
from clipmerge.learning.objective import Work

tick = Work.count


class Interrupted:
    """Python ignores what its finalizer raises."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def ticked(self: Work, work: float) -> None:
    Interrupted()
    tick(self, work)


if __name__ == "__main__":
    Work.count = ticked  # type: ignore[method-assign]
    run()
